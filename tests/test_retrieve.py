"""retrieve.BM25 and retrieve.TfIdf: the formulas, and the results of libraries that compute the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast import retrieve

pytestmark = pytest.mark.needs("retrieval")

DOCUMENTS: list[dict[str, Any]] = [
    {"id": "doc1", "title": "Paris", "text": "Paris is the capital of France: Paris!"},
    {"id": 2, "title": "Montréal", "text": "The largest city in Québec."},
    {"id": "doc3", "title": "", "text": "Bordeaux in Southwestern France"},
    {"id": "empty", "text": ""},
]
QUERIES = ["Paris paris", "montreal", "zzzz", "Paris paris", "the city of Bordeaux", ""]


def searched(retriever: Any, documents: list[dict[str, Any]], **options: Any) -> list[list[dict[str, Any]]]:
    retriever.add(documents_embeddings=retriever.encode_documents(documents=documents))
    return retriever(queries_embeddings=retriever.encode_queries(queries=QUERIES), tqdm_bar=False, **options)


@pytest.mark.parametrize("kind", ["BM25", "TfIdf"])
def test_results(kind: str) -> None:
    retriever = getattr(retrieve, kind)(key="id", on=["title", "text"])
    results = searched(retriever, DOCUMENTS)
    assert [[result["id"] for result in ranking][:1] for ranking in results] == [
        ["doc1"],
        [2],
        [],
        ["doc1"],
        ["doc3"],
        [],
    ]
    assert results[0] == results[3]
    for ranking in results:
        scores = [result["similarity"] for result in ranking]
        assert scores == sorted(scores, reverse=True) and all(type(score) is float and score > 0 for score in scores)
        assert all(set(result) == {"id", "similarity"} for result in ranking)
    assert len(results[4]) > 1
    queries = retriever.encode_queries(QUERIES)
    assert retriever(queries, k=1, batch_size=1, tqdm_bar=False) == [ranking[:1] for ranking in results]
    assert retriever(queries, k=99, tqdm_bar=False) == results
    assert retriever(dict(queries), tqdm_bar=False) == [results[0], results[1], [], results[4], []]
    assert retriever.n_documents == 4 and retriever.documents[1] == {"id": 2}


@pytest.mark.parametrize("kind", ["BM25", "TfIdf"])
def test_documents_may_be_added_in_parts(kind: str) -> None:
    retriever = getattr(retrieve, kind)("id", "text")
    encoded = retriever.encode_documents(DOCUMENTS)
    queries = retriever.encode_queries(QUERIES)
    whole = retriever.add(encoded)(queries, tqdm_bar=False)
    parts = getattr(retrieve, kind)("id", "text")
    assert parts(queries, tqdm_bar=False) == [[]] * 6
    for key, row in encoded.items():
        parts.add({key: row})(queries, k=2, tqdm_bar=False)
    assert parts.add(encoded).add({})(queries, tqdm_bar=False) == whole
    assert parts.n_documents == 4


@pytest.mark.parametrize("kind", ["BM25", "TfIdf"])
def test_a_field_that_documents_lack(kind: str) -> None:
    """A document without a title is found in the same way alone as among others, and when no document has one."""
    texts = [{"id": document["id"], "text": document["text"]} for document in DOCUMENTS]
    whole = searched(getattr(retrieve, kind)("id", ["text", "title"]), texts)
    retriever = getattr(retrieve, kind)("id", ["text", "title"])
    rows = retriever.encode_documents([*texts[:3], {**texts[3], "title": ""}])
    assert searched(retriever.add(rows), texts[3:]) == whole


@pytest.mark.parametrize("kind", ["BM25", "TfIdf"])
def test_the_matrix_has_a_column_for_each_document(kind: str) -> None:
    retriever = getattr(retrieve, kind)("id", "text")
    assert retriever.matrix is None
    (query,) = retriever.add(retriever.encode_documents(DOCUMENTS)).encode_queries(QUERIES[:1]).values()
    assert retriever.matrix.shape == (query.shape[1], 4)
    best = retriever({"": query}, tqdm_bar=False)[0][0]
    assert (query @ retriever.matrix).toarray()[0, 0] == best["similarity"] > 0


def test_bm25_equals_bm25s() -> None:
    """The real library, with the same terms; it calls the form of the term weight "atire"."""
    import bm25s

    retriever = retrieve.BM25("id", ["title", "text"], k1=1.2, b=0.6)
    results = searched(retriever, DOCUMENTS)
    terms = retriever.vectorizer.build_analyzer()
    theirs = bm25s.BM25(k1=1.2, b=0.6, method="atire", idf_method="lucene")
    theirs.index([terms(f"{d.get('title', '')} {d['text']}") for d in DOCUMENTS], show_progress=False)
    for query, ranking in zip(QUERIES, results, strict=True):
        expected = theirs.get_scores(terms(query)) if set(terms(query)) & set(theirs.vocab_dict) else np.zeros(4)
        found = {result["id"]: result["similarity"] for result in ranking}
        ours = [found.get(document["id"], 0.0) for document in DOCUMENTS]
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_epsilon_adds_the_idf() -> None:
    scores = []
    for epsilon in (0, 0.5):
        found = searched(retrieve.BM25("id", "text", Words(), epsilon=epsilon), DOCUMENTS)[4]
        scores += [result["similarity"] for result in found if result["id"] == "doc3"]
    # Only the word Bordeaux is in this document and in the query, and in no other document.
    assert scores[1] - scores[0] == pytest.approx(0.5 * np.log(1 + (4 - 1 + 0.5) / (1 + 0.5)), rel=1e-5)


class Words:
    """A vectorizer of another library than scikit-learn, which counts the words of the first documents."""

    def fit_transform(self, raw_documents: list[str]) -> Any:
        self.words = sorted({word for text in raw_documents for word in text.split()})
        return self.transform(raw_documents)

    def transform(self, raw_documents: list[str]) -> Any:
        return np.array([[text.split().count(word) for word in self.words] for text in raw_documents])


def test_tfidf_equals_the_recorded_results() -> None:
    """The scores of neural-cherche 1.4.3, which makes its vectors with lenlp: data/neural_cherche_rank.py."""
    path = Path(__file__).parent / "data" / "neural_cherche_rank.json"
    oracle = json.loads(path.read_text(encoding="utf-8"))
    retriever = retrieve.TfIdf(key="id", on=["title", "text"])
    retriever.add(retriever.encode_documents(oracle["documents"]))
    results = retriever(retriever.encode_queries(oracle["queries"]), k=3, tqdm_bar=False)
    for ranking, recorded in zip(results, oracle["TfIdf"], strict=True):
        assert [result["id"] for result in ranking] == [name for name, _ in recorded]
        np.testing.assert_allclose([result["similarity"] for result in ranking], [s for _, s in recorded], rtol=1e-5)


def test_a_vectorizer_that_is_fitted() -> None:
    from sklearn.feature_extraction.text import CountVectorizer

    counts = CountVectorizer()
    retriever = retrieve.BM25("id", "text", count_vectorizer=counts, fit=False)
    with pytest.raises(ValueError, match=r"^fit=False needs a vectorizer that is fitted; this one is not$"):
        retriever.encode_documents(DOCUMENTS)
    counts.fit(["paris bordeaux"])
    results = searched(retriever, DOCUMENTS)
    assert [[result["id"] for result in ranking] for ranking in results] == [
        ["doc1"],
        [],
        [],
        ["doc1"],
        ["doc3"],
        [],
    ]


def test_text_is_read_without_case_accents_and_punctuation() -> None:
    from colbert_fast.retrieve.vectorizers import plain

    assert plain("Été, l'eau-de-vie: C++ & AT&T!") == "ete leaudevie c  att"
    assert plain(" 日本語 ß ﬁ ") == "日本語 ss fi"
    assert plain("\tA b-c: $1.50 (d_e)\n") == plain("\tA b-c: $1.50 (d_e)\n\u2014") == "a bc 150 de"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.BM25("id", "text", b=2), ValueError, r"b must be a number from 0 to 1; got 2"),
        (lambda r: r.BM25("id", "text", k1=float("nan")), ValueError, r"k1 must be a number of 0 or more; got nan"),
        (lambda r: r.BM25("id", "text", epsilon="1"), ValueError, r"epsilon must be a number of 0 or more; got '1'"),
        (
            lambda r: r.BM25("id", "text", object()),
            TypeError,
            r"must have a method fit_transform\(raw_documents=\); got",
        ),
        (lambda r: r.TfIdf("id", None), TypeError, r"on must be the name of a field or a list of names; got None"),
        (
            lambda r: r.TfIdf("id", "body").encode_documents(DOCUMENTS),
            ValueError,
            r"no document has a field of \['body'\]",
        ),
        (
            lambda r: r.TfIdf("key", "text").encode_documents(DOCUMENTS),
            ValueError,
            r"documents\[0\] has no field 'key'",
        ),
        (lambda r: r.TfIdf("id", "text").encode_documents("text"), TypeError, r"documents must be a list of dicts"),
        (lambda r: r.TfIdf("id", "text").encode_queries(["a"]), ValueError, r"not fitted: call encode_documents first"),
        (lambda r: r.TfIdf("id", "text").add([1]), TypeError, r"documents_embeddings must be a dict of rows; got list"),
        (lambda r: r.TfIdf("id", "text").add({"a": 1}), TypeError, r"vector of 'a' must be a sparse row .*; got int"),
        (lambda r: r.TfIdf("id", "text")(["a"]), TypeError, r"queries_embeddings must be a dict of rows; got list"),
        (lambda r: r.TfIdf("id", "text")({}, k=0), ValueError, r"k must be 1 or more; got 0"),
    ],
)
def test_bad_arguments(call: Callable[[Any], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(retrieve)


def test_vectors_of_two_vectorizers() -> None:
    one, two = (retrieve.TfIdf("id", "text") for _ in range(2))
    one.add(one.encode_documents(DOCUMENTS))
    other = two.encode_documents(DOCUMENTS[:1])
    message = (
        r"^all vectors must be of one fitted vectorizer; the vector of '.*' has \d+ features and the vectors before"
    )
    with pytest.raises(ValueError, match=message):
        one.add({"new": other["doc1"]})
    with pytest.raises(ValueError, match=message):
        one(two.encode_queries(["paris"]))


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("colbert_fast.retrieve.bm25", "colbert_fast.retrieve.tfidf"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for name in ("BM25", "TfIdf"):
        with pytest.raises(
            ImportError, match=rf"^colbert_fast.retrieve.{name} needs scikit-learn>=.*-fast\[retrieval\]"
        ):
            getattr(retrieve, name)
    assert retrieve.ColBERT.__name__ == "ColBERT"
