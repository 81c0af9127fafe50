"""A snapshot without a folder, and the definition of what a search of it must find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import colbert_fast as cf
from colbert_fast._backends.problem import EMPTY_DOCUMENT_SCORE
from colbert_fast._codecs import Codes, encode, encode_planes
from colbert_fast.collection.search import SearchResult

CODES = ["int8", "int4+4", "int4", "int2", "int1"]


@dataclass
class Segment:
    codes: Sequence[Codes]
    exact: cf.PackedTokens | None
    live: Tensor
    documents: Tensor


@dataclass
class Snapshot:
    segments: list[Segment]

    def ids(self, numbers: Tensor) -> list[str]:
        return [f"d{number}" for number in numbers.tolist()]


def codes_of(items: Sequence[Tensor], codes: str) -> list[Codes]:
    lengths = torch.tensor([len(item) for item in items])
    tokens = torch.cat(list(items))
    if codes == "int4+4":
        return list(encode_planes(tokens, lengths, seed=7))
    return [encode(tokens, lengths, bits=int(codes.removeprefix("int")), seed=7)]


def snapshot(
    items: Sequence[Tensor], codes: str, *, exact: bool = True, cuts: Sequence[int] = (), gone: Sequence[int] = ()
) -> Snapshot:
    """Make a snapshot of documents, with segments that begin at ``cuts``, without the documents ``gone``."""
    segments = []
    for first, last in zip([0, *cuts], [*cuts, len(items)], strict=True):
        part = items[first:last]
        live = torch.tensor([i for i in range(len(part)) if first + i not in gone], dtype=torch.int64)
        tokens = cf.PackedTokens.from_list(part) if exact else None
        segments.append(Segment(codes_of(part, codes), tokens, live, first + live))
    return Snapshot(segments)


def float64_scores(query: Tensor, items: Sequence[Tensor]) -> list[float]:
    """The definition, but each product is added in the same order, so that equal tokens are equal everywhere."""
    q = query.double().unsqueeze(1)
    return [float((q * item.double()).sum(2).amax(1).sum()) if len(item) else EMPTY_DOCUMENT_SCORE for item in items]


def brute_force(query: Tensor, items: Sequence[Tensor], k: int, gone: Sequence[int] = ()) -> list[tuple[float, str]]:
    """The k best by float64, best first, equal ones in their order."""
    scores = float64_scores(query, items)
    numbers = sorted((i for i in range(len(items)) if i not in gone), key=lambda i: (-scores[i], i))
    return [(scores[i], f"d{i}") for i in numbers[:k]]


def assert_exact(
    result: SearchResult, queries: Sequence[Tensor], items: Sequence[Tensor], k: int, gone: Sequence[int] = ()
) -> None:
    """Assert that ids, order and scores are those of float64."""
    scores, ids = result
    assert scores.dtype == torch.float32
    assert scores.shape == (len(queries), k)
    for i, query in enumerate(queries):
        best = brute_force(query, items, k, gone)
        missing = k - len(best)
        assert ids[i] == [name for _, name in best] + [None] * missing
        expected = torch.tensor([score for score, _ in best] + [float("-inf")] * missing, dtype=torch.float64)
        # As every score: relative to the products that are summed. Float32 holds no more than its largest number.
        size = float(query.double().norm(dim=1).sum() * torch.cat(list(items)).double().norm(dim=1).max())
        torch.testing.assert_close(scores[i].double(), expected.float().double(), rtol=1e-5, atol=1e-5 * size)
