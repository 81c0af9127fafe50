from __future__ import annotations

import asyncio
from typing import Any

import pytest
from counting import QUERY, TEXTS, Counting
from rerankers import Document, Reranker
from rerankers.models.ranker import BaseRanker
from rerankers.results import RankedResults

from colbert_fast.integrations.rerankers import LateInteractionRanker


def test_ranks_texts(encoder: Counting) -> None:
    expected = encoder.best()
    encoder.documents.clear()
    ranker = LateInteractionRanker(encoder)
    assert isinstance(ranker, BaseRanker)
    results = ranker.rank(QUERY, TEXTS)
    assert encoder.documents == [len(set(TEXTS))]  # once, and equal texts once
    assert isinstance(results, RankedResults) and results.has_scores and results.query == QUERY
    assert [result.doc_id for result in results] == [i for i, _ in expected]
    assert [result.rank for result in results] == [1, 2, 3, 4, 5]
    assert [result.score for result in results] == pytest.approx([score for _, score in expected], rel=1e-5)
    assert [result.doc_id for result in results.top_k(2)] == [i for i, _ in expected[:2]]
    assert results.get_score_by_docid(3) == pytest.approx(dict(expected)[3], rel=1e-5)
    assert asyncio.run(ranker.rank_async(QUERY, TEXTS)).top_k(1)[0].doc_id == expected[0][0]


def test_documents_keep_their_ids_and_metadata(encoder: Counting) -> None:
    ranker = LateInteractionRanker(encoder)
    given = [Document(text, doc_id=f"d{i}", metadata={"n": i}) for i, text in enumerate(TEXTS)]
    order = [i for i, _ in encoder.best()]
    results = ranker.rank(QUERY, tuple(given))
    assert [(r.doc_id, r.metadata, r.text) for r in results] == [(f"d{i}", {"n": i}, TEXTS[i]) for i in order]
    named = ranker.rank(QUERY, TEXTS, doc_ids=list("abcde"), metadata=[{"n": i} for i in range(5)])
    assert [(r.doc_id, r.metadata) for r in named] == [("abcde"[i], {"n": i}) for i in order]
    assert ranker.rank(QUERY, given[3]).results[0].doc_id == "d3"


def test_documents_are_not_changed(encoder: Counting) -> None:
    given = [Document("paris", doc_id="p", metadata={"n": 1}), Document("bananas")]
    ranker = LateInteractionRanker(encoder)
    results = ranker.rank(QUERY, given, doc_ids=["x", "y"], metadata=[{"m": 1}, {"m": 2}])
    assert {(r.doc_id, r.metadata["m"]) for r in results} == {("x", 1), ("y", 2)}
    assert [(d.doc_id, d.metadata) for d in given] == [("p", {"n": 1}), (None, {})]
    assert {r.doc_id for r in ranker.rank(QUERY, given)} == {"p", 1}
    assert {r.doc_id for r in ranker.rank(QUERY, ["paris", *given])} == {0, "p", 2}


def test_one_document_and_none(encoder: Counting) -> None:
    ranker = LateInteractionRanker(encoder)
    (expected,) = encoder.by_hand(QUERY, ["paris"])
    assert ranker.score(QUERY, "paris") == pytest.approx(expected, rel=1e-5)
    assert ranker.rank(QUERY, "paris")[0].score == ranker.score(QUERY, "paris")
    assert ranker.rank(QUERY, []).results == []
    assert 0 <= LateInteractionRanker(encoder, normalize=True).score(QUERY, "paris") <= 1


def test_reranker_makes_it(checkpoint: str, loads: list[Any], encoder: Counting) -> None:
    ranker = Reranker(checkpoint, model_type="colbert_fast", verbose=0, device="cpu")
    assert type(ranker) is LateInteractionRanker
    assert not loads
    assert [result.doc_id for result in ranker.rank(QUERY, TEXTS)] == [i for i, _ in encoder.best()]
    assert loads == [(checkpoint, {"device": "cpu"})]


def test_errors(encoder: Counting) -> None:
    with pytest.raises(TypeError, match="query must be one str"):
        LateInteractionRanker(encoder).rank([QUERY], TEXTS)
    with pytest.raises(TypeError, match="takes device"):
        LateInteractionRanker(encoder, device="cpu")
    for ids in (["a"], list("abcdef")):
        with pytest.raises(ValueError, match="doc_ids"):
            LateInteractionRanker(encoder).rank(QUERY, TEXTS, doc_ids=ids)
