"""What every scoring function does: lower and check both sides, and put the gradients around the kernels."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from colbert_fast import _ops
from colbert_fast._arrays import Mask
from colbert_fast._backends.problem import Problem
from colbert_fast._forks import safe_after_fork
from colbert_fast._lowering import TokenList, lower
from colbert_fast._torch_modes import has_tangent
from colbert_fast.packed import PackedTokens, Tokens

# Of the largest intermediate of a backend that needs one: 64 MiB in float32.
CHUNK_ELEMENTS = 2**24
# A query of one of these may meet documents of any other.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What rows of zeros are in padded documents without a mask: padding, or tokens whose product 0 enters the maximum.
Pad: TypeAlias = Literal["skip", "zero"]
PADS = ("skip", "zero")


def checked_sides(
    a: Tokens, b: Tokens, a_mask: Mask | None = None, b_mask: Mask | None = None, pad: str = "skip"
) -> tuple[PackedTokens, PackedTokens, tuple[bool, bool], torch.device]:
    """Lower both sides and raise unless they fit, and unless ``pad`` is one of PADS.

    Returns
    -------
    q, d, skip_zero, home
        Queries; documents; whether rows of zeros are padding in either; the device that the scores belong on.
    """
    if pad != "skip":
        _check_pad(pad, b_mask)
    q, skip_zero_q = lower(a, a_mask, "a")
    d, skip_zero_d = lower(b, b_mask, "b", join=False)
    skip_zero_d = skip_zero_d and pad == "skip"
    home = _home(b, q, d)
    # A side without a single row has no dim or dtype of its own, and fits any other.
    # What it is given here is made of its own, so that it has a gradient, though an empty one.
    if q.rows == 0:
        q = q.with_tokens(q.tokens.reshape(0, d.dim).to(torch.float32 if d.scales is not None else d.dtype))
    elif d.rows == 0:
        d = d.with_tokens(d.tokens.reshape(0, q.dim).to(q.dtype))
    if q.dim != d.dim:
        msg = f"a and b need the same dim; got a [*, {q.dim}] and b [*, {d.dim}]"
        raise ValueError(msg)
    if q.scales is not None:
        msg = "a must be floating point: only documents can be int8; a.to(dtype=torch.float32) gives what it stands for"
        raise TypeError(msg)
    if q.dtype != d.dtype and d.scales is None:
        # Queries are few: they take the wider dtype, and documents stay as they are.
        q = q.with_tokens(q.tokens.to(_wider(q.dtype, d.dtype)))
    return q, d, (skip_zero_q, skip_zero_d), home


def _wider(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    if a not in FLOATS or b not in FLOATS:
        msg = f"a and b must be float32, bfloat16, float16 or float64, or of one dtype; got a {a} and b {b}"
        raise TypeError(msg)
    return torch.float64 if torch.float64 in (a, b) else torch.float32


def _check_pad(pad: Any, b_mask: Mask | None) -> None:
    if not isinstance(pad, str) or pad not in PADS:
        msg = f'pad must be "skip" or "zero"; got {pad!r}'
        raise ValueError(msg)
    if b_mask is not None:
        msg = 'b_mask cannot go with pad="zero", for which rows of zeros are tokens: leave the mask out'
        raise ValueError(msg)


def number_of(side: PackedTokens) -> int:
    """Return the number of items: len() makes a constant of one that torch.export leaves open."""
    return side.lengths.shape[0] if torch.compiler.is_compiling() else len(side)


def token_counts(q: PackedTokens, skip_zero: bool) -> Tensor:
    """Return the number of tokens of each query, at least 1: ``[A]`` int64."""
    if not skip_zero:
        return q.lengths.clamp(min=1)
    # Only a padded tensor skips zero rows, and all of its items are equally long.
    real = q.tokens.detach().ne(0).any(1).view(number_of(q), q.max_length)
    return real.sum(1).clamp(min=1)


def _home(b: Tokens, q: PackedTokens, d: PackedTokens) -> torch.device:
    """Where the scores go: to the documents, or to the queries if the documents are not on any device."""
    if isinstance(b, (PackedTokens, Tensor)) or (isinstance(b, (list, tuple)) and b and isinstance(b[0], Tensor)):
        return d.device
    return q.device


def score(
    q: PackedTokens,
    d: PackedTokens,
    pairs: Tensor | None,
    skip_zero: tuple[bool, bool],
    chunk_elements: int,
    backend: str | None,
) -> Tensor:
    rest = (pairs, q.max_length, d.max_length, *skip_zero, chunk_elements)
    if has_tangent(q.tokens, d.like if isinstance(d, TokenList) else d.tokens):
        msg = "maxsim has no derivatives of forward mode (torch.func.jvp, dual tensors); use backward()"
        raise NotImplementedError(msg)
    if isinstance(d, TokenList) and not (torch.is_grad_enabled() and q.tokens.requires_grad):
        sides = (q.tokens, q.starts, q.lengths, d.like, None, d.lengths, d.lengths, *rest)
        scores = _ops.score_in_place(Problem(*sides, d_items=d.items), backend)
        if scores is not None:
            return scores
    if torch.is_grad_enabled() and (q.tokens.requires_grad or d.tokens.requires_grad):
        # Hooks of autograd may write to what is saved for it, or free it: not the offsets that calls share.
        offsets = [t.clone() if t.is_cpu else t for t in (q.starts, q.lengths, d.starts, d.lengths)]
        others = (*offsets[:2], d.scales, *offsets[2:], *rest, d._order)
        return _MaxSim.apply(q.tokens, d.tokens, others, backend)  # type: ignore[no-any-return, no-untyped-call]
    return _ops.score(q, d, *rest, backend)


class _MaxSim(torch.autograd.Function):
    """Scores with a backward pass from the saved argmax: [pairs, query tokens] int32, never the similarities."""

    @staticmethod
    def forward(ctx: Any, q_tokens: Tensor, d_tokens: Tensor, sides: tuple[Any, ...], backend: str | None) -> Tensor:
        q_starts, q_lengths, d_scales, d_starts, d_lengths, pairs, *rest, d_order = sides
        tensors = (q_tokens, q_starts, q_lengths, d_tokens, d_scales, d_starts, d_lengths, pairs)
        scores: Tensor
        scores, argmax = torch.ops.colbert_fast.score_argmax(*tensors, *rest, backend, d_order=d_order)
        ctx.save_for_backward(*tensors, argmax)
        ctx.rest = rest
        ctx.backend = backend
        return scores

    @staticmethod
    @safe_after_fork
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        *tensors, argmax = ctx.saved_tensors
        for_q, for_d = ctx.needs_input_grad[:2]
        grads = torch.ops.colbert_fast.backward(
            *tensors, *ctx.rest, grad_scores.detach().reshape(-1), argmax, for_q, for_d, ctx.backend
        )
        if torch.is_grad_enabled():  # create_graph=True
            grads = _FirstOrder.apply(*grads, tensors[0], tensors[3])  # type: ignore[no-untyped-call]
        return grads[0] if for_q else None, grads[1] if for_d else None, None, None


class _FirstOrder(torch.autograd.Function):
    """Gradients that say so when they are differentiated, rather than passing for constants."""

    @staticmethod
    def forward(ctx: Any, grad_q: Tensor, grad_d: Tensor, q_tokens: Tensor, d_tokens: Tensor) -> tuple[Tensor, Tensor]:
        return grad_q.clone(), grad_d.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        msg = "maxsim has first derivatives only; write the einsum in torch for second ones"
        raise NotImplementedError(msg)
