"""The backends that a run requires, and a backend whose tensors are on another device."""

from __future__ import annotations

import os
from typing import Any

import torch

from colbert_fast._backends.problem import EMPTY_DOCUMENT_SCORE, Backend, Problem, Scored

# COLBERT_FAST_REQUIRE="cpu:avx2,triton": tests fail on a machine without these. lacking.py has the names.
REQUIRED = {name for name in os.environ.get("COLBERT_FAST_REQUIRE", "").split(",") if name}


def by_way_of(device: str, backend: Backend) -> Backend:
    """Return a backend for CPU tensors that moves everything to the device, and the results back."""

    def moved(p: Problem) -> Problem:
        return Problem(*(part.to(device) if isinstance(part, torch.Tensor) else part for part in p))

    def score(p: Problem) -> Scored:
        scores = backend.score(moved(p)).scores.cpu()
        return Scored(scores, None, bool((scores == EMPTY_DOCUMENT_SCORE).any()))

    def score_argmax(p: Problem) -> Scored:
        scores, argmax, _ = backend.score_argmax(moved(p))
        assert argmax is not None
        return Scored(scores.cpu(), argmax.cpu().int(), bool((scores == EMPTY_DOCUMENT_SCORE).any()))

    def backward(p: Problem, grad_scores: torch.Tensor, argmax: torch.Tensor, for_q: bool, for_d: bool) -> Any:
        there = moved(p)
        argmax = argmax.to(device, there.argmax_dtype)
        grads = backend.backward(there, grad_scores.to(device), argmax, for_q, for_d)
        return tuple(None if grad is None else grad.cpu() for grad in grads)

    asks = backend.refused
    refused = None if asks is None else lambda _: asks(torch.device(device))
    return backend._replace(device="cpu", refused=refused, score=score, score_argmax=score_argmax, backward=backward)
