"""How the retrievers without a model read a text, as neural-cherche's do: character n-grams of plain letters."""

from __future__ import annotations

import string
import unicodedata

# In ASCII these are all characters of the categories P and S.
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """Return a text without case, accents, punctuation and symbols, and without whitespace at its ends."""
    if text.isascii():
        return text.lower().translate(_WITHOUT_PUNCTUATION).strip()
    letters = unicodedata.normalize("NFKD", text.casefold())
    kept = (c for c in letters if not unicodedata.combining(c) and unicodedata.category(c)[0] not in "PS")
    return "".join(kept).strip()
