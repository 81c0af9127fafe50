"""Warnings that name the line of the user, wherever in the package they come from."""

from __future__ import annotations

import os
import sys
import warnings
from types import FrameType

import torch

# Packages whose frames are not the user's: what calls us, or calls us back, on a user's behalf. By their names, for one
# file may be reached by several paths.
_INSIDE = ("colbert_fast", "torch", "sentence_transformers", "transformers", "tqdm")
# Code that torch makes is in no module; it is called so, or by a file of torch.
_MADE = ("<eval_with_key>", os.path.dirname(torch.__file__) + os.sep)


def warn_caller(message: str) -> None:
    """Raise a UserWarning at the line, outside this package and torch, from which the call came.

    Where there is none, as in a thread whose target is a function of this package, at the line that called it there.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _inside(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _inside(frame: FrameType) -> bool:
    if str(frame.f_globals.get("__name__")).partition(".")[0] in _INSIDE:
        return True
    return frame.f_code.co_filename.startswith(_MADE)
