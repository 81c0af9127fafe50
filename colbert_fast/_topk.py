"""Exact top-k over documents or candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colbert_fast._checks import positive_int
from colbert_fast._forks import safe_after_fork
from colbert_fast._scoring import (
    CHUNK_ELEMENTS,
    Pad,
    as_integers,
    check_range,
    checked_sides,
    number_of,
    score,
    token_counts,
)
from colbert_fast.packed import PackedTokens, Tokens

# Columns of the result that are there whether there are documents for them or not, if as many were asked for.
_ALWAYS_FILLED = 1024


@safe_after_fork
def topk(
    a: Tokens,
    b: Tokens,
    k: int,
    *,
    candidates: Tensor | Sequence[Any] | None = None,
    length_normalize: bool = False,
    pad: Pad = "skip",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the k best documents of every query, exactly, without the whole score matrix in memory.

    Parameters
    ----------
    a
        Queries, in any form that :func:`maxsim` takes.
    b
        Documents, likewise.
    k
        How many, 1 or more: an int, or an integer of numpy or of a tensor.
    candidates
        The documents to consider: integers ``[A, c]``, or a list with one sequence of document numbers
        per query, of any lengths. Default: all. With documents on a GPU, a matrix on the same GPU waits for it once,
        to be checked before a kernel reads what it names; a matrix or a list in CPU memory is checked there and waits
        for its copy; a list of tensors on a GPU waits for each. Under ``torch.compile`` a matrix is not checked for
        a GPU. Without candidates nothing waits.
    length_normalize, pad, backend
        As in :func:`maxsim`.

    Returns
    -------
    scores, numbers : torch.Tensor
        Scores ``[A, k]`` and document numbers int64 ``[A, k]``, best first, on the device of the documents. Equal
        scores keep the order of the documents (of the candidates); NaN comes first, as in ``torch.sort``. Where a
        query has fewer than k documents the score is -inf and the number -1. Of a k beyond 1024 there are no more
        columns than documents (than candidates of one query), but 1024 at least. Not differentiable.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As :func:`maxsim`; and ValueError for a bad ``k`` or candidate.
    """
    k = positive_int(k, "k")
    q, d, skip_zero, home = checked_sides(a, b, pad=pad)
    q, d = q.to(home), d.to(home)
    with torch.no_grad():
        if candidates is None:
            scores, numbers = _best_of_all(q, d, skip_zero, k, backend)
        else:
            scores, numbers = _best_of_candidates(q, d, skip_zero, k, candidates, backend)
        if length_normalize:
            scores = scores / token_counts(q, skip_zero[0]).unsqueeze(1)
    # Of a small k as many columns as were asked for, whatever there is; of a large one as many as can be filled.
    columns = k if k <= _ALWAYS_FILLED else min(k, max(scores.shape[1], _ALWAYS_FILLED))
    missing = (0, columns - scores.shape[1])
    filled = torch.nn.functional.pad
    return filled(scores, missing, value=float("-inf")), filled(numbers, missing, value=-1)


def _best_of_all(
    q: PackedTokens, d: PackedTokens, skip_zero: tuple[bool, bool], k: int, backend: str | None
) -> tuple[Tensor, Tensor]:
    """At most k columns. Documents are scored in runs, each merged with the best so far."""
    at_once = max(k, CHUNK_ELEMENTS // max(1, number_of(q)))
    if number_of(d) <= at_once:
        return _sorted(score(q, d, None, skip_zero, CHUNK_ELEMENTS, backend), k)
    scores = score(q, d[:0], None, skip_zero, CHUNK_ELEMENTS, backend)
    numbers = torch.zeros(scores.shape, dtype=torch.int64, device=scores.device)
    for start in range(0, len(d), at_once):
        part = score(q, d[start : start + at_once], None, skip_zero, CHUNK_ELEMENTS, backend)
        part_numbers = torch.arange(start, start + part.shape[1], device=part.device).expand(part.shape)
        scores, order = _sorted(torch.cat([scores, part], dim=1), k)
        numbers = torch.cat([numbers, part_numbers], dim=1).gather(1, order)
    return scores, numbers


def _best_of_candidates(
    q: PackedTokens,
    d: PackedTokens,
    skip_zero: tuple[bool, bool],
    k: int,
    candidates: Tensor | Sequence[Any],
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """At most k columns; a query with fewer candidates than another has -inf and -1 in its last ones."""
    nq = number_of(q)
    numbers, place, width = _placed(candidates, nq, number_of(d), d.device)
    row = place // max(1, width)
    found = score(q, d, torch.stack([row, numbers], dim=1), skip_zero, CHUNK_ELEMENTS, backend)
    scores = found.new_full((nq * width,), float("-inf")).index_copy_(0, place, found).view(nq, width)
    every = numbers.new_full((nq * width,), -1).index_copy_(0, place, numbers).view(nq, width)
    scores, order = _sorted(scores, k)
    return scores, every.gather(1, order)


def _sorted(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # torch.topk leaves the order of equal scores open.
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], order[:, :k]


def _rows_of(candidates: Any) -> int:
    required = "candidates must be a matrix of integers, or a list of rows"
    if isinstance(candidates, (list, tuple)):
        return len(candidates)
    if not isinstance(candidates, (Tensor, np.ndarray)):
        msg = f"{required}; got {type(candidates).__name__}"
        raise TypeError(msg)
    if candidates.ndim == 0:
        msg = f"{required}; got a single number"
        raise ValueError(msg)
    return candidates.shape[0]


def _placed(candidates: Tensor | Sequence[Any], nq: int, nd: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Return candidates ``[p]``; the place of each in a matrix with a row for every query, ``[p]``; and its width.

    The device is not asked for a number, except once by the check of candidates that are there.
    """
    given = _rows_of(candidates)
    if given != nq:
        msg = f"candidates needs one row per query; got {given} rows for {nq} queries"
        raise ValueError(msg)
    if isinstance(candidates, (Tensor, np.ndarray)) and candidates.ndim == 2:
        numbers = as_integers(candidates, "candidates")
        if not torch.compiler.is_compiling():
            check_range(numbers.reshape(-1, 1), {"documents": nd}, "candidates")
        return numbers.reshape(-1).to(device), torch.arange(numbers.numel(), device=device), numbers.shape[1]
    rows = [as_integers(row, f"candidates[{i}]") for i, row in enumerate(candidates)]
    for i, row in enumerate(rows):
        if row.ndim != 1:
            msg = f"candidates[{i}] must be a row of document numbers; got shape {list(row.shape)}"
            raise ValueError(msg)
        check_range(row.unsqueeze(1), {"documents": nd}, f"candidates[{i}]")
    width = max((len(row) for row in rows), default=0)
    nothing = torch.zeros(0, dtype=torch.int64, device="cpu")
    place = torch.cat(
        [nothing, *(torch.arange(i * width, i * width + len(row), device="cpu") for i, row in enumerate(rows))]
    )
    return torch.cat([nothing, *(row.cpu() for row in rows)]).to(device), place.to(device), width
