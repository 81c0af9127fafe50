"""The C++ extension as backends, one for each instruction-set tier."""

from __future__ import annotations

import os
from array import array
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from colbert_fast._arrays import aligned
from colbert_fast._backends.extension import why_missing
from colbert_fast._backends.problem import Backend, Problem, Scored
from colbert_fast._checks import positive_int

_MISSING: str | None = None
try:
    from colbert_fast import _C
except ImportError as error:
    _C = None  # type: ignore[assignment]
    _MISSING = why_missing(error)

# The tiers of csrc/dispatch.cpp, for an installation without the extension to name.
_X86_64 = ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx_vnni", "avx2")
_TIERS = (*_X86_64, "neon_i8mm", "neon_dotprod", "neon", "portable")
# The numbers of DType in csrc/maxsim.h.
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}

# (data, row stride, rows, starts, lengths, items, dtype, scales, addresses of the items)
_Side: TypeAlias = tuple[int, int, int, int, int, int, int, int, int]
_num_threads: int | None = None


def set_num_threads(n: int) -> None:
    """Let CPU scoring use ``n`` threads, the calling one included, in this process from now on.

    Raises
    ------
    TypeError
        ``n`` is not an int.
    ValueError
        ``n`` is less than 1.
    """
    global _num_threads
    _num_threads = _checked(n, "n")


def get_num_threads() -> int:
    """Threads that CPU scoring uses: set_num_threads, else COLBERT_FAST_NUM_THREADS, else torch.get_num_threads().

    Raises
    ------
    ValueError
        COLBERT_FAST_NUM_THREADS is not a number of 1 or more.
    """
    if _num_threads is not None:
        return _num_threads
    text = os.environ.get("COLBERT_FAST_NUM_THREADS")
    if text is None:
        return torch.get_num_threads()
    try:
        return _checked(int(text), "COLBERT_FAST_NUM_THREADS")
    except ValueError:
        msg = f"COLBERT_FAST_NUM_THREADS must be a number of 1 or more; got {text!r}"
        raise ValueError(msg) from None


def _checked(n: int, name: str) -> int:
    if positive_int(n, name) >= 2**31:
        msg = f"{name} must be 2147483647 or less; got {n}"
        raise ValueError(msg)
    return n


def measure_read(tier: str, threads: int, memory: Tensor) -> float:
    """Return the bytes a second of one pass of the tier's loads over ``memory``, a contiguous float32 tensor."""
    return _C.measure_read(tier, threads, memory.data_ptr(), memory.nbytes)


def products(tier: str) -> list[str]:
    """Return the dtypes that a tier has multiply-adds for, float32 first."""
    return _C.products(tier)


def measure_flops(tier: str, dtype: str, threads: int, seconds: float) -> float:
    """Return the operations a second of the tier's multiply-adds of a dtype, over about ``seconds``."""
    return _C.measure_flops(tier, dtype, threads, seconds)


def _readable(tokens: Tensor) -> Tensor:
    """Return tokens as the kernels read them: adjacent elements in a row, aligned, plain; a copy only if need be."""
    if tokens.is_neg():
        tokens = tokens.resolve_neg()
    if tokens.stride(1) != 1 and tokens.shape[1] > 1:
        tokens = tokens.contiguous()
    return tokens.clone() if tokens.data_ptr() % tokens.element_size() else tokens


def _side(tokens: Tensor, starts: Tensor, lengths: Tensor, scales: Tensor | None = None) -> _Side:
    """Holds addresses: the tensors must outlive the call."""
    return (
        tokens.data_ptr(),
        tokens.stride(0),
        tokens.shape[0],
        starts.data_ptr(),
        lengths.data_ptr(),
        lengths.shape[0],
        _DTYPES[tokens.dtype],
        # Of a tensor without elements the address is 0, which means no scales.
        0 if scales is None else scales.data_ptr() or 1,
        0,
    )


def _pairs(p: Problem) -> tuple[int, int]:
    return (0, -1) if p.pairs is None else (p.pairs.data_ptr(), p.pairs.shape[0])


def _in_place(p: Problem) -> tuple[_Side, object]:
    """The documents of a list, and what must outlive the call."""
    items = p.d_items
    if not all(map(Tensor.is_contiguous, items)) or any(map(Tensor.is_neg, items)):
        items = [t.contiguous().resolve_neg() for t in items]
    addresses = array("q", map(Tensor.data_ptr, items))
    if 0 in addresses and any(map(Tensor._is_zerotensor, items)):
        items = [t + torch.zeros_like(t) if t._is_zerotensor() else t for t in items]
        addresses = array("q", map(Tensor.data_ptr, items))
    if bool((torch.frombuffer(addresses, dtype=torch.int64) % p.d_tokens.element_size()).any()):
        items = [aligned(t) for t in items]
        addresses = array("q", map(Tensor.data_ptr, items))
    dim, dtype = p.d_tokens.shape[1], _DTYPES[p.d_tokens.dtype]
    side = (0, dim, 0, 0, p.d_lengths.data_ptr(), len(items), dtype, 0, addresses.buffer_info()[0])
    return side, (items, addresses)


def _score(tier: str, argmax: bool, p: Problem) -> Scored:
    q, d = _readable(p.q_tokens), _readable(p.d_tokens)
    scores = torch.empty(p.shape, dtype=torch.float32, device="cpu")
    winners = torch.empty((p.num_pairs, p.max_lq), dtype=torch.int32, device="cpu") if argmax else None
    if p.d_items:
        documents, _alive = _in_place(p)
    else:
        documents = _side(d, p.d_starts, p.d_lengths, p.d_scales)
    empty_document = _C.score(
        tier,
        _side(q, p.q_starts, p.q_lengths),
        documents,
        q.shape[1],
        *_pairs(p),
        p.max_lq,
        p.skip_zero_q,
        p.skip_zero_d,
        get_num_threads(),
        scores.data_ptr(),
        0 if winners is None else winners.data_ptr(),
    )
    return Scored(scores, winners, empty_document)


def _backward(
    tier: str, p: Problem, grad_scores: Tensor, argmax: Tensor, for_q: bool, for_d: bool
) -> tuple[Tensor | None, Tensor | None]:
    q, d = _readable(p.q_tokens), _readable(p.d_tokens)
    grad_scores = aligned(grad_scores.to(torch.float32).contiguous())
    argmax = aligned(argmax.contiguous())
    grads: list[Tensor | None] = [None, None]
    for side, wanted in enumerate((for_q, for_d)):
        if not wanted:
            continue
        grad = torch.zeros((q, d)[side].shape, dtype=torch.float32, device="cpu")
        _C.backward(
            tier,
            _side(q, p.q_starts, p.q_lengths),
            _side(d, p.d_starts, p.d_lengths, p.d_scales),
            q.shape[1],
            *_pairs(p),
            p.max_lq,
            get_num_threads(),
            side == 0,
            grad_scores.data_ptr(),
            argmax.data_ptr(),
            grad.data_ptr(),
        )
        grads[side] = grad
    return grads[0], grads[1]


def _backend(tier: str, unsupported: str | None) -> Backend:
    return Backend(
        name=f"cpu:{tier}",
        unsupported=unsupported,
        device="cpu",
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        score=partial(_score, tier, False),
        score_argmax=partial(_score, tier, True),
        backward=partial(_backward, tier),
        int8=True,
        scattered=True,
        refused=None if _C is None else lambda _: _C.refused(tier),
    )


BACKENDS = tuple(
    _backend(tier, reason) for tier, reason in (_C.tiers() if _C is not None else [(t, _MISSING) for t in _TIERS])
)
