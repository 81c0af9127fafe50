"""Top-k of a snapshot: proved from bounds that the codes give, or approximate.

U(d), an upper bound of the score of document d, comes from a scan of the codes. The documents with the best bounds are
scored exactly; tau is the k-th best of what their scores are at least. Then every document with U(d) >= tau is scored,
in rounds, the best bounds first, until no bound reaches tau. All other documents score less than the k best, so the
answer is as if all were scored. Where there are coarse and fine codes, the documents that reach tau by the coarse
ones are bounded by the fine ones before they are scored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from colbert_fast._forks import safe_after_fork
from colbert_fast._integers import positive_int
from colbert_fast._lowering import lower
from colbert_fast.collection.documents import Documents
from colbert_fast.collection.results import SearchResult
from colbert_fast.collection.snapshot import Snapshot
from colbert_fast.packed import PackedTokens, Tokens

# Bounds of so many pairs are held at a time: 128 MiB.
_PAIRS_AT_ONCE = 2**25
# So many bounds are looked through at a time, if they are of several queries: their numbers take 8 MiB.
_BOUNDS_AT_ONCE = 2**20
_RUN = 256
# So many pairs are scored in one round at most.
_PAIRS_OF_ROUND = 2**18
# So many documents at least are bounded by the fine codes first.
_REFINED_FIRST = 16
# As in cf.topk: the result has so many columns, or k if that is less, even if there are fewer documents.
_ALWAYS_FILLED = 1024
_LARGEST = float(np.finfo(np.float32).max)


@safe_after_fork
@torch.no_grad()
def topk(
    snapshot: Snapshot,
    queries: Tokens,
    k: int,
    *,
    candidates: int | None = None,
    backend: str | None = None,
    device: torch.device | str | None = None,
) -> SearchResult:
    """Find the k best documents of a snapshot for every query: see :meth:`Collection.topk`."""
    k = positive_int(k, "k")
    documents = Documents(snapshot)
    if candidates is not None:
        candidates = _candidates(candidates, k)
    q = _checked_queries(queries, documents.dim)
    scores, columns, read = _search(documents, q, k, candidates, backend, _device(device))
    return SearchResult(
        torch.from_numpy(scores),
        _named(snapshot, documents, columns),
        certified=candidates is None,
        read=torch.from_numpy(read),
    )


@safe_after_fork
@torch.no_grad()
def recall(
    snapshot: Snapshot,
    queries: Tokens,
    k: int,
    candidates: int,
    *,
    backend: str | None = None,
    device: torch.device | str | None = None,
) -> float:
    """Return which share of the true k best ``topk(candidates=...)`` finds: see :meth:`Collection.recall`."""
    k = positive_int(k, "k")
    candidates = _candidates(candidates, k)
    documents = Documents(snapshot)
    q = _checked_queries(queries, documents.dim)
    if len(q) == 0:
        msg = "recall needs at least one query"
        raise ValueError(msg)
    target = _device(device)
    _, true, _ = _search(documents, q, k, None, backend, target)
    _, found, _ = _search(documents, q, k, candidates, backend, target)
    shares = np.ones(len(q))
    for row in range(len(q)):
        wanted, got = true[row][true[row] >= 0], found[row][found[row] >= 0]
        if not len(wanted):
            continue
        others = got[~np.isin(got, wanted)]
        # A document that is as good as the k-th best counts as one of them.
        last, *scores = documents.decided(q, np.full(len(others) + 1, row), np.append(wanted[-1], others))
        hits = len(got) - len(others) + sum(score >= last for score in scores)
        shares[row] = min(hits / len(wanted), 1)
    return float(shares.mean())


def _search(
    documents: Documents,
    q: PackedTokens,
    k: int,
    candidates: int | None,
    backend: str | None,
    device: torch.device | None,
) -> tuple[Any, Any, Any]:
    """Return scores and columns ``[A, w]``, -inf and -1 where there is no document, and how many were read ``[A]``."""
    width = k if k <= _ALWAYS_FILLED else min(k, max(len(documents), _ALWAYS_FILLED))
    scores = np.full((len(q), width), -np.inf, np.float32)
    columns = np.full((len(q), width), -1, np.int64)
    read = np.zeros(len(q), np.int64)
    at_once = max(1, _PAIRS_AT_ONCE // max(1, len(documents)))
    # Coarse codes bound the exact tokens, and not what the finest codes stand for.
    cascade = documents.exact and documents.finer
    level = 0 if cascade or candidates is not None else -1
    for first in range(0, len(q) if len(documents) else 0, at_once):
        block = slice(first, first + at_once)
        part = q if len(q) <= at_once else q[block]._own(wait=True)
        # The backend of a scan on another device need not be able to score on the CPU.
        found = _Found(documents, part, k, backend if device is None else None)
        upper = documents.upper_bounds(part, level, backend, device)
        if candidates is not None:
            found.read(*_pop(upper, found.tau, candidates))
        elif cascade:
            found.refine_all(upper)
        else:
            found.read_all(upper, None)
        best, numbers = found.best()
        filled = min(width, best.shape[1])
        scores[block, :filled], columns[block, :filled] = best[:, :filled], numbers[:, :filled]
        read[block] = found.count
    return scores, columns, read


class _Found:
    """The documents that were scored for some queries, as far as they may be among the k best."""

    def __init__(self, documents: Documents, queries: PackedTokens, k: int, backend: str | None) -> None:
        self._documents, self._queries, self._k, self._backend = documents, queries, k, backend
        nq = len(queries)
        self.count = np.zeros(nq, np.int64)
        # For each query: the k-th best of what the scores are at least. float32, rounded down.
        self.tau = np.full(nq, -np.inf, np.float32)
        self._norms = _sum_of_norms(queries)
        # [A, m] each; -inf, 0 and -1 where a query has fewer.
        self._scores: Any = np.empty((nq, 0))
        self._errors: Any = np.empty((nq, 0))
        self._columns: Any = np.empty((nq, 0), np.int64)

    def read(self, rows: Any, columns: Any) -> None:
        """Score queries ``rows [p]``, in ascending order, with ``columns [p]``, and raise tau."""
        for part in range(0, len(rows), _PAIRS_OF_ROUND):
            some = slice(part, part + _PAIRS_OF_ROUND)
            self._add(rows[some], columns[some])

    def _add(self, rows: Any, columns: Any) -> None:
        scores, errors = self._documents.scores(self._queries, self._norms, rows, columns, self._backend)
        shape, places = _places(rows, len(self.count))
        self.count += np.bincount(rows, minlength=len(self.count))
        self._scores = np.concatenate([self._scores, _placed(scores, shape, places, -np.inf)], axis=1)
        self._errors = np.concatenate([self._errors, _placed(errors, shape, places, 0)], axis=1)
        self._columns = np.concatenate([self._columns, _placed(columns, shape, places, -1)], axis=1)
        k, width = self._k, self._scores.shape[1]
        if width < k:
            return
        tau = np.partition(self._scores - self._errors, width - k, axis=1)[:, width - k]
        if width > 4 * k:
            self._drop(tau)
        with np.errstate(over="ignore", under="ignore"):
            low = np.clip(tau, -_LARGEST, _LARGEST).astype(np.float32)
            self.tau = np.where(low > tau, np.nextafter(low, np.float32(-np.inf)), low)

    def _drop(self, tau: Any) -> None:
        """Forget documents that are not among the k best."""
        keep = self._scores + self._errors >= tau[:, None]
        order = np.argsort(~keep, axis=1, kind="stable")[:, : int(keep.sum(1).max(initial=0))]
        self._scores, self._errors, self._columns = (
            np.take_along_axis(matrix, order, 1) for matrix in (self._scores, self._errors, self._columns)
        )

    def read_all(self, upper: Any, columns: Any) -> None:
        """Score all documents whose bound reaches tau. Sets these bounds to -inf.

        Parameters
        ----------
        upper
            ``[A, m]`` bounds.
        columns
            ``[A, m]``: the documents; None: document j has bound j.
        """
        size = first = self._k + max(5, self._k // 4)
        while True:
            rows, places = _pop(upper, self.tau, size)
            if not len(rows):
                return
            self.read(rows, places if columns is None else columns[rows, places])
            size = min(2 * size, max(first, _PAIRS_OF_ROUND // len(upper)))

    def refine_all(self, upper: Any) -> None:
        """As ``read_all`` for bounds of the coarse codes. Documents are bounded by the fine codes before."""
        size = max(4 * self._k, _REFINED_FIRST)
        while True:
            rows, columns = _pop(upper, self.tau, size)
            if not len(rows):
                return
            bounds = self._documents.refined(self._queries, rows, columns, self._backend)
            shape, places = _places(rows, len(upper))
            self.read_all(_placed(bounds, shape, places, -np.inf), _placed(columns, shape, places, -1))
            # tau is nearly what it will be, so that few documents are taken that a better tau would leave out.
            size = min(4 * size, max(4 * self._k, _PAIRS_OF_ROUND // len(upper)))

    def best(self) -> tuple[Any, Any]:
        """Return the scores ``[A, w]`` and columns of the k best, best first.

        Documents whose scores are nearer than their errors are decided in float64. Equal ones keep their order.
        """
        self._decide()
        columns = self._columns
        place = np.where(columns < 0, np.iinfo(np.int64).max, self._documents.order[columns])
        order = np.lexsort((place, -self._scores), axis=1)[:, : self._k]
        # A score beyond the largest float32 is infinite, and one near 0 is rounded to what float32 has there.
        with np.errstate(over="ignore", under="ignore"):
            scores = np.take_along_axis(self._scores, order, 1).astype(np.float32)
        return scores, np.take_along_axis(columns, order, 1)

    def _decide(self) -> None:
        width = self._scores.shape[1]
        if width < 2:
            return
        order = np.argsort(-(self._scores + self._errors), axis=1)
        upper = np.take_along_axis(self._scores + self._errors, order, 1)
        lower = np.take_along_axis(self._scores - self._errors, order, 1)
        # Place p + 1 belongs to the group of place p unless it is below everything up to p.
        joined = np.zeros((len(order), width + 1), bool)
        joined[:, 1:-1] = np.minimum.accumulate(lower, axis=1)[:, :-1] <= upper[:, 1:]
        group = np.cumsum(~joined[:, :-1], axis=1)
        wanted = (joined[:, :-1] | joined[:, 1:]) & (group <= group[:, [min(self._k, width) - 1]])
        rows, places = np.nonzero(wanted)
        places = order[rows, places]
        unsure = self._errors[rows, places] > 0
        rows, places = rows[unsure], places[unsure]
        if len(rows):
            self._scores[rows, places] = self._documents.decided(self._queries, rows, self._columns[rows, places])
            self._errors[rows, places] = 0


def _pop(upper: Any, tau: Any, size: int) -> tuple[Any, Any]:
    """Return up to ``size`` of the best bounds of each row that reach tau, and set them to -inf.

    Returns
    -------
    rows, columns
        ``[p]`` each, the rows in ascending order.
    """
    active = np.flatnonzero(upper.max(axis=1, initial=-np.inf) >= tau)
    found_rows, found_columns = [active[:0]], [active[:0]]
    at_once = max(1, _BOUNDS_AT_ONCE // max(1, upper.shape[1]))
    for first in range(0, len(active), at_once):
        rows = active[first : first + at_once, None]
        part = upper if len(rows) == len(upper) else upper[rows[:, 0]]
        columns = _largest(part, size)
        values = upper[rows, columns]
        upper[rows, columns] = -np.inf
        wanted = (values >= tau[rows]) & (values > -np.inf)
        found_rows.append(np.broadcast_to(rows, columns.shape)[wanted])
        found_columns.append(columns[wanted])
    return np.concatenate(found_rows), np.concatenate(found_columns)


def _largest(matrix: Any, size: int) -> Any:
    """Return the columns of the ``size`` largest numbers of each row, in any order."""
    width = matrix.shape[1]
    if size >= width:
        return np.broadcast_to(np.arange(width), matrix.shape)
    if width < 4 * _RUN * size:
        return np.argpartition(matrix, width - size, axis=1)[:, width - size :]
    # Ten times faster: `size` runs have a maximum of `least` or more. So no number below `least` is among the largest.
    result = np.empty((len(matrix), size), np.int64)
    for row, numbers in enumerate(matrix):
        maxima = numbers[: width // _RUN * _RUN].reshape(-1, _RUN).max(axis=1)
        least = np.partition(maxima, len(maxima) - size)[len(maxima) - size]
        columns = np.flatnonzero(numbers >= least)
        result[row] = columns[np.argpartition(numbers[columns], len(columns) - size)[len(columns) - size :]]
    return result


def _places(rows: Any, nq: int) -> tuple[tuple[int, int], Any]:
    """Return the shape of a matrix that has place for numbers of these rows, in ascending order; and their places."""
    counts = np.bincount(rows, minlength=nq)
    firsts = np.cumsum(counts) - counts
    return (nq, int(counts.max(initial=0))), (rows, np.arange(len(rows)) - firsts[rows])


def _placed(values: Any, shape: tuple[int, int], places: Any, fill: float) -> Any:
    matrix = np.full(shape, fill, values.dtype)
    matrix[places] = values
    return matrix


def _sum_of_norms(queries: PackedTokens) -> Any:
    """Return for each query the sum of the norms of its tokens, in float64."""
    norms = torch.linalg.vector_norm(queries.tokens, dim=1, dtype=torch.float64).numpy()
    lengths = queries.lengths.numpy()
    shift = queries.starts.numpy() - np.cumsum(lengths) + lengths
    rows = np.arange(lengths.sum()) + np.repeat(shift, lengths)
    return np.bincount(np.repeat(np.arange(len(lengths)), lengths), norms[rows], len(lengths))


def _checked_queries(queries: Tokens, dim: int | None) -> PackedTokens:
    """Return queries of float32 in CPU memory, without rows that belong to no query."""
    q, _ = lower(queries, None, "queries")
    if q.scales is not None:
        msg = "queries must be floating point: only documents can be int8; queries.to(dtype=torch.float32) makes floats"
        raise TypeError(msg)
    if q.device.type == "meta":
        msg = "queries must have memory; they are on the device 'meta'"
        raise ValueError(msg)
    if q.rows == 0 and dim is not None:
        q = q.with_tokens(q.tokens.reshape(0, dim))
    if dim is not None and q.dim != dim:
        msg = f"queries and documents need the same dim; got queries [*, {q.dim}] and documents [*, {dim}]"
        raise ValueError(msg)
    q = q.to("cpu", torch.float32)
    if q._part or q.rows != int(q.lengths.sum()):
        q = q._without_gaps(wait=True)
    tokens = q.tokens.detach()
    if not bool(tokens.isfinite().all()):
        row = int(tokens.isfinite().all(1).logical_not().nonzero()[0])
        items = (q.starts <= row) & (q.starts + q.lengths > row)
        msg = f"queries must be finite in float32; query {int(items.nonzero()[0])} has a NaN or an infinity"
        raise ValueError(msg)
    return q.with_tokens(tokens) if q.tokens.requires_grad else q


def _candidates(candidates: Any, k: int) -> int:
    number = positive_int(candidates, "candidates")
    if number < k:
        msg = f"candidates must be k or more; got candidates={number} and k={k}"
        raise ValueError(msg)
    return number


def _device(device: torch.device | str | None) -> torch.device | None:
    """Return the device with its number, or None for the CPU."""
    if device is None:
        return None
    try:
        target = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        msg = f"device must be one that torch can use here; got {device!s}: {str(error).splitlines()[0]}"
        raise ValueError(msg) from None
    if target.type == "meta":
        msg = "device must have memory; got 'meta'"
        raise ValueError(msg)
    return None if target.type == "cpu" else target


def _named(snapshot: Snapshot, documents: Documents, columns: Any) -> list[list[str | None]]:
    flat = columns.reshape(-1)
    known = flat >= 0
    names = np.full(len(flat), None, object)
    names[known] = snapshot.ids(torch.from_numpy(documents.order[flat[known]]))
    result: list[list[str | None]] = names.reshape(columns.shape).tolist()
    return result
