"""Threads that share an encoder get the same results as each of them would get alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from colbert_fast.models import ColBERT

QUERIES = ["berlin", "what is the capital of france?", "bananas, rich in potassium and more and more and more"]
# The documents are longer than the maximum length of a query. A document that is cut at this length by mistake has
# another score.
DOCUMENTS = [f"{'the capital of ' * (n % 7)}paris is in france, bananas {n}" for n in range(40)]


def test_scores(neural_cherche: Path) -> None:
    encoder = ColBERT(neural_cherche, device="cpu")

    def scored(n: int) -> torch.Tensor:
        return encoder.scores([QUERIES[n % 3]], DOCUMENTS, tqdm_bar=False)

    expected = [scored(n) for n in range(3)]
    with ThreadPoolExecutor(8) as executor:
        for n, scores in enumerate(executor.map(scored, range(300))):
            torch.testing.assert_close(scores, expected[n % 3], rtol=1e-5, atol=1e-5)


def test_both_sides_and_other_lengths(neural_cherche: Path) -> None:
    encoder = ColBERT(neural_cherche, device="cpu")
    calls = [
        lambda: encoder.encode(DOCUMENTS, query_mode=False)["embeddings"],
        lambda: encoder.encode(DOCUMENTS)["embeddings"],
        lambda: encoder.encode(DOCUMENTS, max_length=7, padding="longest")["embeddings"],
        lambda: encoder.encode(DOCUMENTS[:2], truncation=False)["embeddings"],
        lambda: encoder.encode_packed(DOCUMENTS, query_mode=False, add_special_tokens=False).tokens,
    ]
    expected = [call() for call in calls]
    with ThreadPoolExecutor(8) as executor:
        for n, embeddings in enumerate(executor.map(lambda n: calls[n % 5](), range(300))):
            torch.testing.assert_close(embeddings, expected[n % 5], rtol=1e-5, atol=1e-5)
