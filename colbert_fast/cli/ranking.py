"""Rank documents for queries: all documents, or candidates."""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

import colbert_fast as cf
from colbert_fast._encoders import uses_mean
from colbert_fast.cli.embedding import Embedder
from colbert_fast.cli.runs import Ranking


class Found(NamedTuple):
    """The results of each query, and what they took."""

    rankings: list[Ranking]
    encoding_seconds: float
    scoring_seconds: float


def search(
    embedder: Embedder,
    queries: Sequence[str],
    documents: Sequence[str],
    k: int,
    candidates: Sequence[Sequence[int]] | None = None,
    backend: str | None = None,
) -> Found:
    """Find the k best documents of each query by MaxSim, exactly.

    The documents pass by in shards, so their embeddings are never all in memory. With candidates, only the documents
    that are a candidate of some query are embedded. Equal scores keep the order of the documents.

    Parameters
    ----------
    candidates
        For each query the numbers of its documents. None: all documents.
    """
    started = time.perf_counter()
    k = min(k, len(documents))
    used = None if candidates is None else sorted({number for row in candidates for number in row})
    rows = None if candidates is None else [sorted(row) for row in candidates]
    normalize = uses_mean(embedder.encoder)
    q = embedder.all(queries, query=True)
    scores = torch.empty(len(queries), 0)
    numbers = torch.empty(len(queries), 0, dtype=torch.int64)
    scoring = 0.0
    for here, d in embedder.shards(documents, query=False, used=used):
        before = time.perf_counter()
        some = None if rows is None else [_places(row, here) for row in rows]
        if some is None or any(some):
            more, places = cf.topk(q, d, k, candidates=some, length_normalize=normalize, backend=backend)
            scores, numbers = _merged(scores, numbers, more.cpu(), places.cpu(), here, k)
        scoring += time.perf_counter() - before
    rankings = [
        [(number, score) for number, score in zip(row, row_scores, strict=True) if number >= 0]
        for row, row_scores in zip(numbers.tolist(), scores.tolist(), strict=True)
    ]
    return Found(rankings, time.perf_counter() - started - scoring, scoring)


def _places(row: Sequence[int], here: Sequence[int]) -> list[int]:
    """Return which of the documents of a shard are candidates: their places in the shard. Both are sorted."""
    some = row[bisect.bisect_left(row, here[0]) : bisect.bisect_right(row, here[-1])]
    # A shard may have gaps, and a document in a gap is in another shard.
    return [place for number in some if here[place := bisect.bisect_left(here, number)] == number]


def _merged(
    scores: torch.Tensor, numbers: torch.Tensor, more: torch.Tensor, places: torch.Tensor, here: Sequence[int], k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best of what was found before and of what a shard has. Where a query has fewer, the number is -1."""
    of_shard = torch.tensor(here)
    more_numbers = of_shard[places.clamp(min=0)].where(places >= 0, -1)
    scores, numbers = torch.cat([scores.to(more.dtype), more], dim=1), torch.cat([numbers, more_numbers], dim=1)
    numbers, order = numbers.sort(dim=1)
    scores = scores.gather(1, order)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores[:, :k], numbers.gather(1, order)[:, :k]
