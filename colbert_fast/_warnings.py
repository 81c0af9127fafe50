"""Warnings that name a line of the user's code, not a line of this package."""

from __future__ import annotations

import os
import sys
import warnings
from types import FrameType

import torch

# Packages whose code is not the user's: this one, and packages that call it for the user. They are known by name,
# because one file may be reached by several paths.
_INSIDE = ("colbert_fast", "torch", "sentence_transformers", "transformers", "tqdm")
# Code that torch makes is in no module. Its file is called "<eval_with_key>", or is a file of torch.
_MADE = ("<eval_with_key>", os.path.dirname(torch.__file__) + os.sep)


def warn_caller(message: str) -> None:
    """Issue a UserWarning at the line of the user's code that made the call.

    A thread whose target is a function of this package has no such line: there the warning is at the line that called
    the target.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _inside(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _inside(frame: FrameType) -> bool:
    if str(frame.f_globals.get("__name__")).partition(".")[0] in _INSIDE:
        return True
    return frame.f_code.co_filename.startswith(_MADE)
