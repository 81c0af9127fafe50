"""Rank given documents for queries, with the names and the arguments of neural-cherche's `rank`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colbert_fast._absent import no_attribute
from colbert_fast.rank.colbert import ColBERT
from colbert_fast.rank.embeddings import TokenEmbeddings

__all__ = ["ColBERT", "TokenEmbeddings"]


# Type checkers do not see it: every misspelt name would have a type for them.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise no_attribute(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)
