"""Exact top-k over documents or candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from colbert_fast._backends.problem import CHUNK_ELEMENTS
from colbert_fast._forks import safe_after_fork
from colbert_fast._integers import Integers, check_range, integer_tensor, positive_int
from colbert_fast._ops import told_once
from colbert_fast._scoring import (
    Pad,
    best,
    checked_sides,
    number_of,
    score,
    token_counts,
)
from colbert_fast.packed import PackedTokens, Tokens

# The result has so many columns, or k if that is less, even if there are fewer documents.
_ALWAYS_FILLED = 1024
# Of fewer documents all are scored: to leave some out would take longer than it saves. best.cpp has this number too.
_LEAST_DOCUMENTS = 256
_LEAST_DOCUMENTS_FOR_EACH = 16  # of the k


@safe_after_fork
def topk(
    a: Tokens,
    b: Tokens,
    k: int,
    *,
    candidates: Integers | None = None,
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
        The documents to consider: integers ``[A, c]``, or a list with one sequence of document numbers for each
        query, of any lengths. Default: all documents. If the documents are on a GPU, candidates make the call wait.
        A matrix on that GPU waits once, because it is checked before a kernel uses it (not under ``torch.compile``).
        A matrix or a list in CPU memory is checked there, and waits for its copy. A list of tensors on a GPU waits for
        each tensor.
    length_normalize, pad, backend
        As in :func:`maxsim`.

    Returns
    -------
    scores, numbers : torch.Tensor
        Scores ``[A, k]`` and document numbers int64 ``[A, k]``, best first, on the device of the documents. Equal
        scores keep the order of the documents (of the candidates); NaN comes first, as in ``torch.sort``. Where a
        query has fewer than k documents, the score is -inf and the number is -1. If k is above 1024, there are as many
        columns as documents (or as candidates in the longest list), but at least 1024 and never more than k. Not
        differentiable.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As :func:`maxsim`; and ValueError for a bad ``k`` or candidate.
    """
    k = positive_int(k, "k")
    q, d, skip_zero, _ = checked_sides(a, b, pad=pad)
    with torch.no_grad():
        if candidates is None:
            scores, numbers = _best_of_all(q, d, skip_zero, k, backend)
        else:
            scores, numbers = _best_of_candidates(q, d, skip_zero, k, candidates, backend)
        if length_normalize:
            scores = scores / token_counts(q, skip_zero[0]).unsqueeze(1)
    return scores, numbers


def _best_of_all(
    q: PackedTokens, d: PackedTokens, skip_zero: tuple[bool, bool], k: int, backend: str | None
) -> tuple[Tensor, Tensor]:
    """Score documents in runs, and merge each run with the best so far; an exported program scores all at once."""
    nd = number_of(d)
    compiling = torch.compiler.is_compiling()
    # A GPU scores all documents, and finds the best of any number sooner than torch sorts them.
    few = compiling or nd < (k if d._like.is_cuda else max(_LEAST_DOCUMENTS, _LEAST_DOCUMENTS_FOR_EACH * k))
    at_once = max(k, CHUNK_ELEMENTS // max(1, number_of(q)))
    if _is_exporting() or nd <= at_once:
        # The backend may find the best of many documents without the scores of all. Of few documents it sorts the
        # scores sooner than torch, which sorts many sooner.
        by_torch = compiling or nd < k or (few and nd >= _LEAST_DOCUMENTS)
        found = None if by_torch else best(q, d, skip_zero, k, backend)
        return found or _best(score(q, d, None, skip_zero, CHUNK_ELEMENTS, backend), None, k)
    scores = score(q, d[:0], None, skip_zero, CHUNK_ELEMENTS, backend)
    numbers = torch.zeros(scores.shape, dtype=torch.int64, device=scores.device)
    for start in range(0, len(d), at_once):
        documents = d[start : start + at_once]
        found = None if few or len(documents) < k else best(q, documents, skip_zero, k, backend)
        if found:
            part, part_numbers = found[0], found[1] + start
        else:
            part = score(q, documents, None, skip_zero, CHUNK_ELEMENTS, backend)
            part_numbers = torch.arange(start, start + part.shape[1], device=part.device).expand(part.shape)
        scores, numbers = _best(torch.cat([scores, part], dim=1), torch.cat([numbers, part_numbers], dim=1), k)
    return scores, numbers


def _best_of_candidates(
    q: PackedTokens,
    d: PackedTokens,
    skip_zero: tuple[bool, bool],
    k: int,
    candidates: Integers,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Score candidates. A query with fewer candidates than another has -inf and -1 in its last columns."""
    nq = number_of(q)
    numbers, rows, place, width = _placed(candidates, nq, number_of(d), d.device)
    # A list would have to be joined.
    alone = not (torch.compiler.is_compiling() or d._items) and d.device.type == "cpu"
    enough = max(_LEAST_DOCUMENTS, _LEAST_DOCUMENTS_FOR_EACH * k)
    if alone and width >= enough:
        of_each = numbers.split(torch.bincount(rows, minlength=nq).tolist())
        few = any(len(row) < enough for row in of_each)
        found = None if few else _best_of_each(q, d, skip_zero, k, of_each, backend)
        if found:
            return found
    scores = score(q, d, torch.stack([rows, numbers], dim=1), skip_zero, CHUNK_ELEMENTS, backend)
    if place is not None:
        scores = scores.new_full((nq * width,), float("-inf")).index_copy_(0, place, scores)
        numbers = numbers.new_full((nq * width,), -1).index_copy_(0, place, numbers)
    return _best(scores.view(nq, width), numbers.view(nq, width), k)


def _best_of_each(
    q: PackedTokens,
    d: PackedTokens,
    skip_zero: tuple[bool, bool],
    k: int,
    candidates: tuple[Tensor, ...],
    backend: str | None,
) -> tuple[Tensor, Tensor] | None:
    """Find the best candidates of each query alone, or None where the backend cannot leave any out."""
    scores, numbers = [], []
    with told_once():
        for i, row in enumerate(candidates):
            found = best(q[i : i + 1], d[row], skip_zero, k, backend)
            if found is None:
                return None
            scores.append(found[0])
            numbers.append(row[found[1]])
    return torch.cat(scores), torch.cat(numbers)


def _best(scores: Tensor, numbers: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Return the columns of the result: the best of ``scores``, and their ``numbers`` (None: the column is the number).

    A small k gives k columns, whether they can be filled or not; a large k gives as many columns as can be filled.
    """
    width = scores.shape[1]
    widened = torch.compiler.is_compiling() or width < k
    if widened:  # with the columns added, compiled code need not compare the two
        room = (0, min(k, _ALWAYS_FILLED))
        scores = torch.nn.functional.pad(scores, room, value=float("-inf"))
        numbers = None if numbers is None else torch.nn.functional.pad(numbers, room, value=-1)
    # torch.topk leaves the order of equal scores open.
    values, order = scores.sort(dim=1, descending=True, stable=True)
    if k <= _ALWAYS_FILLED:
        values, order = values[:, :k], order[:, :k]
    else:  # not a slice: torch.export could not prove that it is inside
        columns = torch.arange(min(k, max(width, _ALWAYS_FILLED)), device=scores.device)
        values, order = values.index_select(1, columns), order.index_select(1, columns)
    if numbers is not None:
        return values, numbers.gather(1, order)
    return values, order.where(order < width, -1) if widened else order


def _is_exporting() -> bool:
    # Older versions of torch have no is_exporting. In them, compiling without dynamo means exporting.
    asked = getattr(torch.compiler, "is_exporting", None)
    return asked() if asked else torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


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


def _placed(candidates: Integers, nq: int, nd: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """Return candidates ``[p]``; their queries ``[p]``; their places ``[p]`` in a matrix; and the width of the matrix.

    The matrix has a row for every query. If the candidates fill all of its places in order, the places are None.
    Waits for the device once if the candidates are there, to check them.
    """
    given = _rows_of(candidates)
    if given != nq:
        msg = f"candidates needs one row per query; got {given} rows for {nq} queries"
        raise ValueError(msg)
    if isinstance(candidates, (Tensor, np.ndarray)) and candidates.ndim == 2:
        numbers = integer_tensor(candidates, "candidates")
        if not torch.compiler.is_compiling():
            check_range(numbers.reshape(-1, 1), {"documents": nd}, "candidates")
        width = numbers.shape[1]
        queries = torch.arange(nq, device=device).unsqueeze(1).expand(nq, width).reshape(-1)
        return numbers.reshape(-1).to(device), queries, None, width
    rows = [integer_tensor(row, f"candidates[{i}]") for i, row in enumerate(candidates)]
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
    place = place.to(device)
    return torch.cat([nothing, *(row.cpu() for row in rows)]).to(device), place // max(1, width), place, width
