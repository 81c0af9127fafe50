"""Queries that are given more than once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from colbert_fast._warnings import warn_caller


class QueryDict(dict[str, Any]):
    """A dict by query text that remembers the list of queries it was made of, with repeated queries.

    Attributes
    ----------
    order
        The queries, in the order in which they were given.
    """

    def __init__(self, queries: Iterable[str], values: Iterable[Any]) -> None:
        self.order: list[str] = list(queries)
        super().__init__(zip(self.order, values, strict=True))


def queries_of(embeddings: Mapping[str, Any]) -> list[str]:
    """Return the queries for which results are due: as they were given, or the keys of any other mapping."""
    order = getattr(embeddings, "order", None)
    if order is None or set(order) != set(embeddings):  # the dict was changed
        return list(embeddings)
    return list(order)


def duplicates_queries_warning() -> None:
    """Warn that queries are repeated, as neural-cherche does. Nothing here calls it, as repeated queries are fine."""
    warn_caller("Duplicate queries found. Provide distinct queries.")
