"""Ends the command ``colbert-fast`` quietly on Ctrl-C while it is being imported.

Importing torch takes seconds, and a traceback from inside torch would tell the user nothing. In every other program
this module changes nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def is_command() -> bool:
    """Return whether this process was started as ``colbert-fast`` or ``python -m colbert_fast``."""
    program = sys.argv[0] if sys.argv else ""
    name = os.path.basename(program).removesuffix(".exe").removesuffix("-script.py")
    # sys.argv[0] is "-m" until Python has found the module, and Python imports the package to find it.
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] if program == "-m" and "-m" in sys.orig_argv else []
    return name == "colbert-fast" or module == ["colbert_fast"]


def end_quietly() -> None:
    """Let Ctrl-C end this process at once, while it has nothing to save. A process that ignores Ctrl-C goes on."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_as_usual() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


if is_command():
    end_quietly()
