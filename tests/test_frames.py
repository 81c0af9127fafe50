"""How many Python functions of this package a small call enters: they are a large part of its time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import colbert_fast as cf

ROOT = str(Path(cf.__file__).parent)
Q, D = torch.randn(1, 4, 8), torch.randn(1, 6, 8)
Q_MASK, D_MASK = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 6, dtype=torch.bool)
PACKED = cf.PackedTokens.from_padded(Q), cf.PackedTokens.from_padded(D)

# The call, and the most functions that it may enter. A property counts as a function.
CALLS: dict[str, tuple[Callable[[], Any], int]] = {
    "packed": (lambda: cf.maxsim(*PACKED), 23),
    "padded": (lambda: cf.maxsim(Q, D), 31),
    "masked": (lambda: cf.maxsim(Q, D, Q_MASK, D_MASK), 39),
    "list": (lambda: cf.maxsim(list(Q), list(D)), 34),
    "pairwise": (lambda: cf.maxsim_pairwise(*PACKED), 25),
    "pairs": (lambda: cf.maxsim_pairs(*PACKED, torch.zeros(1, 2, dtype=torch.int64)), 30),
    "topk": (lambda: cf.topk(*PACKED, 1), 29),
}


def entered(call: Callable[[], Any]) -> list[str]:
    """Return the functions of the package that a warm call enters, in order."""
    names: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(ROOT):
            names.append(f"{file[len(ROOT) + 1 :]}: {frame.f_code.co_name}")

    for _ in range(2):
        call()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return names


@pytest.mark.parametrize("name", CALLS)
def test_functions_that_a_small_call_enters(name: str, extension: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLBERT_FAST_BACKEND", raising=False)
    monkeypatch.delenv("COLBERT_FAST_NUM_THREADS", raising=False)
    call, budget = CALLS[name]
    names = entered(call)
    assert any(function.endswith(("cpu.py: _score", "cpu.py: _best")) for function in names)
    assert len(names) <= budget, "\n".join([f"{name} enters {len(names)} functions, not {budget}:", *names])
