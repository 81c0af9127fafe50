"""The documents of a snapshot as a search sees them: bounds from the codes, and scores from the exact tokens.

If the exact tokens are not kept, what the finest codes stand for takes their place. Their own bounds hold for it:
see :func:`colbert_fast._codecs.decoded`.

The live documents of all segments, one segment after the other, are the columns 0 .. n - 1 of the matrices of a search.

THE ERROR OF A SCORE. Let q_i be the tokens of a query of dimension n, and X the largest norm of a token of a document.
By csrc/per_tier/sums.h a product passes at most r = 130 + L roundings in a float32 score, L being the logarithm to
base 2 of the number of blocks of 128 dimensions, rounded up; _backends/torch_.py has fewer. Each rounding loses at most
2^-24 of what is summed, and sum |products| <= |q_i| X (Cauchy-Schwarz). So a score errs by at most
r 2^-24 / (1 - r 2^-24) X sum_i |q_i|. Two more roundings cover one of the query and one of this arithmetic. Where
denormal numbers are flushed, each dimension of a query token loses at most 2^-126 (2 + |q_i| + X) besides. If
this is much of X sum_i |q_i|, float32 is too coarse for the score, and if X sum_i |q_i| is near the largest float32, a
sum may overflow on its way: then the error is infinite, and only float64 decides. If X sum_i |q_i| is 0, so is every
product, and the error.

X is at most the largest |m v| of the document, which the codes hold as ``norms``, and its largest slack, because the
slack of a token bounds its distance from m v (and a rotation keeps lengths).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from colbert_fast._backends.problem import CHUNK_ELEMENTS, EMPTY_DOCUMENT_SCORE
from colbert_fast._codecs import Codes
from colbert_fast._scoring import score
from colbert_fast._upper import upper_bounds
from colbert_fast.collection import streaming
from colbert_fast.collection.segments import decoded_items
from colbert_fast.collection.snapshot import LiveSegment, Snapshot
from colbert_fast.packed import PackedTokens

# A sum below this has not overflowed on its way in float32.
_NO_OVERFLOW = 2.0**126
_FLUSHED = 2.0**-126
# Of a score, float32 may lose this share to numbers that are flushed. A score may be off by 1e-5.
_MOST_FLUSHED = 2.0**-18
# With more of them, numpy multiplies, and torch converts, on several threads.
_PRODUCTS, _NUMBERS = 2**17, 2**14


class Documents:
    """The live documents of a snapshot, as the columns 0 .. n - 1."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.segments: list[LiveSegment] = snapshot.segments
        counts = [len(segment.live) for segment in self.segments]
        self._firsts = np.cumsum([0, *counts], dtype=np.int64)
        self.order: NDArray[np.int64] = np.concatenate(
            [np.zeros(0, np.int64), *(s.documents.numpy() for s in self.segments)]
        )

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def dim(self) -> int | None:
        """The size of one embedding; None if there is no document."""
        return self.segments[0].codes[0].dim if self.segments else None

    @property
    def finer(self) -> bool:
        """Whether there are finer codes than the coarsest."""
        return all(len(segment.codes) > 1 for segment in self.segments)

    @property
    def exact(self) -> bool:
        """Whether the tokens are kept."""
        return all(segment.exact is not None for segment in self.segments)

    def upper_bounds(self, queries: PackedTokens, level: int, backend: str | None, device: torch.device | None) -> Any:
        """Return bounds ``[A, n]`` of all scores, float32, from one level of the codes: 0 is the coarsest."""
        bounds = []
        for segment in self.segments:
            codes = segment.codes[level]
            if len(segment.live) < len(codes.starts):
                codes = codes.select(segment.live)
            if device is None:
                bounds.append(upper_bounds(queries, codes, backend=backend).numpy())
            else:
                bounds.append(streaming.upper_bounds(queries, codes, device, backend).numpy())
        return bounds[0] if len(bounds) == 1 else np.concatenate(bounds, axis=1)

    def refined(self, queries: PackedTokens, rows: Any, columns: Any, backend: str | None) -> Any:
        """Return bounds ``[p]`` of the scores of queries ``rows [p]`` and ``columns [p]``, from the finest codes."""
        result = np.empty(len(rows), np.float32)
        for segment, where, items in self._by_segment(columns):
            for row in np.unique(rows[where]):
                mine = rows[where] == row
                codes = segment.codes[-1].select(torch.from_numpy(items[mine]))
                bounds = upper_bounds(_alone(queries, int(row)), codes, backend=backend)
                result[where[mine]] = bounds[0].numpy()
        return result

    def scores(
        self, queries: PackedTokens, norms: Any, rows: Any, columns: Any, backend: str | None
    ) -> tuple[Any, Any]:
        """Return scores ``[p]`` and bounds of their errors ``[p]``, in float64.

        Parameters
        ----------
        queries
            A queries of float32.
        norms
            float64 ``[A]``: for each query the sum of the norms of its tokens.
        rows, columns
            int64 ``[p]``: pairs of a query and a document.
        backend
            As in :func:`maxsim`.
        """
        scores = np.full(len(rows), EMPTY_DOCUMENT_SCORE)
        errors = np.zeros(len(rows))
        lengths = queries.lengths.numpy()
        for segment, where, items in self._by_segment(columns):
            codes = segment.codes[-1]
            some = codes.lengths.numpy()[items] > 0
            if not some.all():
                where, items = where[some], items[some]
            if not len(items):
                continue
            longest = _longest(codes, items)
            tokens, items = _tokens(segment, items)
            mine = rows[where]
            pairs = torch.from_numpy(np.stack([mine, items], axis=1))
            scores[where] = score(queries, tokens, pairs, (False, False), CHUNK_ELEMENTS, backend).numpy()
            errors[where] = _errors(codes.dim, norms[mine], lengths[mine], longest)
        unsure = np.flatnonzero(~(np.isfinite(scores) & np.isfinite(errors)))
        if len(unsure):
            scores[unsure] = self.decided(queries, rows[unsure], columns[unsure])
            errors[unsure] = 0
        return scores, errors

    def decided(self, queries: PackedTokens, rows: Any, columns: Any) -> Any:
        """Return scores ``[p]`` in float64, by the definition. Equal documents get equal scores."""
        scores = np.empty(len(rows))
        for segment, where, items in self._by_segment(columns):
            empty = segment.codes[-1].lengths.numpy()[items] == 0
            scores[where[empty]] = EMPTY_DOCUMENT_SCORE
            where, items = where[~empty], items[~empty]
            tokens, items = _tokens(segment, items)
            last = -1
            for i, row, item in zip(where.tolist(), rows[where].tolist(), items.tolist(), strict=True):
                if row != last:
                    query, last = queries[row].double().numpy(), row
                    norms = np.sqrt((query * query).sum(axis=1))
                scores[i] = _float64_score(query, norms, tokens[item])
                # Products of finite numbers of float32 stay far below the largest of float64.
                if not np.isfinite(scores[i]):
                    path, kept = segment.mapped.path, "multipliers" if segment.exact is None else "exact"
                    msg = f"{path}: {kept} must be finite numbers"
                    raise ValueError(msg)
        return scores

    def _by_segment(self, columns: Any) -> Iterator[tuple[LiveSegment, Any, Any]]:
        """Yield each segment that has some of the columns, their places in ``columns``, and their items."""
        if len(self.segments) == 1:
            yield self.segments[0], np.arange(len(columns)), self.segments[0].live.numpy()[columns]
            return
        of = np.searchsorted(self._firsts, columns, side="right") - 1
        for number in np.unique(of).tolist():
            where = np.flatnonzero(of == number)
            segment = self.segments[number]
            yield segment, where, segment.live.numpy()[columns[where] - self._firsts[number]]


def _alone(queries: PackedTokens, row: int) -> PackedTokens:
    """Return one query with its own rows only, because bounds check and round every row that they are given.

    ``_own`` of a part does the same, but its checks would add a quarter to the time of the bounds of a few documents.
    """
    if len(queries) == 1:
        return queries
    start, length = int(queries.starts[row]), int(queries.lengths[row])
    own = queries.tokens.narrow(0, start, length)
    lengths = queries.lengths[row : row + 1]
    return PackedTokens(own, torch.zeros_like(lengths), lengths, _trusted=(length, None))


def _tokens(segment: LiveSegment, items: Any) -> tuple[PackedTokens, Any]:
    """Return tokens that hold these items, and the numbers of the items among them."""
    if segment.exact is not None:
        return segment.exact, items
    items, numbers = np.unique(items, return_inverse=True)
    return decoded_items(segment.codes[-1], torch.from_numpy(items)), numbers


def _float64_score(query: Any, norms: Any, document: Tensor) -> float:
    """Return the score by the definition, in float64.

    The matrix product only finds the rows that may win, because the order in which it adds depends on the shape. Their
    products are then added in the order that the dimension gives, so that equal rows are equal in every document.
    numpy and torch get so few rows at a time that they use no threads, which would cost more, much more on a busy
    machine.
    """
    best = np.full(len(query), -np.inf)
    for part in document.split(max(1, min(_PRODUCTS // max(1, query.size), _NUMBERS // document.shape[1]))):
        rows = part.double().numpy()
        products = query @ rows.T
        error = 2.0**-50 * query.shape[1] * np.sqrt((rows * rows).sum(axis=1).max())
        lanes, winners = np.nonzero(products >= (products.max(axis=1) - error * norms)[:, None])
        np.maximum.at(best, lanes, (query[lanes] * rows[winners]).sum(axis=1))
    return float(best.sum())


def _rows(codes: Codes, items: Any) -> tuple[Any, Any]:
    """Return the numbers of the rows of the items, one item after the other, and the lengths of the items."""
    lengths = codes.lengths.numpy()[items]
    ends = np.cumsum(lengths)
    shift = codes.starts.numpy()[items] - ends + lengths
    return np.arange(lengths.sum()) + np.repeat(shift, lengths), lengths


def _longest(codes: Codes, items: Any) -> Any:
    """Return for each item, none of them empty, a bound of the norms of its tokens, in float64."""
    rows, lengths = _rows(codes, items)
    # The bits of numbers of 0 or more are in the order of the numbers.
    slack = codes.slack.view(torch.int16).numpy()[rows]
    largest = np.maximum.reduceat(slack, np.cumsum(lengths) - lengths).astype(np.uint32) << 16
    return largest.view(np.float32).astype(np.float64) + codes.norms.numpy()[items]


def _errors(dim: int, norms: Any, lengths: Any, longest: Any) -> Any:
    roundings = 132 + max(0, (max(1, dim) - 1) // 128).bit_length()
    with np.errstate(invalid="ignore"):  # 0 times infinity
        products = norms * longest
        flushed = _FLUSHED * dim * (norms + lengths * (2 + longest))
    errors = products * (roundings * 2.0**-24 / (1 - roundings * 2.0**-24)) + flushed
    enough = (products < _NO_OVERFLOW) & (flushed <= _MOST_FLUSHED * products)
    return np.where(enough, errors, np.where(products == 0, 0, np.inf))
