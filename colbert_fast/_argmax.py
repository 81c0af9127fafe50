"""Scores with the document token that won each query token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from colbert_fast._arrays import Mask
from colbert_fast._backends.problem import CHUNK_ELEMENTS
from colbert_fast._forks import safe_after_fork
from colbert_fast._integers import Integers
from colbert_fast._lowering import kept_rows
from colbert_fast._maxsim import checked_pairs, parts_of
from colbert_fast._scoring import Pad, checked_sides, number_of, score_with_argmax
from colbert_fast.packed import PackedTokens, Tokens


@safe_after_fork
def maxsim_with_argmax(
    a: Tokens,
    b: Tokens,
    a_mask: Mask | None = None,
    b_mask: Mask | None = None,
    *,
    pairs: Integers | None = None,
    device: torch.device | str | None = None,
    pad: Pad = "skip",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Score as :func:`maxsim` does, and tell which document token won each query token.

    ``argmax[i, j, s]`` is the t that gives ``max_t <a[i][s], b[j][t]>``.

    Parameters
    ----------
    a, b, a_mask, b_mask, device, pad, backend
        As in :func:`maxsim`.
    pairs
        ``[p, 2]`` integers, as in :func:`maxsim_pairs`: score only these (query, document) pairs. Default: every
        query against every document.

    Returns
    -------
    scores : torch.Tensor
        ``[A, B]``, or ``[p]`` with ``pairs``, as :func:`maxsim` and :func:`maxsim_pairs` return them. Differentiable.
    argmax : torch.Tensor
        int64 ``[A, B, length]``, or ``[p, length]`` with ``pairs``, on the device of the scores. ``length`` is the
        number of rows of a padded ``a``, else the length of the longest query. Both positions, of the query token
        and of the document token, count the rows that were handed in: rows under a mask and rows of zeros count too.
        -1 where the query has no token at that position (padding), and for a document without tokens. The first of
        equal maxima wins. A document token that is NaN wins. Not differentiable.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As :func:`maxsim` and :func:`maxsim_pairs`.

    Notes
    -----
    The argmax takes 8 bytes for each pair and query token. On a CPU the scores equal the scores of :func:`maxsim`
    exactly. On a GPU the last bit may differ, because the kernel that keeps the winners has tiles of another size.
    """
    q, d, skip_zero, home = checked_sides(a, b, a_mask, b_mask, pad, device, move_documents=pairs is not None)
    target = q._like.device
    numbers = None
    if pairs is not None:
        numbers = checked_pairs(pairs, number_of(q), number_of(d)).to(target)
    moved = [d] if d._like.device == target else (part.to(target) for part in parts_of(d, CHUNK_ELEMENTS))
    each = [score_with_argmax(q, part, numbers, skip_zero, backend) for part in moved]
    scores, argmax = joined(each, _longest(q), home)
    queries, documents = _numbers(scores.shape, numbers, home)
    if b_mask is not None:
        argmax = _rows_of_winners(argmax, documents, kept_rows(b, b_mask, "b").to(home))
    if a_mask is not None:
        argmax = _in_rows(argmax, queries, kept_rows(a, a_mask, "a").to(home))
    return scores, argmax


def joined(each: Sequence[tuple[Tensor, Tensor]], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Join the results of parts of the documents. The winners get the dimensions of the scores, and one for tokens."""
    scores = [some.to(device) for some, _ in each]
    winners = [some[:, :length].to(device, torch.int64) for _, some in each]
    winners = [some.view(*shape.shape, length) for some, shape in zip(winners, scores, strict=True)]
    return (scores[0], winners[0]) if len(each) == 1 else (torch.cat(scores, dim=1), torch.cat(winners, dim=1))


def _longest(q: PackedTokens) -> int:
    """Return the length of the longest query. Waits for the device if the queries were cut from a larger batch."""
    return q._longest() if q._part else q.max_length


def _numbers(shape: torch.Size, pairs: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the number of the query and of the document of each score, with a last dimension of 1 for the tokens."""
    if pairs is not None:
        queries, documents = pairs.to(device).unbind(1)
        return queries.unsqueeze(1), documents.unsqueeze(1)
    nq, nd = shape
    return torch.arange(nq, device=device).view(nq, 1, 1), torch.arange(nd, device=device).view(1, nd, 1)


def _rows_of_winners(argmax: Tensor, documents: Tensor, keep: Tensor) -> Tensor:
    """Turn numbers of kept rows into numbers of rows; ``keep`` is ``[B, length]``."""
    if keep.shape[1] == 0:
        return argmax
    rows = torch.argsort(keep.logical_not().to(torch.uint8), dim=1, stable=True)
    return torch.where(argmax < 0, argmax, rows[documents, argmax.clamp(min=0)])


def _in_rows(argmax: Tensor, queries: Tensor, keep: Tensor) -> Tensor:
    """Move the winners of kept query tokens to the rows of these tokens; ``keep`` is ``[A, length]``."""
    keep = keep[queries.squeeze(-1)].expand(*argmax.shape[:-1], keep.shape[1])
    place = (keep.cumsum(-1) - 1).clamp(min=0)
    if argmax.shape[-1] == 0:  # no query has a kept token
        return argmax.new_full(keep.shape, -1)
    return torch.where(keep, argmax.gather(-1, place), -1)
