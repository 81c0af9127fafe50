"""Warnings that name the line of the user, wherever in the package they come from."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

# Files whose frames are not the user's.
_INSIDE = tuple(str(Path(file).parent) + os.sep for file in (__file__, torch.__file__))


def warn_caller(message: str) -> None:
    """Raise a UserWarning at the line, outside this package and torch, from which the call came."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
