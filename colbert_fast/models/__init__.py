"""Late-interaction encoders.

The names are imported on first use: transformers takes seconds to import, and scoring embeddings does not
need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colbert_fast.models.colbert import ColBERT

__all__ = ["ColBERT"]


def __getattr__(name: str) -> Any:
    if name == "ColBERT":
        from colbert_fast.models.colbert import ColBERT

        return ColBERT
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
