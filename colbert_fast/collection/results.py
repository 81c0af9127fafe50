"""What a search returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class SearchResult(tuple[Tensor, list[list[str | None]]]):
    """Scores ``[A, k]`` and ids, best first: a tuple of two, which also says how it was found.

    ``scores, ids = collection.topk(queries, 10)`` takes it apart.
    """

    certified: bool
    """Whether it is proved that no other document belongs here."""
    read: Tensor
    """``[A]`` int64: how many documents were scored by their exact tokens, for each query."""

    def __new__(cls, scores: Tensor, ids: list[list[str | None]], *, certified: bool, read: Tensor) -> SearchResult:
        result = super().__new__(cls, (scores, ids))
        result.certified = certified
        result.read = read
        return result

    @property
    def scores(self) -> Tensor:
        """``[A, k]`` float32, in CPU memory; -inf where there is no document left."""
        return self[0]

    @property
    def ids(self) -> list[list[str | None]]:
        """A list of k ids for each query; None where there is no document left."""
        return self[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (*self, self.certified, self.read)

    def __repr__(self) -> str:
        nq, width = self.scores.shape
        how = "certified" if self.certified else "approximate"
        mean = f"{self.read.double().mean():.1f}" if nq else "0"
        lines = [f"SearchResult({nq} queries, {width} columns, {how}, {mean} documents read for a query)"]
        for i, (scores, ids) in enumerate(zip(self.scores[:3].tolist(), self.ids, strict=False)):
            best = [f"{name!r} {score:.4f}" for name, score in zip(ids[:3], scores, strict=False) if name is not None]
            more = ", ..." if sum(name is not None for name in ids) > len(best) else ""
            lines.append(f"  query {i}: {', '.join(best) or 'no document'}{more}")
        return "\n".join([*lines, "  ..."] if nq > 3 else lines)


def _restored(scores: Tensor, ids: list[list[str | None]], certified: bool, read: Tensor) -> SearchResult:
    return SearchResult(scores, ids, certified=certified, read=read)
