"""The benchmarks: run from a clone, of the colbert_fast that is installed."""

import sys
from pathlib import Path

# `python -m` puts the clone first, whose colbert_fast has no extension unless `make dev` built it: the clone goes last.
_ROOT = str(Path(__file__).parents[1])
sys.path[:] = [entry for entry in sys.path if entry not in ("", _ROOT)] + [_ROOT]
