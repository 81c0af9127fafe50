"""rerank with real encoders: the scores are those of the model's own function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from tiny import DOCUMENTS, QUERIES

import colbert_fast as cf
from colbert_fast.models import ColBERT


@pytest.fixture(scope="module")
def encoder(neural_cherche: Path) -> ColBERT:
    return ColBERT(neural_cherche, device="cpu")


def assert_ranked(ranked: list[dict[str, Any]], scores: list[float]) -> None:
    """Assert that all documents are there with these scores, best first."""
    assert sorted(result["id"] for result in ranked) == list(range(len(scores)))
    assert [result["text"] for result in ranked] == [DOCUMENTS[result["id"]] for result in ranked]
    found = [result["score"] for result in ranked]
    assert found == sorted(found, reverse=True)
    torch.testing.assert_close(
        torch.tensor(found), torch.tensor([scores[result["id"]] for result in ranked]), rtol=1e-5, atol=1e-5
    )


def test_the_scores_of_models_colbert(encoder: ColBERT) -> None:
    """The documents are shorter than the maximum length, so padding scores 0 in them."""
    for query, ranked in zip(QUERIES, encoder.rerank(QUERIES, DOCUMENTS), strict=True):
        assert_ranked(ranked, encoder.scores([query], DOCUMENTS, tqdm_bar=False).tolist())
        best = encoder.rerank(query, DOCUMENTS, 2)
        assert [result["id"] for result in best] == [result["id"] for result in ranked[:2]]
    assert cf.rerank(encoder, QUERIES, DOCUMENTS) == encoder.rerank(QUERIES, DOCUMENTS)


def test_normalize_is_the_mean_of_unit_vectors(encoder: ColBERT) -> None:
    query = QUERIES[1]
    mean = encoder.scores([query], DOCUMENTS, tqdm_bar=False, length_normalize=True)
    assert_ranked(encoder.rerank(query, DOCUMENTS, normalize=True), mean.clamp(0, 1).tolist())


def test_each_text_passes_once(encoder: ColBERT) -> None:
    encoder.rerank(QUERIES, DOCUMENTS)  # before the first call a text passes that tests the encoder
    passed: list[int] = []
    handle = encoder.encoder.register_forward_pre_hook(lambda _, args: passed.append(len(args[0]["input_ids"])))
    try:
        encoder.rerank(QUERIES * 2, [*DOCUMENTS, *DOCUMENTS])
    finally:
        handle.remove()
    assert sum(passed) == len(QUERIES) + len(DOCUMENTS)


def test_options_of_the_method(encoder: ColBERT) -> None:
    books = [{"name": i, "body": text} for i, text in enumerate(DOCUMENTS)]
    (best,) = encoder.rerank("berlin", books, 1, text="body", key="name", backend="torch")
    assert best["id"] == best["name"] and best["text"] == best["body"]
    encoder.train()
    try:
        assert encoder.rerank("berlin", DOCUMENTS) == encoder.eval().rerank("berlin", DOCUMENTS)
    finally:
        encoder.eval()
    with pytest.raises(ValueError, match="lone surrogate"):
        encoder.rerank("berlin", ["a", "\ud800"])


@pytest.mark.parametrize("mean", [False, True])
def test_the_scores_of_multi_vector_encoder(multi_vector: Path, mean: bool) -> None:
    model = MultiVectorEncoder(str(multi_vector), device="cpu")
    if mean:
        model.similarity_fn_name = "meanmaxsim"
    expected = model.similarity(model.encode_query(QUERIES), model.encode_document(DOCUMENTS))
    for ranked, scores in zip(cf.rerank(model, QUERIES, DOCUMENTS), expected.tolist(), strict=True):
        assert_ranked(ranked, scores)
    ours = ColBERT(multi_vector, device="cpu")
    if mean:
        ours.encoder.similarity_fn_name = "meanmaxsim"
    for ranked, scores in zip(ours.rerank(QUERIES, DOCUMENTS), expected.tolist(), strict=True):
        assert_ranked(ranked, scores)
