"""colbert-fast evaluate: the measures of encoders and of BM25, and a run that goes on where another one ended."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import bm25s
import ir_measures
import numpy as np
import pytest
import Stemmer
import torch
from disks import full_disk
from encoders.tiny import save_model
from small_collection import (
    DOCUMENTS,
    OPTIONS,
    QRELS,
    QUERIES,
    Command,
    counted,
    save_collection,
    texts_of_documents,
)

import colbert_fast as cf
from colbert_fast import cli
from colbert_fast.cli import bm25, embedding, measures
from colbert_fast.models import ColBERT

# One judged document is not in the corpus.
ABSENT = "colbert-fast: warning: judged documents that are not in corpus.jsonl: 1, such as 'absent'\n"
MODULE = [sys.executable, "-m", "colbert_fast"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_model(tmp_path_factory.mktemp("first")), save_model(tmp_path_factory.mktemp("second"), seed=1)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "collection").mkdir()
    return save_collection(tmp_path / "collection")


def judged(command: Command, *arguments: object) -> dict[str, Any]:
    out, err = command.both("evaluate", *arguments, "--json")
    assert err == ABSENT
    return json.loads(out)


def expected(model: Path, depth: int, candidates: list[list[int]] | None = None) -> dict[str, float]:
    """The measures of all scores, by ir-measures itself."""
    encoder = ColBERT(model, embedding_size=None, device="cpu")
    scores = cf.maxsim(encoder.encode_queries(QUERIES.values()), encoder.encode_documents(texts_of_documents()))
    run: dict[str, dict[str, float]] = {}
    for place, (query, row) in enumerate(zip(QUERIES, scores.tolist(), strict=True)):
        chosen = [n for n in range(len(row)) if candidates is None or n in candidates[place]]
        best = sorted(chosen, key=lambda n: -row[n])[:depth]
        run[query] = {list(DOCUMENTS)[n]: row[n] for n in best}
    names = [ir_measures.parse_measure(name) for name in measures.DEFAULT if depth >= 100 or "100" not in name]
    return {str(name): value for name, value in ir_measures.calc_aggregate(names, QRELS, run).items()}


@pytest.mark.parametrize("shard", [2, 512])
def test_several_encoders(
    shard: int, models: tuple[Path, Path], files: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "SHARD", shard)
    words = [files, "--model", models[0], "--model", models[1], *OPTIONS]
    found = judged(command, *words)
    facts = {name: found[name] for name in ("split", "documents", "queries", "judgements", "first_stage", "depth")}
    assert facts == {
        "split": "test",
        "documents": 7,
        "queries": 3,
        "judgements": 5,
        "first_stage": "none",
        "depth": 100,
    }
    assert [row["name"] for row in found["rows"]] == list(map(str, models))
    for row, model in zip(found["rows"], models, strict=True):
        assert row["measures"] == pytest.approx(expected(model, 100))
        assert row["encode"] > 0 and row["search"] > 0
    assert found["rows"][0]["measures"] != found["rows"][1]["measures"]
    out, _ = command.both("evaluate", *words)
    first, head, *rows = out.splitlines()
    assert first == "7 documents, 3 queries (test), all documents ranked"
    assert head.split() == [*measures.DEFAULT, "encode", "search"]
    for line, row in zip(rows, found["rows"], strict=True):
        assert line.split()[:4] == [row["name"], *(f"{value:.4f}" for value in row["measures"].values())]


def test_reranking_of_bm25(models: tuple[Path, Path], files: Path, tmp_path: Path, command: Command) -> None:
    metrics = ["--metrics", "nDCG@10", "RR@10", "nDCG@10"]
    words = [files, "--first-stage", "bm25", "--depth", 10, *metrics]
    assert [row["name"] for row in judged(command, *words)["rows"]] == ["bm25"]
    runs = tmp_path / "runs"
    found = judged(
        command, *words, "--depth", 3, "--metrics", "RR", "--model", models[0], *OPTIONS, "--run-output", runs
    )
    candidates = [[n for n, _ in row] for row in bm25.search(list(QUERIES.values()), texts_of_documents(), 3)]
    assert [row["name"] for row in found["rows"]] == ["bm25", str(models[0])]
    assert found["rows"][1]["measures"]["RR"] == pytest.approx(expected(models[0], 3, candidates)["RR@10"])
    # The run files say the same as the measures.
    (other,) = {path.name for path in runs.iterdir()} - {"bm25.trec"}
    for name, row in zip(("bm25.trec", other), found["rows"], strict=True):
        run = list(ir_measures.read_trec_run(str(runs / name)))
        assert len(run) == 9
        value = ir_measures.calc_aggregate([ir_measures.RR], QRELS, run)[ir_measures.RR]
        assert value == pytest.approx(row["measures"]["RR"])


def test_equal_scores_are_measured_as_in_the_run_file(
    models: tuple[Path, Path], files: Path, tmp_path: Path, command: Command
) -> None:
    """ir-measures has an order of its own for equal scores. The measures are those that it finds in the file."""
    with (files / "corpus.jsonl").open("a") as file:
        file.writelines(json.dumps({"_id": f"{name}copy", "text": "a wing"}) + "\n" for name in "adz")
    (files / "queries.jsonl").write_text('{"_id": "q1", "text": "a wing"}\n')
    (files / "qrels" / "test.tsv").write_text("q1\tdcopy\t2\nq1\tzcopy\t-1\nq1\td1\t0\n")
    model = tmp_path / ("long" * 50) / "model"
    model.parent.mkdir()
    model.symlink_to(models[0])
    words = ["evaluate", files, "--first-stage", "bm25", "--model", model, *OPTIONS, "--run-output", tmp_path / "runs"]
    found = json.loads(command(*words, "--json", "--metrics", "RR", "nDCG@3"))
    paths = sorted((tmp_path / "runs").iterdir(), key=lambda path: path.name != "bm25.trec")
    for path, row in zip(paths, found["rows"], strict=True):
        run = list(ir_measures.read_trec_run(str(path)))
        qrels = {"q1": {"dcopy": 2, "zcopy": -1, "d1": 0}}
        expected = ir_measures.calc_aggregate([ir_measures.RR, ir_measures.nDCG @ 3], qrels, run)
        assert row["measures"] == {str(measure): pytest.approx(value) for measure, value in expected.items()}


def test_bm25_is_that_of_bm25s() -> None:
    texts = [*texts_of_documents(), "running runners ran a capital run", "the of and", "tides " * 50]
    queries = ["the running tides", "capitals of france", "unknown", "", "the"]
    stemmer = Stemmer.Stemmer("english")
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    for k in (1, 3, len(texts), 100):
        found = bm25.search(queries, texts, k)
        assert [len(row) for row in found] == [min(k, len(texts))] * len(queries)
        for query, row in zip(queries, found, strict=True):
            words = bm25s.tokenize(query, stopwords="en", stemmer=stemmer, show_progress=False, return_ids=False)[0]
            known = [word for word in words if word in index.vocab_dict]
            scores = index.get_scores(known) if known else np.zeros(len(texts))
            order = np.argsort(-scores, kind="stable")[:k]
            assert row == list(zip(order.tolist(), scores[order].tolist(), strict=True))
    assert bm25.search(["x"], ["", "the"], 5) == [[(0, 0.0), (1, 0.0)]]


class TestCache:
    def test_a_second_run_reads_it(
        self,
        models: tuple[Path, Path],
        files: Path,
        tmp_path: Path,
        command: Command,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(embedding, "SHARD", 3)
        words = [files, "--model", models[0], *OPTIONS, "--cache", tmp_path / "cache"]
        found = judged(command, *words)
        files_of_first = sorted(path.name for path in (tmp_path / "cache").iterdir())
        assert [name.partition("-")[0] for name in files_of_first] == ["documents"] * 3 + ["queries"]
        calls = counted(monkeypatch)
        assert judged(command, *words)["rows"][0]["measures"] == found["rows"][0]["measures"]
        reranked = judged(command, *words, "--first-stage", "bm25", "--depth", 2, "--metrics", "RR")
        assert calls == [] and len(reranked["rows"]) == 2
        # Another model, other settings and other texts share nothing with it.
        judged(command, *words, "--model", models[1])
        assert len(calls) == 4
        judged(command, *words, "--max-length-query", 11)
        assert len(calls) == 8
        (files / "queries.jsonl").write_text((files / "queries.jsonl").read_text().replace("tides", "moon"))
        judged(command, *words)
        assert len(calls) == 9

    def test_it_goes_on_where_it_was_stopped(
        self,
        models: tuple[Path, Path],
        files: Path,
        tmp_path: Path,
        command: Command,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(embedding, "SHARD", 2)
        words = ["evaluate", files, "--model", models[0], *OPTIONS, "--cache", tmp_path / "cache"]
        calls = counted(monkeypatch, stop_at=4)
        _, err = command.both(*words, status=130)
        assert err == ABSENT + "colbert-fast: interrupted\n"
        assert len(calls) == 4 and len(list((tmp_path / "cache").iterdir())) == 3
        monkeypatch.undo()
        monkeypatch.setattr(embedding, "SHARD", 2)
        calls = counted(monkeypatch)
        found = judged(command, *words[1:])
        assert len(calls) == 3
        assert found["rows"][0]["measures"] == pytest.approx(expected(models[0], 100))

    def test_damaged_files_are_written_again(
        self, models: tuple[Path, Path], files: Path, tmp_path: Path, command: Command
    ) -> None:
        words = [files, "--model", models[0], *OPTIONS, "--cache", tmp_path / "cache"]
        found = judged(command, *words)
        for path in (tmp_path / "cache").iterdir():
            path.write_bytes(path.read_bytes()[:-1])
        out, err = command.both("evaluate", *words, "--json")
        assert json.loads(out)["rows"][0]["measures"] == found["rows"][0]["measures"]
        assert len(re.findall(r"^colbert-fast: warning: .* is damaged and is written again: ", err, re.MULTILINE)) == 2
        judged(command, *words)

    @pytest.mark.filterwarnings("default")
    def test_a_new_projection_is_not_the_one_before(
        self, models: tuple[Path, Path], files: Path, tmp_path: Path, command: Command
    ) -> None:
        words = ["evaluate", files, "--model", models[0], "--embedding-size", 8, "--cache", tmp_path / "cache"]
        _, err = command.both(*words)
        assert "projection" in err
        command.both(*words)
        assert len(list((tmp_path / "cache").iterdir())) == 4

    def test_a_full_disk(self, models: tuple[Path, Path], files: Path, tmp_path: Path, command: Command) -> None:
        words = ["evaluate", files, "--model", models[0], *OPTIONS, "--cache", tmp_path / "cache"]
        with full_disk():
            _, err = command.both(*words, status=2)
        assert err.startswith(ABSENT + "colbert-fast: cannot write ") and len(err.splitlines()) == 2
        assert list((tmp_path / "cache").iterdir()) == []


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--metrics", "foo"], "no measure 'foo' ("),
            (["--metrics", "nDCG@x"], "no measure 'nDCG@x' ("),
            (["--metrics", "P@0"], "the cutoff of P@0 must be a number of 1 or more; got 0"),
            (
                ["--metrics", "nDCG(cutoff=2.5)"],
                "the cutoff of nDCG(cutoff=2.5) must be a number of 1 or more; got 2.5",
            ),
            (["--metrics", "AP(rel=0)"], "the measure AP(rel=0) cannot be taken: "),
            (["--metrics", "SDCG@5"], "the measure SDCG@5 cannot be taken: "),
            (["--metrics", "R@1000"], "R@1000 needs --depth 1000 or more; got 100"),
            (["--split", "dev"], "lacks qrels/dev.tsv; it has judgements for these splits: ['test']"),
            (["--model", "./absent"], "no folder './absent'"),
            (["--backend", "bogus"], "no backend is called 'bogus'"),
            (["--run-output", "/dev/null/x"], "cannot write /dev/null/x: "),
        ],
    )
    def test_one_line(self, words: list[str], said: str, files: Path, command: Command) -> None:
        out, err = command.both("evaluate", files, "--first-stage", "bm25", *words, status=2)
        assert said in err and out == ""
        assert len(err.splitlines()) == 1

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}', "line 2: "),
            ("corpus.jsonl", '{"_id": "a"}', "line 1: "),
            (
                "corpus.jsonl",
                '{"_id": "a", "text": "\\ud800"}',
                "the document 'a' must be Unicode text; it has half of a",
            ),
            ("corpus.jsonl", "", "has 0 documents, and 3 queries with judgements"),
            ("queries.jsonl", '{"_id": "q1", "text": "x"}', "the query 'q2' is not in queries.jsonl"),
            ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "and 0 queries with judgements"),
            ("qrels/test.tsv", "q1\td1\n", "line 1: "),
        ],
    )
    def test_bad_collections(self, name: str, content: str, said: str, files: Path, command: Command) -> None:
        (files / name).write_text(content)
        assert said in command.refused("evaluate", files, "--first-stage", "bm25")

    def test_usage(self, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for words, said in (
            ([], "give --model M, or --first-stage bm25 for BM25 alone"),
            (["--model", "a", "--model", "a"], "argument --model: 'a' is given twice"),
            (["--model", "bm25", "--first-stage", "bm25"], "bm25 is the name of the first stage; write ./bm25 for"),
            (["--depth", "0"], "argument --depth: must be a number of 1 or more; got '0'"),
        ):
            with pytest.raises(SystemExit, match="2"):
                cli.main(["evaluate", str(files), *words])
            assert said in capsys.readouterr().err

    def test_a_missing_library(self, files: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ir_measures", None)
        said = command.refused("evaluate", files, "--first-stage", "bm25")
        assert said.startswith("colbert-fast evaluate needs ir-measures>=0.3.6 (not installed): pip install 'colbert-f")
        assert said.endswith("[retrieval]'")


@pytest.mark.skipif(os.name != "posix", reason="needs file descriptors of POSIX")
def test_a_closed_pipe_and_a_full_disk(files: Path) -> None:
    words = [*MODULE, "evaluate", str(files), "--first-stage", "bm25"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cf.__file__).parents[1])}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, ABSENT)
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
        said = "colbert-fast: cannot write to standard output: No space left on device\n"
        assert (done.returncode, done.stderr) == (2, ABSENT + said)


def test_progress_on_a_terminal(
    models: tuple[Path, Path], files: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    command("evaluate", files, "--model", models[0], *OPTIONS, "--first-stage", "bm25")
    drawn = sys.stderr.getvalue()
    for what in ("bm25: queries", f"{models[0].name}: queries", f"{models[0].name}: documents"):
        assert what in drawn


@pytest.mark.needs("demo")
def test_the_demo_model(files: Path, command: Command) -> None:
    found = judged(command, files, "--model", "demo", "--device", "cpu")
    assert torch.tensor(list(found["rows"][0]["measures"].values())).min() > 0.5
