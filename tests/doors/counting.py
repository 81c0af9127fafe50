"""Texts, and an encoder that counts its calls and whose scores are computed by hand."""

from __future__ import annotations

from typing import Any

import colbert_fast as cf

QUERY = "capital of france"
# The first two texts tie.
TEXTS = ["paris is in france", "paris is in france", "", "bananas: the fruit", "the capital of berlin \N{SNOWMAN} <b>"]


class Counting:
    """An encoder that notes how many texts it has embedded in each call."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.documents: list[int] = []

    def encode_queries(self, texts: list[str], **options: Any) -> cf.PackedTokens:
        return self.encoder.encode_queries(texts, **options)

    def encode_documents(self, texts: list[str], **options: Any) -> cf.PackedTokens:
        self.documents.append(len(texts))
        return self.encoder.encode_documents(texts, **options)

    def by_hand(self, query: str, texts: list[str]) -> list[float]:
        """MaxSim in float64, straight from its definition."""
        (q,) = self.encoder.encode_queries([query])
        return [
            float((q.double() @ d.double().T).max(dim=1).values.sum()) for d in self.encoder.encode_documents(texts)
        ]

    def best(self, query: str = QUERY, texts: list[str] = TEXTS) -> list[tuple[int, float]]:
        """The numbers and scores of all texts, best first; the first of equal ones first."""
        return sorted(enumerate(self.by_hand(query, texts)), key=lambda hit: -hit[1])
