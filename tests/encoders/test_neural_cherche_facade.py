"""rank and retrieve give neural-cherche 1.4.3's results, and better ones where it confuses queries."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from tiny import DATA

import colbert_fast as cf
from colbert_fast import models, rank, retrieve
from colbert_fast.rank import TokenEmbeddings

FIELDS = ["title", "text"]
DOCUMENTS: list[dict[str, Any]] = [
    {"id": 0, "title": "berlin", "text": "is the capital."},
    {"id": "one", "title": "", "text": "paris in france"},
    {"id": 2, "title": "bananas", "text": "fruit of the capital " * 9},
    {"id": (3, 3), "title": "", "text": ""},
]
QUERIES = ["berlin", "capital of france", "berlin", "", "bananas"]


@pytest.fixture(scope="module")
def oracle() -> dict[str, Any]:
    """The results of neural-cherche 1.4.3: data/neural_cherche_rank.py."""
    return json.loads((DATA / "neural_cherche_rank.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def minilm_encoder(minilm_checkpoint: Path) -> models.ColBERT:
    return models.ColBERT(minilm_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def encoder(make_neural_cherche: Callable[..., Path]) -> models.ColBERT:
    # With one dimension many maxima are negative, so that the pad row of a short document counts.
    return models.ColBERT(make_neural_cherche(1), device="cpu")


@pytest.fixture
def ranker(encoder: models.ColBERT) -> rank.ColBERT:
    return rank.ColBERT("id", FIELDS, encoder)


def text_of(document: dict[str, Any]) -> str:
    return f"{document['title']} {document['text']}"


def check(results: list[list[dict[str, Any]]], recorded: list[list[tuple[str, float]]], key: str = "id") -> None:
    assert [[result[key] for result in ranking] for ranking in results] == [[i for i, _ in part] for part in recorded]
    for ranking, part in zip(results, recorded, strict=True):
        np.testing.assert_allclose([result["similarity"] for result in ranking], [s for _, s in part], rtol=1e-5)


def check_against_model(
    results: list[list[dict[str, Any]]], candidates: list[list[dict[str, Any]]], score: Callable[[str, str], float]
) -> None:
    """Each result is the model's own, in order, for queries in the order of QUERIES."""
    assert len(results) == len(QUERIES)
    texts = {document["id"]: text_of(document) for document in DOCUMENTS}
    for query, ranking, documents in zip(QUERIES, results, candidates, strict=True):
        assert {result["id"] for result in ranking} == {document["id"] for document in documents}
        scores = [result["similarity"] for result in ranking]
        assert scores == sorted(scores, reverse=True)
        own = [score(query, texts[result["id"]]) for result in ranking]
        np.testing.assert_allclose(scores, own, rtol=1e-5, atol=1e-5)


def test_results_equal_the_recorded_ones(minilm_encoder: models.ColBERT, oracle: dict[str, Any]) -> None:
    ranker = rank.ColBERT(key="id", on=FIELDS, model=minilm_encoder)
    documents, queries = oracle["documents"], ranker.encode_queries(oracle["queries"], tqdm_bar=False)
    candidates = [[{"id": name, "extra": name * 2} for name in names] for names in oracle["candidates"]]
    encoded = ranker.encode_candidates_documents(documents, candidates, tqdm_bar=False)
    shapes = {key: list(array.shape) for key, array in {**queries, **encoded}.items()}
    assert list(shapes.items()) == list(oracle["shapes"].items())
    ranked = ranker(candidates, queries, encoded, tqdm_bar=False)
    check(ranked, oracle["ranked"])
    assert all(result["extra"] == result["id"] * 2 for ranking in ranked for result in ranking)
    check(ranker(candidates, queries, encoded, tqdm_bar=False, k=2, batch_size=1), oracle["ranked_2"])
    as_queries = ranker.encode_documents(documents, tqdm_bar=False, query_mode=True)
    assert [list(array.shape) for array in as_queries.values()] == oracle["as_queries"]
    check(ranker([documents] * 4, queries, as_queries, tqdm_bar=False), oracle["ranked_as_queries"])
    retriever = retrieve.ColBERT(key="id", on=FIELDS, model=minilm_encoder).add(documents_embeddings=encoded)
    found = retriever(queries_embeddings=queries, tqdm_bar=False, k=3)
    check(found, oracle["found_3"])
    assert {frozenset(result) for ranking in found for result in ranking} == {frozenset({"id", "similarity"})}


def test_scores_equal_the_models_own(ranker: rank.ColBERT, encoder: models.ColBERT) -> None:
    candidates = [DOCUMENTS, DOCUMENTS[1:], DOCUMENTS[:2], [], DOCUMENTS[::-1]]
    queries, encoded = ranker.encode_queries(QUERIES, tqdm_bar=False), ranker.encode_documents(DOCUMENTS)
    ranked = ranker(candidates, queries, encoded, batch_size=2)

    def score(query: str, text: str) -> float:
        return encoder.scores([query], [text], tqdm_bar=False).item()

    check_against_model(ranked, candidates, score)
    retriever = retrieve.ColBERT("id", FIELDS, encoder)
    assert retriever.add(retriever.encode_documents(DOCUMENTS[:1])).add(encoded) is retriever
    assert retriever.documents == [{"id": document["id"]} for document in DOCUMENTS]
    check_against_model(retriever(queries, batch_size=2), [DOCUMENTS] * 5, score)
    # Without pad rows the scores would be others.
    ragged = cf.maxsim(encoder.encode_queries(QUERIES[:1]), [rows[rows.any(1)] for rows in encoded.packed])
    assert ragged.sum() < sum(result["similarity"] for result in ranked[0]) - 0.1


@pytest.mark.parametrize("make", [np.array, torch.tensor, lambda array: np.array(array).tolist()])
def test_a_dict_of_arrays_scores_the_same(ranker: rank.ColBERT, make: Callable[[Any], Any]) -> None:
    queries, encoded = ranker.encode_queries(QUERIES), ranker.encode_documents(DOCUMENTS)
    candidates = [DOCUMENTS] * 4
    plain = [{key: make(array) for key, array in embeddings.items()} for embeddings in (queries, encoded)]
    expected = ranker(candidates, {query: queries[query] for query in queries}, encoded)
    assert ranker(candidates, *plain) == expected
    retriever = retrieve.ColBERT("id", FIELDS, ranker.model).add(plain[1])
    assert [[r["similarity"] for r in x] for x in retriever(plain[0])] == [
        [r["similarity"] for r in x] for x in expected
    ]
    assert all((retriever.documents_embeddings[key] == encoded[key]).all() for key in encoded)


def test_repeated_queries_have_their_own_results(ranker: rank.ColBERT) -> None:
    encoded = ranker.encode_documents(DOCUMENTS, tqdm_bar=False)
    queries = ranker.encode_queries(["berlin", "berlin", "bananas"], tqdm_bar=False)
    assert list(queries) == ["berlin", "bananas"] and queries.order == ["berlin", "berlin", "bananas"]
    ranked = ranker([DOCUMENTS[:1], DOCUMENTS[1:3], DOCUMENTS], queries, encoded, tqdm_bar=False)
    assert [len(ranking) for ranking in ranked] == [1, 2, 4]
    alone = ranker([DOCUMENTS], ranker.encode_queries(["bananas"]), encoded, tqdm_bar=False)
    assert ranked[2] == alone[0]
    with pytest.raises(ValueError, match=r"one list of documents for each query; got 2 lists and 3 queries in"):
        ranker([DOCUMENTS] * 2, queries, encoded)
    found = retrieve.ColBERT("id", FIELDS, ranker.model).add(encoded)(queries, k=2)
    assert found[0] == found[1] and len(found) == 3


def test_repeated_documents(ranker: rank.ColBERT) -> None:
    twice = [*DOCUMENTS, DOCUMENTS[0], {"id": "other", "title": "berlin", "text": "is the capital."}]
    encoded = ranker.encode_documents(twice, tqdm_bar=False)
    assert list(encoded) == [0, "one", 2, (3, 3), "other"]
    assert len(encoded.packed.tokens) == len(ranker.encode_documents(DOCUMENTS).packed.tokens)
    (ranking,) = ranker([twice], ranker.encode_queries(["berlin"]), encoded, tqdm_bar=False)
    assert len(ranking) == 6
    same = [(result["id"], result["similarity"]) for result in ranking if result["title"] == "berlin"]
    assert [name for name, _ in same] == [0, 0, "other"] and len({score for _, score in same}) == 1
    with pytest.raises(ValueError, match=r"documents\[4\] and an earlier document have the id 0 and different texts"):
        ranker.encode_documents([*DOCUMENTS, {"id": 0, "title": "", "text": ""}])
    with pytest.raises(ValueError, match=r"an earlier document have the id 0 and different texts"):
        ranker.encode_candidates_documents([*DOCUMENTS, {"id": 0, "title": "", "text": ""}], [[{"id": 0}]])


@pytest.mark.parametrize("k", [None, 1, 3, 9, 2000, np.int64(2)])
def test_k(ranker: rank.ColBERT, k: int | None) -> None:
    queries, encoded = ranker.encode_queries(["berlin", "paris"]), ranker.encode_documents(DOCUMENTS)
    whole = ranker([DOCUMENTS, DOCUMENTS[:2]], queries, encoded)
    assert ranker([DOCUMENTS, DOCUMENTS[:2]], queries, encoded, k=k) == [ranking[:k] for ranking in whole]
    retriever = retrieve.ColBERT("id", FIELDS, ranker.model).add(encoded)
    assert retriever(queries, k=k) == [ranking[:k] for ranking in retriever(queries)]


def test_nothing_to_rank(ranker: rank.ColBERT) -> None:
    queries, nothing = ranker.encode_queries(["berlin", "paris"]), ranker.encode_documents([])
    assert len(nothing) == 0 and dict(nothing) == {}
    assert ranker([[], []], queries, nothing) == [[], []]
    assert ranker([], ranker.encode_queries([]), {}) == []
    retriever = retrieve.ColBERT("id", FIELDS, ranker.model)
    assert retriever(queries) == [[], []] == retriever.add({}).add(nothing)(queries, k=3)
    assert retriever.add(ranker.encode_documents(DOCUMENTS))(ranker.encode_queries([])) == []


def test_documents_are_not_packed_again(ranker: rank.ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, encoded = ranker.encode_queries(QUERIES), ranker.encode_documents(DOCUMENTS)
    retriever = retrieve.ColBERT("id", FIELDS, ranker.model).add(encoded)
    expected = ranker([DOCUMENTS] * 5, queries, encoded), retriever(queries)
    packed = encoded.packed
    with monkeypatch.context() as patch:
        for name in ("from_list", "from_padded", "cat"):
            patch.setattr(cf.PackedTokens, name, None)
        assert (ranker([DOCUMENTS] * 5, queries, encoded), retriever(queries)) == expected
    assert encoded.packed is packed


def test_other_models(multi_vector: Path) -> None:
    """A document has no pad row there, and a mean is taken if the model takes one."""
    for name in ("maxsim", "meanmaxsim"):
        model = MultiVectorEncoder(str(multi_vector), device="cpu", similarity_fn_name=name)

        def score(query: str, text: str, model: MultiVectorEncoder = model) -> float:
            return model.similarity(model.encode_query([query]), model.encode_document([text])).item()

        ours = models.ColBERT(multi_vector, device="cpu")
        ours.encoder.similarity_fn_name = name
        for either in (model, ours):
            ranker = rank.ColBERT("id", FIELDS, either)
            encoded = ranker.encode_documents(DOCUMENTS, batch_size=2, tqdm_bar=False)
            queries = ranker.encode_queries(QUERIES, tqdm_bar=False)
            results = ranker([DOCUMENTS] * 5, queries, encoded, tqdm_bar=False)
            check_against_model(results, [DOCUMENTS] * 5, score)
            again = ranker([DOCUMENTS] * 5, queries, dict(encoded), tqdm_bar=False)
            assert again == results


def test_embeddings_are_a_dict_of_arrays(ranker: rank.ColBERT, tmp_path: Path) -> None:
    encoded = ranker.encode_documents(DOCUMENTS, tqdm_bar=False)
    arrays = dict(encoded)
    assert {(array.dtype.name, array.shape) for array in arrays.values()} == {("float32", (20, 1))}
    assert not arrays[0][-1].any() and arrays[2][-1].any()
    np.savez(tmp_path / "file.npz", **{str(key): array for key, array in encoded.items()})
    with np.load(tmp_path / "file.npz") as loaded:
        assert (loaded["0"] == encoded[0]).all()
    copied = pickle.loads(pickle.dumps(encoded))
    changed = TokenEmbeddings(pad_row=True)
    changed.update(ranker.encode_documents(DOCUMENTS[:2], tqdm_bar=False))
    changed.update(ranker.encode_documents(DOCUMENTS[2:], tqdm_bar=False), new=np.ones((3, 1)))
    changed[0] = np.zeros((20, 1))
    del changed["one"]
    assert list(changed) == [0, 2, (3, 3), "new"] == changed.order and "one" not in changed and len(changed) == 4
    assert (changed[2] == encoded[2]).all() and changed["new"].shape == (3, 1) and changed[0].shape == (20, 1)
    assert len(changed.packed[changed.numbers([0])[0]]) == 1
    queries = ranker.encode_queries(["bananas"], tqdm_bar=False)
    documents = [{"id": key} for key in (2, (3, 3))]
    assert ranker([documents], queries, changed) == ranker([documents], queries, copied)
    assert repr(encoded) == "TokenEmbeddings(4 items, dim 1)"
    with pytest.raises(KeyError, match="one"):
        changed["one"]
    with pytest.raises(ValueError, match=r"same dim; these have dim 3 and the others 1"):
        changed["bad"] = np.ones((1, 3))
    with pytest.raises(ValueError, match=r"embeddings\['bad'\] must be \[length, dim\]; got shape \[2\]"):
        changed["bad"] = [1.0, 2.0]


def test_embeddings_join_and_copy_as_dicts_do(ranker: rank.ColBERT) -> None:
    first, second = (ranker.encode_documents(part, tqdm_bar=False) for part in (DOCUMENTS[:2], DOCUMENTS[2:]))
    extra = {"new": np.ones((3, 1), np.float32)}
    whole = first | second | extra
    assert list(whole) == [0, "one", 2, (3, 3), "new"] == list(reversed(list(reversed(whole))))
    assert list(extra | second) == ["new", 2, (3, 3)] and list(first) == [0, "one"] and list(extra) == ["new"]
    queries, documents = ranker.encode_queries(["berlin"], tqdm_bar=False), [{"id": key} for key in whole]
    expected = ranker([documents], queries, {**first, **second, **extra})
    assert ranker([documents], queries, whole) == expected
    first |= second
    first |= extra
    assert list(first) == list(whole) and ranker([documents], queries, first) == expected
    for copied in (whole.copy(), copy.copy(whole), copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert ranker([documents], queries, copied) == expected
        copied["one"] = copied["other"] = extra["new"]
        assert list(copied) == [*whole, "other"] and copied.popitem()[0] == "other"
    assert ranker([documents], queries, whole) == expected
    with pytest.raises(TypeError, match="unsupported operand"):
        whole | [1]
    with pytest.raises(KeyError, match="there are no embeddings"):
        TokenEmbeddings().popitem()


def test_what_is_written_into_an_array_counts(ranker: rank.ColBERT) -> None:
    """A dict of arrays has every change, whether its user still has the array or not."""
    queries, encoded = ranker.encode_queries(["berlin"], tqdm_bar=False), ranker.encode_documents(DOCUMENTS)
    plain = {key: array.copy() for key, array in encoded.items()}
    row, packed = encoded["one"][1], encoded.packed
    for mapping in (plain, encoded):
        mapping[0][:] = -1
        mapping[2] *= 2
        for array in mapping.values():
            array += 0.5
    assert encoded.packed is not packed
    for _ in range(2):
        assert ranker([DOCUMENTS], queries, encoded) == ranker([DOCUMENTS], queries, plain)
        row[:] = plain["one"][1] = 7
    assert (encoded["one"] == plain["one"]).all() and np.shares_memory(encoded["one"], row)
    del encoded["one"], row
    encoded["one"] = plain["one"]
    assert ranker([DOCUMENTS], queries, encoded) == ranker([DOCUMENTS], queries, plain)
    # Arrays that nobody changed, or that belong to an older item of their key, change nothing.
    old, packed = encoded["one"], encoded.packed
    assert torch.from_numpy(encoded[2]).shape == (20, 1) and encoded.packed is packed
    encoded["one"] = plain["one"]
    packed, old[:] = encoded.packed, 0
    assert encoded.packed is packed


def test_reading_all_arrays_keeps_none(ranker: rank.ColBERT) -> None:
    encoded = ranker.encode_documents(DOCUMENTS, tqdm_bar=False)
    for array in encoded.values():
        assert array.shape == (20, 1)
    del array
    gc.disable()
    try:
        assert len(encoded._lent) <= 2 and encoded.numbers([0]) == [0] and len(encoded._lent) == 0
    finally:
        gc.enable()


def test_threads_read_and_rank_the_same_embeddings(ranker: rank.ColBERT) -> None:
    queries, encoded = ranker.encode_queries(["berlin"], tqdm_bar=False), ranker.encode_documents(DOCUMENTS)
    many = TokenEmbeddings(pad_row=True)
    many.update(dict.fromkeys(range(64), encoded[0]))
    documents = [[{"id": number} for number in range(64)]]
    expected, packed = ranker(documents, queries, many, tqdm_bar=False), many.packed

    def work(number: int) -> bool:
        if number % 2:
            return all((array == encoded[0]).all() for array in dict(many).values())
        return ranker(documents, queries, many, tqdm_bar=False) == expected

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(200)))
    assert many.packed is packed


def test_numpy_saves_embeddings_as_a_dict(ranker: rank.ColBERT, tmp_path: Path) -> None:
    encoded = ranker.encode_documents(DOCUMENTS, tqdm_bar=False)
    np.save(tmp_path / "file.npy", encoded, allow_pickle=True)
    loaded = np.load(tmp_path / "file.npy", allow_pickle=True).item()
    assert type(loaded) is dict and list(loaded) == list(encoded)
    assert all((loaded[key] == encoded[key]).all() for key in encoded)


def test_the_documents_of_a_retriever_may_be_changed(ranker: rank.ColBERT) -> None:
    queries, encoded = ranker.encode_queries(["berlin", "france"]), ranker.encode_documents(DOCUMENTS)
    retriever = retrieve.ColBERT("id", FIELDS, ranker.model).add(encoded)
    assert all(len(ranking) == 4 for ranking in retriever(queries))

    def check_all(documents: list[dict[str, Any]], embeddings: Any) -> None:
        assert retriever(queries, tqdm_bar=False) == ranker([documents] * 2, queries, embeddings, tqdm_bar=False)

    retriever.documents = DOCUMENTS[::-1]  # with all their fields
    check_all(DOCUMENTS[::-1], encoded)
    retriever.documents_embeddings["one"] = np.ones((20, 1))
    check_all(DOCUMENTS[::-1], {**encoded, "one": np.ones((20, 1))})
    retriever.documents_embeddings["one"][:] = encoded["one"]
    retriever.documents = [{"id": 0}, {"id": "one"}]
    del retriever.documents_embeddings[2]
    check_all([{"id": 0}, {"id": "one"}], encoded)
    retriever.documents, retriever.documents_embeddings = [], {}
    assert retriever(queries) == [[], []]
    check_all([{"id": 2}], retriever.add({2: encoded[2]}).documents_embeddings)
    retriever.documents.append({"id": "lost"})
    with pytest.raises(ValueError, match=r"documents_embeddings has no embedding of 'lost'"):
        retriever(queries)
    with pytest.raises(TypeError, match=r"documents_embeddings must be a dict of embeddings; got list"):
        retriever.documents_embeddings = [1]


def test_a_deleted_query_that_comes_back_is_asked_once(ranker: rank.ColBERT) -> None:
    queries = ranker.encode_queries(["berlin", "paris", "berlin"], tqdm_bar=False)
    array = queries.pop("berlin")
    queries["berlin"] = array
    assert list(queries) == ["paris", "berlin"] == queries.order
    queries.update({"berlin": array})  # replaced: no other place
    assert queries.order == ["paris", "berlin"]


def test_one_field_and_read_only_arrays(encoder: models.ColBERT) -> None:
    ranker = rank.ColBERT("name", "text", encoder, device="cpu")
    assert ranker.on == ["text"] and ranker.device == "cpu" == rank.ColBERT("name", "text", encoder).device
    documents = [{"name": "a", "text": "berlin"}, {"name": "b", "text": "paris"}]
    encoded = dict(ranker.encode_documents((document for document in documents), tqdm_bar=False))
    for array in encoded.values():
        array.flags.writeable = False
    (ranking,) = ranker(iter([iter(documents)]), ranker.encode_queries(iter(["berlin"])), encoded, tqdm_bar=False)
    assert {frozenset(result) for result in ranking} == {frozenset({"name", "text", "similarity"})}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r, q, d: rank.ColBERT(3, "text", r.model), TypeError, r"key must be the name of a field; got 3"),
        (lambda r, q, d: rank.ColBERT("id", [3], r.model), TypeError, r"on must be the name of a field or a list of"),
        (lambda r, q, d: rank.ColBERT("id", [], r.model), ValueError, r"on must name one field or more"),
        (lambda r, q, d: r.encode_queries("berlin"), TypeError, r"queries must be a list of str; got str"),
        (lambda r, q, d: r.encode_queries(["a", None]), TypeError, r"list of str; queries\[1\] is NoneType"),
        (lambda r, q, d: r.encode_queries(["a"], width=3), TypeError, r"unknown options \['width'\]"),
        (lambda r, q, d: r.encode_queries(["a"], batch_size=0), ValueError, r"batch_size must be 1 or more; got 0"),
        (lambda r, q, d: r.encode_documents(None), TypeError, r"documents must be a list of dicts; got NoneType"),
        (lambda r, q, d: r.encode_documents(DOCUMENTS[0]), TypeError, r"documents must be a list of dicts; got dict"),
        (lambda r, q, d: r.encode_documents(["text"]), TypeError, r"documents\[0\] is str"),
        (lambda r, q, d: r.encode_documents([{"title": ""}]), ValueError, r"documents\[0\] has no field 'id', which"),
        (
            lambda r, q, d: r.encode_documents([{"id": 1, "title": ""}]),
            ValueError,
            r"has no field 'text'; it has \['id",
        ),
        (
            lambda r, q, d: r.encode_documents([{"id": 1, "title": "", "text": None}]),
            TypeError,
            r"documents\[0\]\['text'\] must be a str; got NoneType",
        ),
        (
            lambda r, q, d: r.encode_documents([{"id": [], "title": "", "text": ""}]),
            TypeError,
            r"documents\[0\]\['id'\] must identify a document; got \[\]",
        ),
        (
            lambda r, q, d: r.encode_candidates_documents(DOCUMENTS, [[{"id": 9}]]),
            ValueError,
            r"candidates has a document with the id 9, which is not in documents",
        ),
        (lambda r, q, d: r(DOCUMENTS, q, d), TypeError, r"documents\[0\] must be a list of dicts; got dict"),
        (lambda r, q, d: r([[{"id": 9}]], q, d), ValueError, r"documents_embeddings has no embedding of 9: encode"),
        (lambda r, q, d: r([[{}]], q, d), ValueError, r"documents\[0\]\[0\] has no field 'id'"),
        (lambda r, q, d: r([DOCUMENTS], ["berlin"], d), TypeError, r"queries_embeddings must be a dict of embeddings"),
        (lambda r, q, d: r([DOCUMENTS], q, [d]), TypeError, r"documents_embeddings must be a dict of embeddings; got"),
        (lambda r, q, d: r([DOCUMENTS], q, d, k=0), ValueError, r"k must be 1 or more; got 0"),
        (lambda r, q, d: r([DOCUMENTS], q, d, batch_size="2"), TypeError, r"batch_size must be an int; got '2'"),
        (
            lambda r, q, d: r([DOCUMENTS], {"a": np.ones((1, 3))}, d),
            ValueError,
            r"need the same dim; got queries \[\*, 3\]",
        ),
        (lambda r, q, d: r([DOCUMENTS], {"a": "b"}, d), TypeError, r"queries_embeddings\['a'\] must be a tensor"),
        (lambda r, q, d: retrieve.ColBERT("id", "text", r.model).add([d]), TypeError, r"must be a dict of embeddings"),
        (
            lambda r, q, d: rank.ColBERT("id", FIELDS, object(), "cpu").encode_queries(["a"]),
            TypeError,
            r"must have enc",
        ),
    ],
)
def test_bad_arguments(ranker: rank.ColBERT, call: Callable[..., Any], error: type[Exception], message: str) -> None:
    queries, encoded = ranker.encode_queries(["a"], tqdm_bar=False), ranker.encode_documents(DOCUMENTS, tqdm_bar=False)
    with pytest.raises(error, match=message):
        call(ranker, queries, encoded)


def test_progress_bars_can_be_named(ranker: rank.ColBERT, capsys: pytest.CaptureFixture[str]) -> None:
    queries = ranker.encode_queries(["a"], desc="my queries")
    encoded = ranker.encode_documents(DOCUMENTS)
    ranker([DOCUMENTS], queries, encoded)
    written = capsys.readouterr().err
    assert all(name in written for name in ("ColBERT my queries", "ColBERT documents embeddings", "ColBERT ranker"))
    ranker.encode_documents(DOCUMENTS, tqdm_bar=False)
    ranker([DOCUMENTS], queries, encoded, tqdm_bar=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("module", "name"), [(models, "Splade"), (rank, "SparseEmbed"), (retrieve, "Splade"), (retrieve, "SparseEmbed")]
)
def test_sparse_models_are_said_to_be_missing(module: Any, name: str) -> None:
    with pytest.raises(AttributeError, match=rf"^{module.__name__}.{name} does not exist: Splade and SparseEmbed are "):
        getattr(module, name)
    with pytest.raises(AttributeError, match=rf"^module '{module.__name__}' has no attribute 'Colbert'$"):
        module.Colbert  # noqa: B018
    assert not hasattr(module, name)
