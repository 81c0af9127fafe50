"""MaxSim over every layout, device and dtype: the public functions, their validation and their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from colbert_fast import _ops
from colbert_fast._arrays import Mask, aligned, tensor_of
from colbert_fast._backends.problem import Problem
from colbert_fast._checks import positive_int
from colbert_fast._observers import has_tangent
from colbert_fast.packed import PackedTokens, TokenList, Tokens, lower

# Of the largest intermediate of a backend that needs one: 64 MiB in float32.
CHUNK_ELEMENTS = 2**24


def maxsim(
    a: Tokens,
    b: Tokens,
    a_mask: Mask | None = None,
    b_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: torch.device | str | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Score every query against every document.

    ``scores[i, j] = sum_s max_t <a[i][s], b[j][t]>`` (ColBERT, Khattab & Zaharia 2020, equation 3). The arguments
    are those of ``sentence_transformers.util.maxsim``, and so are the answers.

    Parameters
    ----------
    a
        Queries. A list of ``[length, dim]`` tensors or arrays; a padded ``[A, length, dim]`` tensor or array; one
        ``[length, dim]``; a jagged nested tensor; or :class:`PackedTokens`. float32, bfloat16, float16, float64;
        integers become float32, but for those of a nested tensor.
    b
        Documents, in any of these forms, with the dtype and dim of ``a``; or int8 :class:`PackedTokens`, made by
        ``quantize``, beside queries of any of these dtypes. A list in CPU memory is scored where it lies.
    a_mask
        ``[A, length]``, ``[1, length]`` or a list of 1-D masks: true or non-zero where a row is a token.
        Other rows are left out of the sum. Without a mask, rows of zeros of a padded ``a`` are padding.
    b_mask
        The same for documents: other rows are left out of the maximum.
    chunk_elements
        Bound on the elements of an intermediate, where a backend has any, and of the documents that
        are moved to ``device`` at a time. Default 2**24.
    length_normalize
        Divide by the number of the query's tokens (MeanMaxSim).
    device
        Where to score; the documents are moved there in pieces. Default: where the documents are.
    backend
        A name of :func:`backends`, or the part before its colon. Default: the best that can run.

    Returns
    -------
    torch.Tensor
        ``[A, B]`` on the device of the documents (of the queries, if the documents are numpy arrays): float32, or
        float64 for float64 inputs. -1e9 for a document without tokens, else 0 for a query without tokens, NaN if
        either has a NaN in a token. Differentiable in ``a``, and in ``b`` unless that is int8.

    Raises
    ------
    TypeError
        An input of an unknown kind, or inputs of different dtypes.
    ValueError
        Shapes that do not fit, or an unknown backend.
    NotImplementedError
        The backend cannot run; the message says why.

    Notes
    -----
    Products and sums are in float32 at least: within 1e-5 of float64 on the inputs as given, for every dtype; int8
    documents stand for ``scale * token``.
    Deterministic: the same inputs give the same bits on any number of threads.
    """
    q, d, skip_zero, home = checked_sides(a, b, a_mask, b_mask)
    chunk_elements = CHUNK_ELEMENTS if chunk_elements is None else positive_int(chunk_elements, "chunk_elements")
    target = _resolved(device, home)
    q = q.to(target)
    if d.device == target:
        scores = score(q, d, None, skip_zero, chunk_elements, backend)
    else:
        parts = _parts(d, chunk_elements)
        moved = (score(q, part.to(target), None, skip_zero, chunk_elements, backend).to(home) for part in parts)
        scores = torch.cat(list(moved), dim=1)
    if length_normalize:
        scores = scores / _token_counts(q, skip_zero[0]).to(scores.device).unsqueeze(1)
    return scores


def maxsim_pairwise(
    a: Tokens,
    b: Tokens,
    a_mask: Mask | None = None,
    b_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: torch.device | str | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Score query i against document i: ``scores[i] = sum_s max_t <a[i][s], b[i][t]>``.

    Arguments, errors and precision are those of :func:`maxsim`; ``a`` and ``b`` hold equally many items. The
    arguments are those of ``sentence_transformers.util.maxsim_pairwise``.

    Returns
    -------
    torch.Tensor
        ``[A]``, float32 (float64 for float64 inputs) on the device of the documents. Differentiable.

    Raises
    ------
    ValueError
        Also if ``a`` and ``b`` do not hold equally many items.
    """
    q, d, skip_zero, home = checked_sides(a, b, a_mask, b_mask)
    if len(q) != len(d):
        msg = f"a and b must hold the same number of items to be scored in pairs; got {len(q)} and {len(d)}"
        raise ValueError(msg)
    target = _resolved(device, home)
    q, d = q.to(target), d.to(target)
    number = torch.arange(len(q), device=target)
    pairs = torch.stack([number, number], dim=1)
    chunk_elements = CHUNK_ELEMENTS if chunk_elements is None else positive_int(chunk_elements, "chunk_elements")
    scores = score(q, d, pairs, skip_zero, chunk_elements, backend).to(home)
    if length_normalize:
        scores = scores / _token_counts(q, skip_zero[0]).to(scores.device)
    return scores


def maxsim_pairs(a: Tokens, b: Tokens, pairs: Tensor | Sequence[Any], *, backend: str | None = None) -> Tensor:
    """Score any list of (query, document) pairs: candidates to rerank, distillation groups, hard negatives.

    ``scores[k] = sum_s max_t <a[i][s], b[j][t]>`` with ``(i, j) = pairs[k]``.

    Parameters
    ----------
    a
        Queries, in any form that :func:`maxsim` takes.
    b
        Documents, likewise.
    pairs
        ``[p, 2]`` integers: the number of a query and of a document. In any order; repetition is allowed. Checking
        those on a GPU waits for it once, except under ``torch.compile``, and so does copying others to it.
    backend
        As in :func:`maxsim`.

    Returns
    -------
    torch.Tensor
        ``[p]``, float32 (float64 for float64 inputs) on the device of the documents. Differentiable.

    Raises
    ------
    TypeError
        Also if ``pairs`` is not of integers.
    ValueError
        Also if ``pairs`` is not ``[p, 2]``, or names a query or document that is not there.
    """
    q, d, skip_zero, home = checked_sides(a, b)
    q, d = q.to(home), d.to(home)
    checked = _checked_pairs(pairs, len(q), len(d)).to(home)
    return score(q, d, checked, skip_zero, CHUNK_ELEMENTS, backend)


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
    tensors = (q.tokens, q.starts, q.lengths, d.tokens, d.scales, d.starts, d.lengths)
    return _ops.score(*tensors, *rest, backend, d_order=d._order)


def checked_sides(
    a: Tokens, b: Tokens, a_mask: Mask | None = None, b_mask: Mask | None = None
) -> tuple[PackedTokens, PackedTokens, tuple[bool, bool], torch.device]:
    """Lower both sides and raise unless they fit.

    Returns
    -------
    q, d, skip_zero, home
        Queries; documents; whether rows of zeros are padding in either; the device that the scores belong on.
    """
    q, skip_zero_q = lower(a, a_mask, "a")
    d, skip_zero_d = lower(b, b_mask, "b", join=False)
    home = _home(b, q, d)
    # A side without a single row has no dim or dtype of its own, and fits any other.
    if q.rows == 0:
        dtype = d.dtype if d.scales is None else torch.float32
        q = q.with_tokens(torch.zeros(0, d.dim, dtype=dtype, device=q.device))
    elif d.rows == 0:
        d = d.with_tokens(torch.zeros(0, q.dim, dtype=q.dtype, device=d.device))
    if q.dim != d.dim:
        msg = f"a and b need the same dim; got a [*, {q.dim}] and b [*, {d.dim}]"
        raise ValueError(msg)
    if q.scales is not None:
        msg = "a must be floating point: only documents can be int8"
        raise TypeError(msg)
    if q.dtype != d.dtype and d.scales is None:
        msg = f"a and b need the same dtype; got a {q.dtype} and b {d.dtype}"
        raise TypeError(msg)
    return q, d, (skip_zero_q, skip_zero_d), home


def _home(b: Tokens, q: PackedTokens, d: PackedTokens) -> torch.device:
    """Where the scores go: to the documents, or to the queries if the documents are not on any device."""
    if isinstance(b, (PackedTokens, Tensor)) or (isinstance(b, (list, tuple)) and b and isinstance(b[0], Tensor)):
        return d.device
    return q.device


def _resolved(device: torch.device | str | None, home: torch.device) -> torch.device:
    """Return the device with its number: ``"cuda"`` is not equal to ``"cuda:0"``."""
    return home if device is None else torch.empty(0, device=device).device


def _parts(d: PackedTokens, chunk_elements: int) -> Iterator[PackedTokens]:
    """Cut into parts of about ``chunk_elements`` elements, each with only the rows from its first to its last."""
    first, rows = 0, 0
    lengths = d.lengths.tolist()
    for i, length in enumerate([*lengths, 0]):
        if i < len(lengths) and (i == first or (rows + length) * d.dim <= chunk_elements):
            rows += length
            continue
        starts, counts = d.starts[first:i], d.lengths[first:i]
        low, high = (int(starts.min()), int((starts + counts).max())) if i > first else (0, 0)
        scales = None if d.scales is None else d.scales[low:high]
        yield PackedTokens._trusted(d.tokens[low:high], starts - low, counts, d.max_length, scales)
        first, rows = i, length


def _token_counts(q: PackedTokens, skip_zero: bool) -> Tensor:
    """Tokens of each query, at least 1: ``[A]`` int64."""
    if not skip_zero:
        return q.lengths.clamp(min=1)
    # Only a padded tensor skips zero rows, and all of its items are equally long.
    real = q.tokens.detach().ne(0).any(1).view(len(q), q.max_length)
    return real.sum(1).clamp(min=1)


def as_integers(value: Tensor | Sequence[Any], name: str) -> Tensor:
    tensor = tensor_of(value, name)
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        msg = f"{name} must be integers; got {tensor.dtype}"
        raise TypeError(msg)
    return tensor.to(torch.int64)


def _checked_pairs(pairs: Tensor | Sequence[Any], nq: int, nd: int) -> Tensor:
    tensor = as_integers(pairs, "pairs")
    if tensor.numel() == 0 and tensor.ndim <= 2:
        tensor = tensor.reshape(0, 2)
    if tensor.ndim != 2 or tensor.shape[1] != 2:
        msg = f"pairs must be [p, 2], (query, document) numbers; got shape {list(tensor.shape)}"
        raise ValueError(msg)
    if not torch.compiler.is_compiling():
        check_range(tensor, {"queries": nq, "documents": nd}, "pairs")
    return aligned(tensor.contiguous())


def check_range(numbers: Tensor, counts: dict[str, int], name: str) -> None:
    """Raise unless each column of ``numbers [n, columns]`` numbers its things. Waits for their device once."""
    if len(numbers) == 0:
        return
    lows, highs = torch.stack(torch.aminmax(numbers, dim=0)).tolist()
    for low, high, (what, count) in zip(lows, highs, counts.items(), strict=True):
        if low < 0 or high >= count:
            msg = f"{name} must number {what} from 0 to {count - 1}; got numbers from {low} to {high}"
            raise ValueError(msg)
