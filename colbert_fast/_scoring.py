"""What every scoring function does: lower and check both sides, and put the gradients around the kernels."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from colbert_fast import _ops
from colbert_fast._arrays import Mask
from colbert_fast._backends.problem import NUM_TENSORS, Problem
from colbert_fast._forks import safe_after_fork
from colbert_fast._lowering import lower
from colbert_fast._torch_modes import has_tangent, unwatched
from colbert_fast.packed import PackedTokens, Tokens

# Queries of one of these dtypes may meet documents of any other of them.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What rows of zeros mean in padded documents without a mask: padding, or tokens whose product 0 enters the maximum.
Pad: TypeAlias = Literal["skip", "zero"]
PADS = ("skip", "zero")
_NO_TANGENT = "maxsim has no derivatives of forward mode (torch.func.jvp, dual tensors); use backward()"


def checked_sides(
    a: Tokens,
    b: Tokens,
    a_mask: Mask | None = None,
    b_mask: Mask | None = None,
    pad: str = "skip",
    device: torch.device | str | None = None,
    *,
    move_documents: bool = True,
) -> tuple[PackedTokens, PackedTokens, tuple[bool, bool], torch.device]:
    """Lower both sides and raise unless they fit, and unless ``pad`` is one of PADS.

    Queries are moved to ``device`` (default: ``home``), and so are documents, unless ``move_documents`` is false.

    Returns
    -------
    q, d, skip_zero, home
        Queries; documents; whether rows of zeros are padding in each of the two; the device for the scores.
    """
    if pad != "skip":
        _check_pad(pad, b_mask)
    q, skip_zero_q = lower(a, a_mask, "a")
    d, skip_zero_d = lower(b, b_mask, "b", join=False)
    # The fields are read here, not the properties: each property costs a function call.
    like_q, like_d = q._like, d._like
    # The scores go to the device of the documents. numpy arrays and lists of numbers have none: then to the queries.
    placed = isinstance(b, (PackedTokens, Tensor)) or (isinstance(b, (list, tuple)) and b and isinstance(b[0], Tensor))
    home = like_d.device if placed else like_q.device
    # A side without a single row fits any other side: it takes the dim and the dtype of the other side. Its new tokens
    # are made from its old ones, so that it still has a gradient, an empty one.
    if like_q.shape[0] == 0:
        q = q.with_tokens(like_q.reshape(0, d.dim).to(torch.float32 if d._scales is not None else d.dtype))
        like_q = q._like
    elif like_d.shape[0] == 0 and not d._items:
        d = d.with_tokens(like_d.reshape(0, q.dim).to(q.dtype))
        like_d = d._like
    if like_q.shape[1] != like_d.shape[1]:
        msg = f"a and b need the same dim; got a [*, {q.dim}] and b [*, {d.dim}]"
        raise ValueError(msg)
    if q._scales is not None:
        msg = "a must be floating point: only documents can be int8; a.to(dtype=torch.float32) gives what it stands for"
        raise TypeError(msg)
    if like_q.dtype != like_d.dtype and d._scales is None:
        # Queries are few: they take the wider dtype, and documents stay as they are.
        q = q.with_tokens(like_q.to(_wider(q.dtype, d.dtype)))
    target = home if device is None else _numbered(device)
    if like_q.device != target:
        q = q.to(target)
    if move_documents and like_d.device != target:
        d = d.to(target)
    return q, d, (skip_zero_q, skip_zero_d and pad == "skip"), home


def _numbered(device: torch.device | str) -> torch.device:
    """Return the device with its number: ``"cuda"`` is not equal to ``"cuda:0"``."""
    return torch.empty(0, device=device).device


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
    """Return the number of items. torch.export may leave that number open, and len() would make it a constant."""
    return side.lengths.shape[0] if torch.compiler.is_compiling() else len(side)


def token_counts(q: PackedTokens, skip_zero: bool) -> Tensor:
    """Return the number of tokens of each query, at least 1: ``[A]`` int64."""
    if not skip_zero:
        return q.lengths.clamp(min=1)
    # Only padded tensors skip rows of zeros, and all items of a padded tensor have the same length.
    real = q.tokens.detach().ne(0).any(1).view(number_of(q), q.max_length)
    return real.sum(1).clamp(min=1)


def score(
    q: PackedTokens,
    d: PackedTokens,
    pairs: Tensor | None,
    skip_zero: tuple[bool, bool],
    chunk_elements: int,
    backend: str | None,
) -> Tensor:
    """Score sides that fit, with a graph of autograd if one is wanted."""
    problem = Problem.of(q, d, pairs, skip_zero, chunk_elements)
    direct = unwatched(problem.q_tokens, problem.d_tokens)
    if not direct and has_tangent(problem.q_tokens, problem.d_tokens):
        raise NotImplementedError(_NO_TANGENT)
    if torch.is_grad_enabled() and (problem.q_tokens.requires_grad or problem.d_tokens.requires_grad):
        p = problem.explicit()
        # autograd gives gradients only to tensors that are arguments of their own.
        return _MaxSim.apply(p.q_tokens, p.d_tokens, p.without_tokens(), backend)  # type: ignore[no-any-return, no-untyped-call]
    return _ops.score(problem, backend, direct)


def best(
    q: PackedTokens, d: PackedTokens, skip_zero: tuple[bool, bool], k: int, backend: str | None
) -> tuple[Tensor, Tensor] | None:
    """Return the k best scores and documents of each query, or None where the scores are to be sorted by torch."""
    problem = Problem.of(q, d, None, skip_zero)
    # Otherwise torch has to see the scores, and the caller sorts all of them.
    return _ops.best(problem, k, backend) if unwatched(problem.q_tokens, problem.d_tokens) else None


def score_with_argmax(
    q: PackedTokens, d: PackedTokens, pairs: Tensor | None, skip_zero: tuple[bool, bool], backend: str | None
) -> tuple[Tensor, Tensor]:
    """Score sides that fit, and return the winners ``[pairs, longest query]`` too, which are numbers of kept rows."""
    p = Problem.of(q, d, pairs, skip_zero).explicit()
    if has_tangent(p.q_tokens, p.d_tokens):
        raise NotImplementedError(_NO_TANGENT)
    if not (torch.is_grad_enabled() and (p.q_tokens.requires_grad or p.d_tokens.requires_grad)):
        return torch.ops.colbert_fast.score_argmax(*p.arguments(), backend, d_order=p.d_order)  # type: ignore[no-any-return]
    return _WithArgmax.apply(p.q_tokens, p.d_tokens, p.without_tokens(), backend)  # type: ignore[no-any-return, no-untyped-call]


class _MaxSim(torch.autograd.Function):
    """Scores with a backward pass from the saved argmax: [pairs, query tokens] int32, never the similarities."""

    @staticmethod
    def forward(ctx: Any, q_tokens: Tensor, d_tokens: Tensor, others: tuple[Any, ...], backend: str | None) -> Tensor:
        return _scored(ctx, q_tokens, d_tokens, others, backend)[0]

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        return _gradients(ctx, grad_scores)


class _WithArgmax(torch.autograd.Function):
    """As _MaxSim, but the argmax is a result too."""

    @staticmethod
    def forward(
        ctx: Any, q_tokens: Tensor, d_tokens: Tensor, others: tuple[Any, ...], backend: str | None
    ) -> tuple[Tensor, Tensor]:
        scores, argmax = _scored(ctx, q_tokens, d_tokens, others, backend)
        ctx.mark_non_differentiable(argmax)
        return scores, argmax

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor, _: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        return _gradients(ctx, grad_scores)


def _scored(
    ctx: Any, q_tokens: Tensor, d_tokens: Tensor, others: tuple[Any, ...], backend: str | None
) -> tuple[Tensor, Tensor]:
    """Return scores and argmax, and save what the gradients need."""
    problem = Problem.with_tokens(q_tokens, d_tokens, others)
    sides = problem.arguments()
    scores: Tensor
    argmax: Tensor
    scores, argmax = torch.ops.colbert_fast.score_argmax(*sides, backend, d_order=problem.d_order)
    ctx.save_for_backward(*sides[:NUM_TENSORS], argmax)
    ctx.numbers = sides[NUM_TENSORS:]
    ctx.backend = backend
    return scores, argmax


@safe_after_fork
def _gradients(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    *tensors, argmax = ctx.saved_tensors
    for_q, for_d = ctx.needs_input_grad[:2]
    grads = torch.ops.colbert_fast.backward(
        *tensors, *ctx.numbers, grad_scores.detach().reshape(-1), argmax, for_q, for_d, ctx.backend
    )
    if torch.is_grad_enabled():  # create_graph=True
        p = Problem(*tensors, *ctx.numbers)
        grads = _FirstOrder.apply(*grads, p.q_tokens, p.d_tokens)  # type: ignore[no-untyped-call]
    return grads[0] if for_q else None, grads[1] if for_d else None, None, None


class _FirstOrder(torch.autograd.Function):
    """Gradients that raise when they are differentiated: without this they would count as constants."""

    @staticmethod
    def forward(ctx: Any, grad_q: Tensor, grad_d: Tensor, q_tokens: Tensor, d_tokens: Tensor) -> tuple[Tensor, Tensor]:
        return grad_q.clone(), grad_d.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        msg = "maxsim has first derivatives only; write the einsum in torch for second ones"
        raise NotImplementedError(msg)
