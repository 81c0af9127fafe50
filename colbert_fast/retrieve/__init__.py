"""Search among added documents, with the names and the arguments of neural-cherche's `retrieve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colbert_fast._absent import no_attribute
from colbert_fast.retrieve.colbert import ColBERT

if TYPE_CHECKING:
    from colbert_fast.retrieve.bm25 import BM25
    from colbert_fast.retrieve.tfidf import TfIdf

__all__ = ["BM25", "ColBERT", "TfIdf"]


# BM25 and TfIdf need scikit-learn. Type checkers do not see this: every misspelt name would have a type for them.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "BM25":
            from colbert_fast.retrieve.bm25 import BM25

            return BM25
        if name == "TfIdf":
            from colbert_fast.retrieve.tfidf import TfIdf

            return TfIdf
        raise no_attribute(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)
