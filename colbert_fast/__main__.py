"""``python -m colbert_fast`` is ``colbert-fast``."""

import sys

from colbert_fast.cli import main

sys.exit(main())
