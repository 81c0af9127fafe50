"""Texts to character n-grams, as neural-cherche's retrievers without a model read them."""

from __future__ import annotations

import unicodedata


def plain(text: str) -> str:
    """Return a text without case, accents, punctuation and symbols."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in letters if not unicodedata.combining(c) and unicodedata.category(c)[0] not in "PS")
