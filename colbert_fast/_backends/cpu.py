"""The C++ extension as backends, one for each instruction-set tier."""

from __future__ import annotations

import operator
import os
import threading
from functools import partial
from typing import Any

import torch
from torch import Tensor

from colbert_fast._arrays import aligned
from colbert_fast._backends.problem import Backend, Problem, Scored
from colbert_fast._extension import _C, MISSING
from colbert_fast._threads import get_num_threads

if _C is not None:
    # Python handles signals on its main thread only: the extension does not ask for them on the others.
    _C.set_main_thread(threading.main_thread().ident or 0)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _C.set_main_thread(threading.get_ident()))

# The numbers of DType in csrc/maxsim.h.
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}


def _side(tokens: Tensor, starts: Tensor, lengths: Tensor, scales: Tensor | None = None) -> tuple[Any, ...]:
    """Return a side as the kernels read it: adjacent elements in a row, aligned, plain; a copy only if need be."""
    if tokens.is_neg():
        tokens = tokens.resolve_neg()
    if tokens.stride(1) != 1 and tokens.shape[1] > 1:
        tokens = tokens.contiguous()
    if tokens.data_ptr() % tokens.element_size():
        tokens = tokens.clone()
    return _DTYPES[tokens.dtype], tokens, starts, lengths, scales


def _in_place(p: Problem) -> tuple[Any, ...]:
    """Return the documents of a list as the kernels read them."""
    items = tuple(p.d_items)
    if any(map(Tensor.is_neg, items)):
        items = tuple(map(Tensor.resolve_neg, items))
    return _DTYPES[p.d_tokens.dtype], items, p.d_tokens.shape[1]


def _readable_item(item: Tensor) -> Tensor:
    """Return the item, or a copy if its memory is not aligned, not in order, or not there (a torch ZeroTensor)."""
    return aligned(item + torch.zeros_like(item) if item._is_zerotensor() else item).contiguous()


def _score(tier: str, argmax: bool, p: Problem) -> Scored:
    scores = torch.empty(p.shape, dtype=torch.float32, device="cpu")
    winners = torch.empty((p.num_pairs, p.max_lq), dtype=torch.int32, device="cpu") if argmax else None
    q = _side(p.q_tokens, p.q_starts, p.q_lengths)
    d = _in_place(p) if p.d_items else _side(p.d_tokens, p.d_starts, p.d_lengths, p.d_scales)
    rest = (p.pairs, p.max_lq, p.skip_zero_q, p.skip_zero_d, get_num_threads(), scores, winners)
    try:
        empty_document = _C.score(tier, q, d, *rest)
    except ValueError:
        empty_document = _C.score(tier, q, _readable(p, d), *rest)
    return Scored(scores, winners, empty_document)


def _best(tier: str, p: Problem, k: int) -> tuple[Tensor, Tensor, bool]:
    scores = torch.empty((p.nq, k), dtype=torch.float32, device="cpu")
    numbers = torch.empty((p.nq, k), dtype=torch.int64, device="cpu")
    q = _side(p.q_tokens, p.q_starts, p.q_lengths)
    d = _in_place(p) if p.d_items else _side(p.d_tokens, p.d_starts, p.d_lengths, p.d_scales)
    rest = (p.max_lq, p.skip_zero_q, p.skip_zero_d, get_num_threads(), k, scores, numbers)
    try:
        empty_document = _C.best(tier, q, d, *rest)
    except ValueError:
        empty_document = _C.best(tier, q, _readable(p, d), *rest)
    return scores, numbers, empty_document


def _readable(p: Problem, d: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return documents that the extension has just refused, with copies of items; raise again if none needs a copy.

    Few lists have an item that must be copied, and asking an item takes as long as scoring it. So the items are asked
    only after the extension has refused one.
    """
    if not p.d_items:
        raise
    dtype, items, dim = d
    readable = tuple(map(_readable_item, items))
    if all(map(operator.is_, readable, items)):
        raise
    return dtype, readable, dim


def _backward(
    tier: str, p: Problem, grad_scores: Tensor, argmax: Tensor, for_q: bool, for_d: bool
) -> tuple[Tensor | None, Tensor | None]:
    sides = _side(p.q_tokens, p.q_starts, p.q_lengths), _side(p.d_tokens, p.d_starts, p.d_lengths, p.d_scales)
    grad_scores = aligned(grad_scores.to(torch.float32).contiguous())
    argmax = aligned(argmax.contiguous())
    grads: list[Tensor | None] = [None, None]
    for side, wanted in enumerate((for_q, for_d)):
        if not wanted:
            continue
        grad = torch.zeros((p.q_tokens, p.d_tokens)[side].shape, dtype=torch.float32, device="cpu")
        _C.backward(tier, *sides, p.pairs, p.max_lq, get_num_threads(), side == 0, grad_scores, argmax, grad)
        grads[side] = grad
    return grads[0], grads[1]


def _backend(name: str, tier: str, unsupported: str | None) -> Backend:
    return Backend(
        name=name,
        unsupported=unsupported,
        device="cpu",
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        score=partial(_score, tier, False),
        score_argmax=partial(_score, tier, True),
        backward=partial(_backward, tier),
        int8=True,
        scattered=True,
        best=None if _C is None else partial(_best, tier),
        refused=None if _C is None else lambda _: _C.refused(tier),
    )


# The extension knows its tiers. Without the extension one backend stands for all of them, and says why none can run.
BACKENDS: tuple[Backend, ...] = (
    (_backend("cpu", "", MISSING),)
    if _C is None
    else tuple(_backend(f"cpu:{tier}", tier, reason) for tier, reason in _C.tiers())
)
