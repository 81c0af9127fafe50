"""colbert-fast rank: what it reads, the rankings that it writes, and files that are whole or not there."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_collection import DOCUMENTS, OPTIONS, QUERIES, Command, texts_of_documents

import colbert_fast as cf
from colbert_fast import cli
from colbert_fast.cli import embedding, output, texts
from colbert_fast.models import ColBERT

full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


@pytest.fixture(scope="module")
def words(model: Path, files: Path) -> list[object]:
    """The command that ranks the whole collection."""
    return ["rank", files / "queries.jsonl", files / "corpus.jsonl", "--model", model, *OPTIONS]


@pytest.fixture(scope="module")
def scores(model: Path) -> torch.Tensor:
    """The score of every document for every query, without the command."""
    encoder = ColBERT(model, embedding_size=None, device="cpu")
    queries = encoder.encode_queries([*QUERIES.values(), "wind"])
    return cf.maxsim(queries, encoder.encode_documents(texts_of_documents()))


def best(scores: torch.Tensor, k: int) -> list[list[tuple[str, float]]]:
    names = list(DOCUMENTS)
    values, numbers = scores.sort(dim=1, descending=True, stable=True)
    return [
        [(names[n], v) for n, v in zip(row[:k], row_values[:k], strict=True)]
        for row, row_values in zip(numbers.tolist(), values.tolist(), strict=True)
    ]


def parsed(run: str) -> list[list[tuple[str, float]]]:
    rows: dict[str, list[tuple[str, float]]] = {}
    for line in run.splitlines():
        query, q0, name, rank, score, tag = line.split(" ")
        rows.setdefault(query, []).append((name, float(score)))
        assert (q0, int(rank), tag) == ("Q0", len(rows[query]), "colbert-fast")
    assert list(rows) == [*QUERIES, "q4"]
    return list(rows.values())


def close(found: list[list[tuple[str, float]]], expected: list[list[tuple[str, float]]]) -> None:
    assert [[name for name, _ in row] for row in found] == [[name for name, _ in row] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert [score for _, score in row] == pytest.approx([score for _, score in other], rel=1e-5)


@pytest.mark.parametrize("shard", [2, 3, 512])
def test_exact_search(
    shard: int, words: list[object], scores: torch.Tensor, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "SHARD", shard)
    monkeypatch.setattr(embedding, "_PIECE", 2)
    close(parsed(command(*words, "--k", 3)), best(scores, 3))
    close(parsed(command(*words, "--k", "9" * 30)), best(scores, 7))
    found = json.loads(command(*words, "--format", "json"))
    assert [row["query"] for row in found] == [*QUERIES, "q4"]
    close([[(hit["id"], hit["score"]) for hit in row["results"]] for row in found], best(scores, 100))
    lines = command(*words, "--format", "jsonl", "--backend", "torch").splitlines()
    assert [[hit["id"] for hit in json.loads(line)["results"]] for line in lines] == [
        [hit["id"] for hit in row["results"]] for row in found
    ]


RUN = "q1 Q0 d7 1 9 x\nq1\tQ0\td2\t2\t8\tx\r\n\nq3 Q0 d5 1 1 x\nq3 Q0 d1 7 0 x\nq3 Q0 d4 8 0 x\n"
CHOSEN = [["d7", "d2"], [], ["d5", "d1", "d4"], []]


def reranked(command: Command, words: list[object], run: Path, k: int) -> list[list[tuple[str, float]]]:
    out, err = command.both(*words, "--candidates", run, "--k", k, "--format", "jsonl")
    assert err == f"colbert-fast: warning: 2 of 4 queries have no candidates in {run}\n"
    return [[(hit["id"], hit["score"]) for hit in json.loads(line)["results"]] for line in out.splitlines()]


def of_candidates(scores: torch.Tensor, k: int) -> list[list[tuple[str, float]]]:
    rows = best(scores, len(DOCUMENTS))
    return [[hit for hit in row if hit[0] in names][:k] for row, names in zip(rows, CHOSEN, strict=True)]


@pytest.mark.parametrize("shard", [2, 512])
def test_reranking(
    shard: int,
    words: list[object],
    scores: torch.Tensor,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding, "SHARD", shard)
    (tmp_path / "run").write_text(RUN)
    for k in (1, 2, 100):
        close(reranked(command, words, tmp_path / "run", k), of_candidates(scores, k))


def test_reranking_where_some_shards_are_kept(
    words: list[object],
    scores: torch.Tensor,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The candidates that are in no kept shard come from all over the corpus."""
    monkeypatch.setattr(embedding, "SHARD", 3)
    (tmp_path / "run").write_text(RUN)
    cache = tmp_path / "cache"
    command(*words, "--cache", cache)
    kept = sorted(cache.glob("documents-*"))
    assert len(kept) == 3
    for lost in itertools.combinations(kept, 2):
        some = tmp_path / "-".join(path.name[10:18] for path in lost)
        shutil.copytree(cache, some, ignore=lambda folder, names, lost=lost: [path.name for path in lost])
        close(reranked(command, [*words, "--cache", some], tmp_path / "run", 100), of_candidates(scores, 100))


def test_a_run_from_standard_input(words: list[object], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name it. A TREC run without results has no line, not even an empty one."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b" \n")))
    said = "colbert-fast: warning: 4 of 4 queries have no candidates in standard input\n"
    assert command.both(*words, "--candidates", "-") == ("", said)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\nq1 d1\n")))
    assert command.refused(*words, "--candidates", "-").startswith("standard input, line 2: a line must have 6 columns")


def test_equal_scores_keep_the_order_of_the_documents(
    model: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "SHARD", 3)
    (tmp_path / "q").write_text("rome\n")
    (tmp_path / "c").write_text("paris\nthe same text\n" + "the same text\n" * 8)
    found = json.loads(command("rank", tmp_path / "q", tmp_path / "c", "--model", model, *OPTIONS, "--format", "json"))
    names = [hit["id"] for hit in found[0]["results"] if hit["id"] != "1"]
    assert names == [str(number) for number in range(2, 11)]


class TestWhatIsRead:
    def test_the_three_formats(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(
            b'\xef\xbb\xbf{"_id": "a", "title": "T", "text": "x"}\r\n\r\n'
            b'{"id": 7, "text": "caf\xc3\xa9"}\n{"_id": "c", "title": null, "text": ""}'
        )
        assert texts.read(str(tmp_path / "a.jsonl")) == (["a", "7", "c"], ["T x", "caf\xe9", ""])
        (tmp_path / "a.TSV").write_bytes(b"\xef\xbb\xbfid\ttext\r\na\tx\ty \r\n \nb\t\n")
        assert texts.read(str(tmp_path / "a.TSV")) == (["a", "b"], ["x\ty ", ""])
        # Not each of these ends a line.
        (tmp_path / "a.txt").write_bytes("one\u2028two\x0b\r\n\n  \nthree\rfour".encode())
        assert texts.read(str(tmp_path / "a.txt")) == (["1", "4"], ["one\u2028two\x0b", "three\rfour"])
        assert texts.read(str(tmp_path / "a.txt"), "text").ids == ["1", "4"]
        assert texts.read(str(tmp_path / "a.jsonl"), "text").ids == ["1", "3", "4"]

    def test_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xc3\xa9\n\nb\n"), "ascii"))
        assert texts.read("-") == (["1", "3"], ["caf\xe9", "b"])
        monkeypatch.setattr(sys, "stdin", None)
        with pytest.raises(OSError, match="standard input is closed"):
            texts.read("-")

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("c.jsonl", b'{"_id": "a", "text": "x"}\n{"_id": "b", ', "line 2: not JSON: "),
            ("c.jsonl", b'{"_id": "a", "text": "x"}\n\n["b"]', "line 3: must be a JSON object with _id (or id) and"),
            ("c.jsonl", b'{"text": "x"}', "line 1: _id (or id) must be a string; got None"),
            ("c.jsonl", b'{"_id": "", "text": "x"}', "line 1: _id (or id) must be a string; got ''"),
            ("c.jsonl", b'{"_id": true, "text": "x"}', "line 1: _id (or id) must be a string; got True"),
            ("c.jsonl", b'{"_id": "a"}', "line 1: text must be a string; got None"),
            ("c.jsonl", b'{"_id": "a", "text": ["x"]}', "line 1: text must be a string; got ['x']"),
            ("c.jsonl", b'{"_id": "a", "title": 1, "text": "x"}', "line 1: title must be a string; got 1"),
            ("c.jsonl", b'{"_id": "a", "text": "\\ud800"}', "line 1: text must be Unicode text; it has half of a surr"),
            (
                "c.jsonl",
                b'{"_id": "\\ud800", "text": ""}',
                "line 1: _id (or id) must be Unicode text; it has half of a",
            ),
            ("c.jsonl", b'{"_id": 1, "text": "x"}\n{"id": "1", "text": ""}', "line 2: the id '1' is already on line 1"),
            ("c.jsonl", b"[" * 100_000, "line 1: "),
            ("c.tsv", b"a\tx\nb x\n", "line 2: must be an id, a tab and a text"),
            ("c.tsv", b"\tx\n", "line 1: must be an id, a tab and a text"),
            ("c.tsv", b"a\tx\n\na\ty\n", "line 3: the id 'a' is already on line 1"),
            ("c.txt", b"x\n\xff\n", "line 2: not UTF-8: invalid start byte at byte 0"),
            ("c.txt", b"", " holds no text"),
            ("c.txt", b"\xef\xbb\xbf\r\n \n", " holds no text"),
            ("c.tsv", b"id\ttext\n", " holds no text"),
        ],
    )
    def test_bad_files(self, name: str, content: bytes, said: str, tmp_path: Path, command: Command) -> None:
        (tmp_path / name).write_bytes(content)
        (tmp_path / "q").write_text("x\n")
        path = tmp_path / name
        expected = f"{path}{said if said.startswith(' ') else ', ' + said}"
        assert command.refused("rank", tmp_path / "q", path, "--model", "absent").startswith(expected)

    def test_a_file_that_cannot_be_read_to_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken() -> Iterator[bytes]:
            yield b"one\n"
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=broken()))
        with pytest.raises(OSError, match=r"^cannot read standard input: Input/output error$"):
            texts.read("-")

    def test_missing_files(self, files: Path, tmp_path: Path, command: Command) -> None:
        good, absent = files / "corpus.jsonl", tmp_path / "absent"
        said = f"cannot read {absent}: No such file or directory"
        assert command.refused("rank", absent, good, "--model", "x") == said
        assert command.refused("rank", good, absent, "--model", "x") == said
        assert command.refused("rank", good, good, "--model", "x", "--candidates", absent) == said
        assert command.refused("rank", good, tmp_path, "--model", "x") == f"cannot read {tmp_path}: Is a directory"
        assert command.refused("rank", "-", "-", "--model", "x") == "only one file can be standard input"

    @pytest.mark.parametrize(
        ("run", "said"),
        [
            (
                "q1 Q0 d1 1 2 x\nq1 Q0 d2 2 1",
                "line 2: a line must have 6 columns, query Q0 document rank score tag; go",
            ),
            ("q9 Q0 d1 1 2 x", "line 1: the query 'q9' is not in the file of queries"),
            ("\nq1 Q0 d9 1 2 x", "line 2: the document 'd9' is not in the file of texts"),
            ("q1 Q0 d1 1 2 x\nq1 Q0 d1 2 1 x", "line 2: an earlier line has the document 'd1' for the query 'q1'"),
        ],
    )
    def test_bad_runs(self, run: str, said: str, files: Path, tmp_path: Path, command: Command) -> None:
        (tmp_path / "run").write_text(run)
        words = ["rank", files / "queries.jsonl", files / "corpus.jsonl", "--model", "x"]
        found = command.refused(*words, "--candidates", tmp_path / "run")
        assert found.startswith(f"{tmp_path / 'run'}, {said}")

    def test_ids_that_a_run_cannot_hold(self, tmp_path: Path, command: Command) -> None:
        (tmp_path / "c.tsv").write_text("a b\tx\n")
        (tmp_path / "q").write_text("x\n")
        said = command.refused("rank", tmp_path / "q", tmp_path / "c.tsv", "--model", "x")
        assert said == "the id 'a b' of a document has white space, which a TREC run cannot hold; --format json can"


class TestModels:
    def test_unknown_models(self, files: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        good = files / "queries.jsonl"
        assert "no folder './absent'" in command.refused("rank", good, good, "--model", "./absent")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "'no/such-model'" in command.refused("rank", good, good, "--model", "no/such-model")

    def test_bad_options(self, words: list[object], command: Command) -> None:
        assert command.refused(*words, "--backend", "bogus").startswith("no backend is called 'bogus'; there are cpu, ")
        said = command.refused(*words, "--encoder-dtype", "int8")
        assert said.startswith("--encoder-dtype int8 needs --encoder-backend onnx or --encoder-backend openvino")
        assert command.refused(*words, "--encoder-dtype", "bf16") == (
            "--encoder-dtype must be \"bfloat16\" in full; got 'bf16'"
        )
        assert command.refused(*words, "--device", "bogus").startswith("device must be one that torch can use here")
        assert command.refused(*words, "--max-length-query", "1000").startswith("max_length_query must be at most")
        if not torch.cuda.is_available():
            assert command.refused(*words, "--backend", "triton").startswith("backend 'triton' cannot score ")

    def test_what_was_cut_is_told_once(
        self, words: list[object], command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedding, "SHARD", 2)
        _, err = command.both(*words, "--max-length-document", 8)
        (line,) = err.splitlines()
        assert line.startswith("colbert-fast: warning: 6 documents were cut to 8 tokens: the longest has ")

    def test_prefixes_and_lengths_are_heard(self, model: Path, words: list[object], command: Command) -> None:
        encoder = ColBERT(model, embedding_size=None, device="cpu", query_prefix="the ", document_prefix="in ")
        expected = cf.maxsim(
            encoder.encode_queries([*QUERIES.values(), "wind"]), encoder.encode_documents(texts_of_documents())
        )
        found = command(*words, "--query-prefix", "the ", "--document-prefix", "in ")
        close(parsed(found), best(expected, 100))


class TestOutput:
    def test_the_file_is_the_text(self, words: list[object], tmp_path: Path, command: Command) -> None:
        (tmp_path / "real").write_text("old")
        (tmp_path / "real").chmod(0o640)
        (tmp_path / "link").symlink_to(tmp_path / "real")
        assert command(*words, "--output", tmp_path / "link") == ""
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real").read_text() == command(*words)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]

    def test_where_nothing_can_be_written(self, files: Path, tmp_path: Path, command: Command) -> None:
        """The command says so at once, not after it has loaded a model."""
        words = ["rank", files / "queries.jsonl", files / "corpus.jsonl", "--model", "absent", "--output"]
        assert command.refused(*words, tmp_path) == f"cannot write {tmp_path}: it is a folder"
        absent = tmp_path / "absent"
        assert (
            command.refused(*words, absent / "x") == f"cannot write {absent / 'x'}: the folder {absent} does not exist"
        )
        long = tmp_path / ("x" * 300)
        assert command.refused(*words, long).startswith(f"cannot write {long}: ")

    @full_disk
    def test_a_full_device(self, words: list[object], command: Command) -> None:
        said = command.refused(*words, "--output", "/dev/full")
        assert said == "cannot write /dev/full: No space left on device"
        assert not Path("/dev/full").is_file()

    def test_an_error_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "run"
        path.write_text("old")
        with pytest.raises(KeyboardInterrupt), output.whole_file(path) as beside:
            beside.write_text("half")
            raise KeyboardInterrupt
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

    @pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")
    @pytest.mark.parametrize("place", ["fsync", "replace"])
    def test_a_kill_leaves_no_half_file(self, place: str, tmp_path: Path) -> None:
        script = f"""
import os, signal
from pathlib import Path
from colbert_fast.cli import output
os.{place} = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
output.write_file(Path("run"), "text")
"""
        root = str(Path(cf.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": root}
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
        (left,) = tmp_path.iterdir()
        assert left.name.startswith("run.") and left.suffix == ".part"


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["rank", "--help"])
    out = capsys.readouterr().out
    for name in ("--candidates", "--cache", "--embedding-size", "--max-length-query", "--document-prefix", "--device"):
        assert name in out
