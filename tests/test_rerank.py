"""cf.rerank with an encoder that is a table of embeddings; tests/encoders/test_rerank_models.py has real encoders."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
import torch

import colbert_fast as cf


class Letters:
    """One token for each letter: a unit vector in the direction of the letter, so a score counts letters found."""

    def __init__(self, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        self.passes: list[tuple[bool, list[str]]] = []
        self.rows = scale * torch.eye(26).to(dtype)

    def _encode(self, texts: list[str], query: bool, show_progress_bar: bool) -> cf.PackedTokens:
        self.passes.append((query, list(texts)))
        return cf.PackedTokens.from_list([self.rows[[ord(c) - 97 for c in t if "a" <= c <= "z"]] for t in texts])

    def encode_queries(self, texts: list[str], *, show_progress_bar: bool) -> cf.PackedTokens:
        return self._encode(texts, True, show_progress_bar)

    def encode_documents(self, texts: list[str], *, show_progress_bar: bool) -> cf.PackedTokens:
        return self._encode(texts, False, show_progress_bar)


DOCUMENTS = ["zoo", "cab", "back", "a"]


def test_one_query() -> None:
    expected = [
        {"id": 1, "score": 3.0, "text": "cab"},
        {"id": 2, "score": 3.0, "text": "back"},
        {"id": 3, "score": 1.0, "text": "a"},
        {"id": 0, "score": 0.0, "text": "zoo"},
    ]
    assert cf.rerank(Letters(), "abc", DOCUMENTS) == expected
    assert cf.rerank(Letters(), "abc", DOCUMENTS, 2) == expected[:2]
    assert cf.rerank(Letters(), "abc", DOCUMENTS, k=50) == expected
    assert cf.rerank(Letters(), "abc", iter(DOCUMENTS)) == expected
    assert all(type(result["score"]) is float for result in expected)


def test_many_queries_share_documents_or_have_their_own() -> None:
    model = Letters()
    ranked = cf.rerank(model, ["abc", "zo", "abc"], DOCUMENTS, 1)
    assert [[r["id"] for r in results] for results in ranked] == [[1], [0], [1]]
    assert model.passes == [(True, ["abc", "zo"]), (False, DOCUMENTS)]
    own = cf.rerank(model, (q for q in ("abc", "zo", "k")), [["zoo", "cab"], [], ["zoo", ("x", "back"), "cab"]])
    assert [[(r["id"], r["text"]) for r in results] for results in own] == [
        [(1, "cab"), (0, "zoo")],
        [],
        [("x", "back"), (0, "zoo"), (2, "cab")],
    ]
    assert model.passes[3] == (False, ["zoo", "cab", "back"])
    assert cf.rerank(model, ["abc"], DOCUMENTS) == [cf.rerank(model, "abc", DOCUMENTS)]


def test_more_documents_than_columns_of_topk() -> None:
    documents = ["ab" if i % 7 == 0 else "zz" for i in range(1500)]
    ranked = cf.rerank(Letters(), "ab", documents)
    assert len(ranked) == 1500 and [r["id"] for r in ranked[:3]] == [0, 7, 14]
    own = cf.rerank(Letters(), ["ab", "z"], [documents, documents[:2]])
    assert own[0] == ranked and [r["id"] for r in own[1]] == [1, 0]


def test_dicts_and_pairs() -> None:
    books = [
        {"id": "x", "title": "zoo", "body": "k", "year": 1999},
        {"id": "y", "title": "ab", "body": "c", "score": 7, "text": "old"},
        MappingProxyType({"title": "a", "body": ""}),
    ]
    ranked = cf.rerank(Letters(), "abck", books, text=["title", "body"])
    assert ranked == [
        {"id": "y", "title": "ab", "body": "c", "score": 3.0, "text": "ab c"},
        {"id": "x", "title": "zoo", "body": "k", "year": 1999, "score": 1.0, "text": "zoo k"},
        {"id": 2, "title": "a", "body": "", "score": 1.0, "text": "a "},
    ]
    assert books[1]["score"] == 7
    assert [r["id"] for r in cf.rerank(Letters(), "k", books[:2], text="body", key="title")] == ["zoo", "ab"]
    pairs = cf.rerank(Letters(), "b", [("p", "a"), (None, "b"), ((1, 2), "c"), ("p", "bb")])
    assert [(r["id"], r["text"]) for r in pairs] == [(None, "b"), ("p", "bb"), ("p", "a"), ((1, 2), "c")]


def test_equal_texts_are_embedded_once_and_all_come_back() -> None:
    model = Letters()
    ranked = cf.rerank(model, "ab", [("x", "ab"), ("y", "cd"), ("x", "ab"), {"id": "z", "text": "ab"}])
    assert [(r["id"], r["score"]) for r in ranked] == [("x", 2.0), ("x", 2.0), ("z", 2.0), ("y", 0.0)]
    assert model.passes[1] == (False, ["ab", "cd"])


def test_nothing_to_rank() -> None:
    model = Letters()
    assert cf.rerank(model, "a", []) == [] and cf.rerank(model, [], DOCUMENTS) == []
    assert cf.rerank(model, ["a", "b"], []) == cf.rerank(model, ["a", "b"], [[], []]) == [[], []]
    assert model.passes == []
    assert [r["score"] for r in cf.rerank(model, "", ["a", "b"])] == [0, 0]
    with pytest.warns(UserWarning, match="without a token"):
        ranked = cf.rerank(model, "a", ["", "b", "a"])
    assert [r["score"] for r in ranked] == [1, 0, -1e9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_normalized(dtype: torch.dtype) -> None:
    model = Letters(dtype=dtype)
    model.rows[25] = -model.rows[0]
    ranked = cf.rerank(model, "aabz", ["a", "b", "abz", "z"], normalize=True)
    assert [(r["id"], r["score"]) for r in ranked] == [(2, 1.0), (0, 0.25), (1, 0.25), (3, 0.0)]
    assert [r["id"] for r in cf.rerank(model, "aabz", ["a", "b", "abz", "z"])] == [2, 0, 1, 3]
    with pytest.warns(UserWarning, match="without a token"):
        assert [r["score"] for r in cf.rerank(model, ["", "a"], [""], normalize=True)[1]] == [0]
    one = torch.nn.functional.normalize(torch.randn(26, 26), dim=-1).to(dtype)
    model.rows = one
    assert all(0 <= r["score"] <= 1 for r in cf.rerank(model, "abc", ["abc", "xyz"], normalize=True))


@pytest.mark.parametrize("bad", [2.0, 0.9, math.nan, math.inf])
def test_normalize_needs_unit_vectors(bad: float) -> None:
    with pytest.raises(
        ValueError, match=r"normalize=True needs a model whose embeddings are unit vectors; got .* norm"
    ):
        cf.rerank(Letters(bad), "a", ["a"], normalize=True)
    model = Letters()
    model.rows[1] = 0  # a row of padding
    assert cf.rerank(model, "a", ["b"], normalize=True)[0]["score"] == 0


def test_the_order_is_that_of_the_raw_score() -> None:
    """Negative means are shown as 0, and still are in order."""
    model = Letters()
    model.rows = -torch.nn.functional.normalize(torch.rand(26, 26) + 1, dim=-1)
    q = model.rows.clone()
    model.encode_queries = lambda texts, **_: cf.PackedTokens.from_list([-q[:3] for _ in texts])  # type: ignore[method-assign]
    texts = list("klmnopqr")
    raw = cf.rerank(model, "abc", texts)
    shown = cf.rerank(model, "abc", texts, normalize=True)
    assert [r["id"] for r in raw] == [r["id"] for r in shown]
    assert all(r["score"] < 0 for r in raw) and all(r["score"] == 0 for r in shown)


def call(*arguments: Any, **options: Any) -> Callable[[Letters], Any]:
    return lambda model: cf.rerank(model, *arguments, **options)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (call(None, ["a"]), TypeError, "query must be a text or a list of texts; got NoneType"),
        (call(b"a", ["a"]), TypeError, "query must be a text or a list of texts; got bytes"),
        (call({"q": "a"}, ["a"]), TypeError, "query must be a text or a list of texts; got dict"),
        (call(["a", None], ["a"]), TypeError, "query[1] is NoneType"),
        (call("a", "a"), TypeError, "documents must be a list of documents; got str"),
        (call("a", None), TypeError, "documents must be a list of documents; got NoneType"),
        (call("a", {"x": "a"}), TypeError, "got dict: list(documents.items()) makes pairs (id, text)"),
        (call("a", ["a", None]), TypeError, "documents[1] must be a text, a dict with a text, or a tuple (id, text)"),
        (call("a", ["a", 3]), TypeError, "documents[1] must be a text"),
        (call("a", [b"a"]), TypeError, "documents[0] must be a text"),
        (call("a", [("x", "a", 1)]), TypeError, "got a tuple of 3"),
        (call("a", [("x", None)]), TypeError, "documents[0] must be (id, text); the text is NoneType"),
        (call("a", [["a"]]), TypeError, "got list: lists of candidates go with a list of queries"),
        (
            call("a", [{"id": 3, "body": "a"}]),
            ValueError,
            "documents[0] has no field 'text', which text= names; it has",
        ),
        (call("a", [{"text": "a"}, {"text": None}]), TypeError, "documents[1]['text'] must be a str; got NoneType"),
        (call("a", [{"t": "a"}], text=["t", "u"]), ValueError, "documents[0] has no field 'u'"),
        (call(["a", "b"], [["a"]]), ValueError, "one list of candidates per query; got 1 lists for 2 queries"),
        (call(["a", "b"], [["a"], "b"]), TypeError, "documents[1] is str"),
        (call(["a", "b"], [["a"], [None]]), TypeError, "documents[1][0] must be a text"),
        (call("a", ["a"], 0), ValueError, "k must be 1 or more; got 0"),
        (call("a", ["a"], True), TypeError, "k must be an int"),
        (call("a", ["a"], 1.5), TypeError, "k must be an int"),
        (call("a", ["a"], text=[]), TypeError, "text must be the name of a field or a list of names; got []"),
        (call("a", ["a"], text=None), TypeError, "text must be the name of a field"),
        (call("a", ["a"], key=1), TypeError, "key must be the name of a field; got 1"),
        (call("a", ["a"], backend="none"), ValueError, "no backend is called 'none'"),
    ],
)
def test_errors_come_before_anything_is_embedded(
    bad: Callable[[Letters], Any], error: type[Exception], message: str
) -> None:
    model = Letters()
    with pytest.raises(error) as raised:
        bad(model)
    assert message in str(raised.value)
    assert model.passes == []


def test_a_table_is_refused() -> None:
    class Table(list[str]):
        columns = ("id", "text")

    with pytest.raises(TypeError, match=r'got Table: documents.to_dict\("records"\) makes dicts'):
        cf.rerank(Letters(), "a", Table(["id", "text"]))


def test_a_model_that_is_none() -> None:
    for model in (None, object(), torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="the model must have encode_queries"):
            cf.rerank(model, "a", ["a"])


@pytest.mark.parametrize("missing", [1, -1])
def test_a_model_that_does_not_embed_each_text(missing: int) -> None:
    class Wrong(Letters):
        def encode_documents(self, texts: list[str], *, show_progress_bar: bool) -> cf.PackedTokens:
            given = texts[missing:] if missing > 0 else [*texts, "a"]
            return super().encode_documents(given, show_progress_bar=show_progress_bar)

    with pytest.raises(ValueError, match=f"one embedding for each of the 4 texts; got {4 - missing} embeddings"):
        cf.rerank(Wrong(), "a", DOCUMENTS)


def test_explain_needs_a_model_that_tells_its_tokens() -> None:
    with pytest.raises(NotImplementedError, match=r"cannot ask a Letters for its tokens: Explanation\.from_embeddings"):
        cf.explain(Letters(), "a", "cab")
