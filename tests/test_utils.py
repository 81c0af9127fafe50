"""Batches, collections and measures are neural-cherche 1.4.3's."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from colbert_fast import utils

TRIPLES = [(str(i), f"+{i}", f"-{i}") for i in range(7)]


@pytest.fixture(scope="module")
def oracle() -> dict[str, Any]:
    """The results of neural-cherche 1.4.3: data/neural_cherche_rank.py."""
    path = Path(__file__).parent / "data" / "neural_cherche_rank.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    folder = tmp_path / "evaluation_datasets" / "tiny"
    (folder / "qrels").mkdir(parents=True)
    documents = [f'{{"_id": "d{i}", "title": "t{i}", "text": "x{i}"}}' for i in range(4)]
    (folder / "corpus.jsonl").write_text("\n".join(documents))
    queries = ['{"_id": "a", "text": "one"}', '{"_id": "b", "text": "two"}', '{"_id": "c", "text": "one"}']
    (folder / "queries.jsonl").write_text("\n".join(queries))
    rows = ["query-id\tcorpus-id\tscore", "a\td0\t1", "b\td3\t2", "b\td2\t0", "c\td1\t1"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows))
    return folder


def test_batchify() -> None:
    assert list(utils.batchify(X=[1, 2, 3], batch_size=2, tqdm_bar=False)) == [[1, 2], [3]]
    assert list(utils.batchify((i for i in range(3)), 3, tqdm_bar=False)) == [[0, 1, 2]]
    assert list(utils.batchify([], 3, tqdm_bar=False)) == []
    assert [len(part) for part in utils.batchify(torch.zeros(5, 2), 3, tqdm_bar=False)] == [3, 2]
    assert [len(part) for part in utils.batchify(np.zeros(5), 5, tqdm_bar=False)] == [5]


def test_iter_has_the_recorded_orders(oracle: dict[str, Any]) -> None:
    random.seed(7)
    triples = list(TRIPLES)
    batches = list(utils.iter(triples, epochs=2, batch_size=3, tqdm_bar=False))
    assert batches == [tuple(batch) for batch in oracle["batches"]]
    assert triples == TRIPLES
    unshuffled = list(utils.iter(iter(TRIPLES), 1, 4, shuffle=False, tqdm_bar=False))
    assert [anchors for anchors, _, _ in unshuffled] == [["0", "1", "2", "3"], ["4", "5", "6"]]
    assert list(utils.iter(np.array(TRIPLES), 1, 7, shuffle=False, tqdm_bar=False)) == [
        tuple([triple[side] for triple in TRIPLES] for side in range(3))
    ]
    assert list(utils.iter([], 2, 4, tqdm_bar=False)) == list(utils.iter(TRIPLES, 0, 4)) == []


@pytest.mark.needs("models")
def test_progress_bars(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(utils.batchify([1, 2, 3], 2, desc="cut"))) == 2
    assert len(list(utils.iter(TRIPLES, 2, 3))) == 6
    written = capsys.readouterr().err
    assert all(f"{name}: 100%" in written for name in ("cut", "Epoch 0", "Epoch 1")) and " 2/2 " in written


def test_a_bar_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(
        ImportError, match=r"tqdm_bar=True\) needs tqdm>=.* \(not installed\): .*colbert-fast\[models\]"
    ):
        utils.batchify([1], 1)
    assert list(utils.batchify([1], 1, tqdm_bar=False)) == [[1]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: utils.batchify("text", 2), TypeError, r"X must be a list; got str"),
        (lambda: utils.batchify(None, 2), TypeError, r"X must be a list; got NoneType"),
        (lambda: utils.batchify([1], 0), ValueError, r"batch_size must be 1 or more; got 0"),
        (lambda: utils.iter([("a", "b")], 1, 2), TypeError, r"triples \(anchor, positive, negative\); X\[0\] is \('a'"),
        (lambda: utils.iter(["abc"], 1, 2), TypeError, r"X\[0\] is 'abc'"),
        (lambda: utils.iter({}, 1, 2), TypeError, r"X must be a list of triples .*; got dict"),
        (lambda: utils.iter(TRIPLES, -1, 2), ValueError, r"epochs must be 0 or more; got -1"),
        (lambda: utils.iter(TRIPLES, 1, 2.0), TypeError, r"batch_size must be an int; got 2.0"),
        (lambda: utils.load_beir(""), TypeError, r"dataset_name must be a folder or the name of a collection; got ''"),
        (lambda: utils.load_beir("no/where"), FileNotFoundError, r"the folder no/where does not exist"),
    ],
)
def test_bad_arguments(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_load_beir(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, queries, qrels = utils.load_beir(str(collection), split="test")
    assert documents[0] == {"id": "d0", "title": "t0", "text": "x0"} and len(documents) == 4
    # The queries "a" and "c" have one text.
    assert queries == ["one", "two"]
    assert qrels == {"one": {"d0": 1, "d1": 1}, "two": {"d3": 2, "d2": 0}}
    monkeypatch.chdir(collection.parents[1])
    assert utils.load_beir("tiny") == (documents, queries, qrels)
    monkeypatch.setitem(sys.modules, "beir", None)
    with pytest.raises(
        ImportError, match=r"^there is no folder 'scifact', and .* pip install beir; or unpack https:.*/s"
    ):
        utils.load_beir("scifact")


def test_get_beir_triples(collection: Path) -> None:
    documents, queries, qrels = utils.load_beir(collection)
    for seed in range(9):
        random.seed(seed)
        triples = utils.get_beir_triples("id", ["title", "text"], documents, queries[::-1], qrels)
        assert [triple[:2] for triple in triples] == [("two", "t3 x3"), ("one", "t0 x0"), ("one", "t1 x1")]
        assert triples[0][2] != "t3 x3" and {triples[1][2], triples[2][2]} <= {"t2 x2", "t3 x3"}
        random.seed(seed)
        assert utils.get_beir_triples("id", ["title", "text"], documents, queries[::-1], qrels) == triples
    assert utils.get_beir_triples("id", "text", documents, ["unknown"], qrels) == []
    with pytest.raises(ValueError, match=r"'two' is answered by the document 'd3', which is not in documents"):
        utils.get_beir_triples("id", "text", documents[:2], ["two"], qrels)
    with pytest.raises(TypeError, match=r"qrels must be a dict with the judgements of each query; got list"):
        utils.get_beir_triples("id", "text", documents, ["two"], ["two"])
    with pytest.raises(TypeError, match=r"queries must be a list of str; got str"):
        utils.get_beir_triples("id", "text", documents, "two", qrels)
    with pytest.raises(ValueError, match=r"every document answers the query 'one'"):
        utils.get_beir_triples("id", "text", documents[:2], ["one"], qrels)


def test_sparse_models_are_said_to_be_missing() -> None:
    for name in ("sparse_scores", "dense_scores", "pairs_dense_scores"):
        with pytest.raises(AttributeError, match=rf"utils.{name} does not exist: Splade and SparseEmbed are sparse"):
            getattr(utils, name)


def test_the_warning_about_repeated_queries() -> None:
    with pytest.warns(UserWarning, match=r"^Duplicate queries found. Provide distinct queries.$") as caught:
        utils.duplicates_queries_warning()
    assert caught[0].filename == __file__


@pytest.fixture
def rankings(oracle: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [[{"id": name, "similarity": 1.0} for name in ranking] for ranking in oracle["measured"]]


@pytest.mark.needs("retrieval")
def test_measures_equal_the_recorded_ones(oracle: dict[str, Any], rankings: list[list[dict[str, Any]]]) -> None:
    """ranx gives the same for a query without relevant documents, one that was not asked, and an unknown document."""
    recorded = dict(oracle["measures"])
    default = recorded.pop("default")
    names = list(recorded)
    found = utils.evaluate(scores=rankings, qrels=oracle["qrels"], queries=oracle["queries"], metrics=names)
    assert found == pytest.approx(recorded, abs=1e-9) and list(found) == names
    assert utils.evaluate(rankings, oracle["qrels"], oracle["queries"]) == pytest.approx(default, abs=1e-9)
    for one in ("map", ["map"]):
        assert utils.evaluate(rankings, oracle["qrels"], oracle["queries"], one) == pytest.approx(recorded["map"])


@pytest.mark.needs("retrieval")
def test_measures_of_odd_rankings() -> None:
    qrels = {"a": {1: 1}, "b": {"2": 1}}
    hit, miss = [{"id": "1"}, {"id": 3}, {"id": 1}], [{"id": 3}]
    assert utils.evaluate([hit, miss], qrels, ["a", "b"], "mrr") == 0.5
    assert utils.evaluate([hit, miss], qrels, ["a", "b", "a"], "mrr") == 0.5
    assert utils.evaluate([hit, miss, hit], qrels, ["a", "b", "a"], "hit_rate@1") == 0.5
    assert utils.evaluate([[], miss, hit], qrels, ["b", "not judged", "a"], "f1@2") == pytest.approx(1 / 3)
    assert utils.evaluate([], qrels, [], ["map", "hits@3"]) == {"map": 0, "hits@3": 0}
    assert utils.evaluate([hit], {"a": {1: np.float32(1), 3: np.int64(0)}}, ["a"], "mrr") == 1.0


@pytest.mark.needs("retrieval")
def test_measures_of_what_is_no_list() -> None:
    with pytest.raises(TypeError, match=r"scores must be a list of rankings, one for each query; got NoneType"):
        utils.evaluate(None, {"a": {"d": 1}}, ["a"])
    with pytest.raises(TypeError, match=r"queries must be a list of queries; got str"):
        utils.evaluate([[]], {"a": {"d": 1}}, "a")
    with pytest.raises(TypeError, match=r"metrics must be a list of names; got NoneType"):
        utils.evaluate([[]], {"a": {"d": 1}}, ["a"], None)
    for qrels, message in ((None, r"qrels must be a dict .*; got NoneType"), ({"a": ["d"]}, r"\['a'\] .*; got list")):
        with pytest.raises(TypeError, match=message):
            utils.evaluate([[]], qrels, ["a"])


@pytest.mark.needs("retrieval")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[]], {"a": {"d": 1}}, ["a"], ["ndgc@10"]), r"metrics must be names of \['f1', .*; got 'ndgc@10'"),
        (([[]], {"a": {"d": 1}}, ["a"], ["ndcg@0"]), r"got 'ndcg@0'"),
        (([[]], {"a": {"d": 1}}, ["a"], ["r-precision@3"]), r"got 'r-precision@3'"),
        (([[]], {"a": {"d": 1}}, ["a"], [None]), r"got None"),
        (([[]], {}, ["a"]), r"qrels must have the judgements of one query or more; got an empty dict"),
        (([[], []], {"a": {"d": 1}}, ["a"]), r"one ranking for each query; got 2 rankings for 1 queries"),
        (([[]], {"a": {"d": 0.7}}, ["a"]), r"qrels\['a'\]\['d'\] must be an integer; got 0.7"),
        (([[]], {"a": {"d": "1"}}, ["a"]), r"qrels\['a'\]\['d'\] must be an integer; got '1'"),
        (([["d"]], {"a": {"d": 1}}, ["a"]), r"scores\[0\]\[0\] must be a dict with an \"id\"; got 'd'"),
    ],
)
def test_bad_measures(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        utils.evaluate(*arguments)
