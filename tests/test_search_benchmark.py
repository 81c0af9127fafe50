"""The benchmark of whole collections: what it measures is right, and its report says it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import embeddings

import colbert_fast as cf
from benchmarks.search import __main__ as command
from benchmarks.search import data, tables, worker
from benchmarks.search.data import Data, projected, synthetic, with_exact
from benchmarks.search.index import Index
from colbert_fast.collection.layout import CODES, Layout, Options

K = 5
OURS = [
    pytest.param(name, setting)
    for name, index in worker.INDEXES.items()
    for setting in index.settings
    if index.package == "colbert-fast"
]


@pytest.fixture(scope="module")
def made() -> Data:
    return synthetic(300, 6, dim=32)


@pytest.fixture(scope="module")
def folder(made: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    made.write(folder)
    return folder


def test_the_exact_ranking_is_that_of_float64(made: Data) -> None:
    items = [torch.from_numpy(item).double() for item in made.items()]
    scores = cf.maxsim([torch.from_numpy(query).double() for query in made.asked()], items)
    best, numbers = scores.sort(dim=1, descending=True, stable=True)
    assert made.exact_numbers.tolist() == numbers[:, : made.exact_numbers.shape[1]].tolist()
    np.testing.assert_allclose(made.exact_scores, best[:, : made.exact_scores.shape[1]], rtol=1e-12)


def test_what_ties_for_the_last_place_is_right() -> None:
    rows = np.eye(4, dtype=np.float16)[[0, 1, 1, 1, 2]]
    query = np.array([[0.5, 1.0, 0.1, 0]], dtype=np.float32)
    found = with_exact(rows, np.ones(5, np.int64), query, np.array([1]), {"judged": None})
    assert found.right(0, 2) == {1, 2, 3}
    assert found.right(0, 4) == {0, 1, 2, 3}
    assert worker.quality(found, [[3, 2]], 2)["overlap"] == 1
    assert worker.quality(found, [[0, 4]], 2) == {"overlap": 0, "first": 0}


def test_projection_keeps_what_lies_in_the_main_directions() -> None:
    random = np.random.default_rng(0)
    narrow = [random.standard_normal((n, 8)).astype(np.float32) for n in (5, 9, 3)]
    rotation = np.linalg.qr(random.standard_normal((24, 24)))[0][:8].astype(np.float32)
    wide = [item @ rotation for item in narrow]
    judged = [{"2": 1.0}]
    narrowed = projected(wide, wide[2:], 8, {"judged": judged})
    assert narrowed.documents.shape == (17, 8) and narrowed.exact_numbers[0, 0] == 2
    found = worker.quality(narrowed, [[2, 0, 1]], 3)
    assert found["ndcg_10"] == found["exact_ndcg_10"] == 1


class Encoder:
    """Every text is a number, the number of its embedding."""

    def __init__(self) -> None:
        self.items = embeddings([7, 5, 9, 4], 16)

    def encode_queries(self, texts: list[str], **kwargs: Any) -> cf.PackedTokens:
        return cf.PackedTokens.from_list([self.items[int(text)] for text in texts])

    encode_documents = encode_queries


@pytest.mark.needs("benchmarks")
def test_a_collection_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import accuracy

    monkeypatch.setattr(accuracy, "demo_encoder", Encoder)
    corpus = [{"_id": f"d{i}", "title": "", "text": str(i)} for i in range(4)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "queries.jsonl").write_text("\n".join(json.dumps({"_id": f"q{i}", "text": str(i)}) for i in (2, 1, 0)))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td2\t1\nq1\tabsent\t1\n")
    found = data.of_collection(tmp_path, 2, 16)
    assert found.lengths.tolist() == [7, 5, 9, 4]
    assert found.exact_numbers[:, 0].tolist() == [2, 1]  # each query is a document
    assert found.about["judged"] == [{2: 1.0}, {}]
    found.write(tmp_path / "written")
    assert worker.quality(Data.read(tmp_path / "written"), [[2], [0]], 1)["ndcg_10"] == 1


@pytest.mark.parametrize(("name", "setting"), OURS)
def test_ours_is_measured(name: str, setting: str, made: Data, folder: Path, tmp_path: Path) -> None:
    index = worker.INDEXES[name]
    built = worker.build(made, tmp_path, index) if index.build else {}
    found = {**built, **worker.search(made, tmp_path, index, setting, K, 60)}
    assert found["queries"] == 6
    assert found["overlap"] >= 0.8
    if setting == "certified" or name in ("maxsim float32", "topk float32"):
        assert found["overlap"] == found["first"] == 1
    if name.startswith("topk"):
        assert found["read"] is None
    elif name.startswith("maxsim"):
        assert found["read"] == 300
    elif setting.startswith("candidates"):
        assert found["read"] == int(setting.split()[1])
    else:
        assert K <= found["read"] < 300
    assert index.build is None or found["size"] > made.documents.size / 8


def test_a_run_and_its_report(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Index("gone", "a-package-that-is-not-there", None, {"": lambda data, folder: lambda query, k: ([], None)})
    monkeypatch.setitem(command.INDEXES, "gone", gone)
    work = tmp_path / "work" / "synthetic-300-32-6"
    work.parent.mkdir()
    work.symlink_to(folder)
    options = ["--documents", "300", "--queries", "6", "--dim", "32", "--k", "5", "--python", sys.executable]
    places = ["--work", str(work.parent), "--results", str(tmp_path / "results")]
    assert command.main([*options, *places, "--only", "topk float32", "gone"]) == 0
    (run,) = tables.load(tmp_path / "results")
    first, last = run["rows"]
    assert first["index"] == "topk float32" and first["overlap"] == 1 and first["cpu"]["p50"] > 0
    assert last["failed"] == "a-package-that-is-not-there is not installed"
    text = tables.search([run])
    assert "| **topk float32** |" in text and "| 100.0 % | 100.0 % | - | in memory |" in text
    assert "joined from" not in text and "- Collection int8: not run" in text
    assert "- gone: a-package-that-is-not-there is not installed" in text
    assert tables.scale([run]) == ""

    later = {"date": "2100-01-01T12:30:00Z", "commit": "0123456789abcdef", "dirty": True, "noisy": True}
    monkeypatch.setattr(command, "this_run", lambda: later)
    assert command.main([*options, *places, "--only", "maxsim float32"]) == 0
    (run,) = tables.load(tmp_path / "results")
    assert [row["index"] for row in run["rows"]] == ["maxsim float32", "topk float32", "gone"]
    assert [row["run"] == later for row in run["rows"]] == [True, False, False]
    text = tables.search([run])
    assert "joined from 2 runs: " in text
    assert "commit 0123456789 (dirty), 2100-01-01 12:30, **noisy machine**." in text


def test_a_contender_that_fails_is_reported(folder: Path, tmp_path: Path) -> None:
    (path,) = folder.glob("about.json")
    runner = command.Runner(path.parent, tmp_path / "work", K, 1, 60, [sys.executable])
    broken = Index("broken", "colbert-fast", None, {"": lambda data, folder: lambda query, k: ([], None)})
    # The other process does not know it.
    assert runner.rows(broken)[0]["failed"] == "KeyError: 'broken'"
    slow = command.Runner(path.parent, tmp_path / "work", K, 1, 0.01, [sys.executable])
    assert slow.rows(worker.INDEXES["topk float32"])[0]["failed"] == "more than 0 s"


def test_the_table_of_scale() -> None:
    row = {"index": "Collection int8", "setting": "certified", "ours": True, "in_memory": False, "cpu": {"p50": 0.07}}
    about = {"name": "data", "tokens": 7_000_000, "dim": 128, "query_tokens": 22.0}
    text = tables.scale([{"data": about, "rows": [row]}])
    # 0.07 s for 7,000,000 tokens are 10 ns a token, of 132 bytes.
    assert "| Collection int8, certified | 132 | 10.0 | 0.0700 s | 0.700 s | 7.00 s |" in text
    assert "one core reads 13 GB/s" in text


def test_the_sizes_in_the_documentation() -> None:
    """The guide says how many bytes a token of 128 numbers takes."""
    page = (Path(__file__).parents[1] / "docs" / "collections.md").read_text(encoding="utf-8")
    rows = re.findall(r'^\| `"(int[\d+]+)"`[^|]* \| (\d+) \| ([\d.]+) GB \|', page, re.MULTILINE)
    assert [codes for codes, _, _ in rows] == list(CODES)
    for codes, stored, gigabytes in rows:
        layout = Layout(Options(codes, None, 0), 128, documents=1, tokens=100_000)
        assert int(stored) == layout.size // 100_000
        assert float(gigabytes) == round(layout.size / 100_000 * 70 / 1000, 1)
        # Of two planes a scan reads the first alone.
        assert tables.bytes_read(codes, 128) == (68 if codes == "int4+4" else int(stored))


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "box.json").write_text(json.dumps({"schema": 0}))
    with pytest.raises(ValueError, match="reads schema 2 of a search; got 0"):
        tables.load(tmp_path)
