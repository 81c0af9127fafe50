"""colbert-fast encode into a collection, and search and info of a collection."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import full_disk
from encoders.tiny import save_model
from small_collection import DOCUMENTS, OPTIONS, QUERIES, Command, counted, jsonl, save_collection, texts_of_documents

import colbert_fast as cf
from colbert_fast import cli
from colbert_fast.cli import collecting
from colbert_fast.models import ColBERT


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_collection(tmp_path_factory.mktemp("collection"))
    rows = [
        {"_id": name, "title": title, "text": text, "lang": "de" if name == "d1" else "en", "place": i}
        for i, (name, (title, text)) in enumerate(DOCUMENTS.items())
    ]
    (folder / "corpus.jsonl").write_text(jsonl(rows))
    return folder


@pytest.fixture(scope="module")
def wiki(model: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wiki") / "wiki"
    words = ["encode", files, "--collection", folder, "--model", model, *OPTIONS, "--metadata", "--exact", "float32"]
    assert cli.main([*map(str, words), "--json"]) == 0
    return folder


def holds(folder: Path, encoder: ColBERT, ids: list[str], tolerance: float = 1e-3) -> None:
    """Check that a collection has the embeddings of these documents, in this order."""
    exact = encoder.encode_documents(texts_of_documents())
    with cf.Collection(folder, read_only=True) as collection:
        collection.verify()
        assert collection.ids() == ids
        for name in ids:
            wanted = exact[list(DOCUMENTS).index(name)]
            torch.testing.assert_close(collection[name].float(), wanted, rtol=0, atol=tolerance)


class TestEncode:
    def test_a_folder_in_the_layout_of_beir(
        self, model: Path, encoder: ColBERT, files: Path, tmp_path: Path, command: Command
    ) -> None:
        folder = tmp_path / "wiki"
        words = ["encode", files, "--collection", folder, "--model", model, *OPTIONS]
        out = command(*words, "--codes", "int4+4")
        assert out.startswith(f"{folder}: 7 documents added, 7 in all; ") and " dim 32, int4+4 codes, exact fl" in out
        holds(folder, encoder, list(DOCUMENTS))
        with cf.Collection(folder) as collection:
            assert collection.codes == "int4+4" and collection.exact == "float16" and collection.metadata("d1") is None
            about = collection.about
        assert about["model"] == str(model) and json.loads(about["options"]) == {"embedding_size": None}

    def test_metadata(self, model: Path, files: Path, wiki: Path, tmp_path: Path, command: Command) -> None:
        with cf.Collection(wiki, read_only=True) as collection:
            assert collection.metadata("d1") == {"title": "berlin", "lang": "de", "place": 0}
            assert collection.exact == "float32"
        words = ["encode", files / "corpus.jsonl", "--model", model, *OPTIONS, "--exact", "none", "--collection"]
        command(*words, tmp_path / "x", "--metadata", "text", "absent")
        with cf.Collection(tmp_path / "x") as collection:
            assert collection.metadata("d3") == {"text": "bananas are rich in potassium"} and collection.exact is None

    @pytest.mark.parametrize("from_stdin", [False, True])
    def test_it_goes_on_where_it_was_stopped(
        self,
        from_stdin: bool,
        model: Path,
        encoder: ColBERT,
        files: Path,
        tmp_path: Path,
        command: Command,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(collecting, "_SECONDS", 0)
        monkeypatch.setattr(collecting, "_PIECE", 2)
        folder = tmp_path / "wiki"
        corpus = "-" if from_stdin else files / "corpus.jsonl"
        words = ["encode", corpus, "--format", "jsonl", "--collection", folder, "--model", model, *OPTIONS]

        def given() -> None:
            raw = io.BytesIO((files / "corpus.jsonl").read_bytes())
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))

        given()
        calls = counted(monkeypatch, stop_at=3)
        out, err = command.both(*words, status=130)
        told = f"{folder} has 4 documents; the same command with --resume adds the others"
        assert (out, err) == ("", f"colbert-fast: {told}\ncolbert-fast: interrupted\n")
        holds(folder, encoder, list(DOCUMENTS)[:4])
        given()
        said = command.refused(*words)
        assert said == f"{folder} has 4 of the ids already, such as 'd1'; --resume skips them"
        given()
        facts = json.loads(command(*words, "--resume", "--json"))
        assert (facts["added"], facts["skipped"], facts["documents"]) == (3, 4, 7) and calls[-2:] == [2, 1]
        assert facts["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
        holds(folder, encoder, list(DOCUMENTS))
        assert len(list(folder.glob("*.safetensors"))) == 1
        given()
        assert f"{folder}: 0 documents added, 7 were there, 7 in all; 0 tokens of" in command(*words, "--resume")

    @pytest.mark.filterwarnings("always:.*no ColBERT projection")
    def test_another_model_is_refused(
        self, model: Path, files: Path, wiki: Path, tmp_path: Path, command: Command
    ) -> None:
        words = ["encode", files / "queries.jsonl", "--collection", wiki, "--resume", "--model"]
        said = command.refused(*words, model, *OPTIONS, "--max-length-document", 9)
        assert said.startswith(f"{wiki} has embeddings of another model, or of other settings: '{model}' with")
        assert said.endswith('with {"embedding_size": null, "max_length_document": 9}')
        other = save_model(tmp_path / "other", seed=7)
        assert f"got '{other}' with" in command.refused(*words, other, *OPTIONS)
        with cf.Collection(tmp_path / "x") as collection:
            collection.add(["a"], torch.ones(1, 2, 32))
        out, err = command.both("encode", files, "--collection", tmp_path / "new", "--model", model, status=2)
        assert out == "" and "another one in every search" in err.splitlines()[-1]
        assert not (tmp_path / "new").exists()
        words = ["encode", files / "queries.jsonl", "--collection", tmp_path / "x", "--model", model, *OPTIONS]
        assert command.refused(*words).startswith(f"{tmp_path / 'x'} does not say which model made its embeddings")
        words[3] = wiki
        assert command.refused(*words, "--codes", "int1") == f"{wiki} has codes='int8'; codes cannot become 'int1'"

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ({"_id": "a\0", "text": "x"}, r"ids[0] must be text without NUL and lone surrogates; got 'a\x00'"),
            ({"_id": "a", "text": "x", "size": float("nan")}, "{path}: the text 'a': metadata must be what JSON can"),
            ({"_id": "a"}, "{path}, line 1: text must be a string; got None"),
        ],
    )
    def test_a_bad_line_is_told_at_once(
        self, line: dict[str, Any], said: str, tmp_path: Path, command: Command
    ) -> None:
        path = tmp_path / "c.jsonl"
        path.write_text(jsonl([line]))
        words = ["encode", path, "--collection", tmp_path / "x", "--model", "absent", "--metadata"]
        assert command.refused(*words).startswith(said.format(path=path))
        assert not (tmp_path / "x").exists()

    def test_a_full_disk(self, model: Path, files: Path, tmp_path: Path, command: Command) -> None:
        folder = tmp_path / "wiki"
        cf.Collection(folder).close()
        with full_disk(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("colbert_fast.cli.encoders.about", lambda *_: {})
            command.refused("encode", files, "--collection", folder, "--model", model, *OPTIONS)
        with cf.Collection(folder) as collection:
            assert len(collection) == 0
            collection.verify()

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--output", "x", "--codes", "int8"], "argument --codes: goes with --collection only"),
            (["--output", "x", "--metadata"], "argument --metadata: goes with --collection only"),
            (["--collection", "x", "--queries"], "argument --queries: goes with --output only"),
            (["--collection", "x", "--dtype", "int8"], "argument --dtype: goes with --output only"),
            (["--collection", "x", "--output", "x"], "not allowed with argument"),
            ([], "one of the arguments --collection --output is required"),
        ],
    )
    def test_usage(self, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            cli.main(["encode", "corpus", "--model", "m", *words])
        assert said in capsys.readouterr().err


class TestSearch:
    def test_the_table(self, wiki: Path, command: Command) -> None:
        out = command("search", wiki, *QUERIES.values(), "-k", 2)
        tables = [table.splitlines() for table in out.split("\n\n")]
        assert [table[0] for table in tables] == list(QUERIES.values())
        found = json.loads(command("search", wiki, *QUERIES.values(), "-k", 2, "--json"))
        for table, row in zip(tables, found, strict=True):
            assert table[1] == "  rank    score  id"
            for rank, (line, one) in enumerate(zip(table[2:], row["results"], strict=True), start=1):
                title = one["metadata"]["title"]
                assert line.split() == [str(rank), f"{one['score']:.4f}", one["id"], *title.split()]

    @pytest.mark.parametrize("candidates", [[], ["--candidates", "10"]])
    def test_json(self, candidates: list[str], wiki: Path, encoder: ColBERT, command: Command) -> None:
        found = json.loads(command("search", wiki, *QUERIES.values(), "--json", *candidates))
        documents = encoder.encode_documents(texts_of_documents())
        scores, numbers = cf.topk(encoder.encode_queries(QUERIES.values()), documents, 7)
        assert [row["query"] for row in found] == list(QUERIES.values())
        assert {row["certified"] for row in found} == {not candidates} and all(row["read"] <= 7 for row in found)
        for row, expected, ids in zip(found, scores.tolist(), numbers.tolist(), strict=True):
            assert [one["id"] for one in row["results"]] == [list(DOCUMENTS)[number] for number in ids]
            assert [one["score"] for one in row["results"]] == pytest.approx(expected, rel=1e-5)
            assert row["results"][0]["metadata"]["place"] == ids[0]

    def test_where(self, wiki: Path, command: Command) -> None:
        found = json.loads(command("search", wiki, "capital", "--where", "lang = 'de' OR place > 5", "--json"))
        assert sorted(one["id"] for one in found[0]["results"]) == ["d1", "d7"]
        assert command("search", wiki, "capital", "--where", "lang = 'fr'").endswith("\n  no document\n")
        said = command.refused("search", wiki, "capital", "--where", "nonsense")
        assert (
            said.startswith("where must be one condition of SQL") and "the fields are 'lang', 'place', 'title'" in said
        )

    def test_the_model(self, model: Path, files: Path, wiki: Path, tmp_path: Path, command: Command) -> None:
        own = save_model(tmp_path / "own")
        folder = tmp_path / "x"
        command("encode", files, "--collection", folder, "--model", own, *OPTIONS)
        expected = command("search", folder, "capital", "--device", "cpu")
        # The same model elsewhere.
        assert command("search", folder, "capital", "--model", model, *OPTIONS) == expected
        save_model(own, seed=7)
        said = command.refused("search", folder, "capital")
        wrong = f"the model {own} is not the one that made the embeddings of {folder}, or has other settings"
        assert said == f"{wrong}: its files have changed; --model M takes it in any case"
        out, err = command.both("search", folder, "capital", "--model", own, *OPTIONS)
        assert out != expected and err == f"colbert-fast: warning: {wrong}\n"
        # Options of the user's own are added to those of the collection.
        _, err = command.both("search", wiki, "capital", "--query-prefix", "")
        wrong = f"the model {model} is not the one that made the embeddings of {wiki}, or has other settings"
        assert err == f"colbert-fast: warning: {wrong}\n"
        with cf.Collection(tmp_path / "y") as collection:
            collection.add(["a"], torch.ones(1, 2, 32))
        said = command.refused("search", tmp_path / "y", "capital")
        assert said == f"{tmp_path / 'y'} does not say which model made its embeddings: give --model M"
        assert "  a" in command("search", tmp_path / "y", "capital", "--model", model, *OPTIONS)
        with cf.Collection(tmp_path / "y") as collection:
            collection.describe({"model": str(model), "options": "[]"})
        assert command.refused("search", tmp_path / "y", "x").endswith("options of its model as JSON; got '[]'")

    def test_a_folder_does_not_control_the_terminal(self, wiki: Path, tmp_path: Path, command: Command) -> None:
        folder = shutil.copytree(wiki, tmp_path / "hostile")
        with cf.Collection(folder) as collection:
            collection.add(["\x1b[2J"], torch.ones(1, 2, 32), [{"title": "\x9b31m\x07"}])
        shown = command("search", folder, "capital", "-k", 9)
        assert "\\x1b[2J" in shown and "\\x9b31m\\x07" in shown
        assert all(letter.isprintable() for line in shown.split("\n") for letter in line)
        assert "\x1b[2J" in [one["id"] for one in json.loads(command("search", folder, "x", "--json"))[0]["results"]]

    @pytest.mark.parametrize("name", ["trust_remote_code", "model_kwargs", "device"])
    def test_a_folder_cannot_have_code_run(
        self, name: str, wiki: Path, model: Path, tmp_path: Path, command: Command
    ) -> None:
        """A collection that came from somewhere else names its model, and no more than `encode` would write."""
        folder = shutil.copytree(wiki, tmp_path / "hostile")
        with cf.Collection(folder) as collection:
            collection.describe({**collection.about, "options": json.dumps({"embedding_size": None, name: True})})
        said = command.refused("search", folder, "capital")
        assert said == f"{folder} must keep options of `encode` only for its model; got '{name}'"

    def test_no_collection(self, tmp_path: Path, command: Command) -> None:
        command.refused("search", tmp_path / "absent", "x")
        assert list(tmp_path.iterdir()) == []


def test_info(wiki: Path, model: Path, tmp_path: Path, command: Command) -> None:
    facts = json.loads(command("info", wiki, "--json"))
    assert (facts["documents"], facts["dim"], facts["codes"], facts["exact"]) == (7, 32, "int8", "float32")
    assert facts["model"] == str(model) and facts["bytes"] > facts["tokens"] * 32 * 5
    assert f"model      {model}\n" in command("info", wiki)
    assert cli.main(["info", str(tmp_path / "absent")]) == 1


def test_what_describes_a_collection(tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "x") as collection:
        assert collection.about == {}
        collection.describe({"model": "m", "a": "é"})
        collection.describe({"model": "m"})
        wrong: list[Any] = [["model"], {"a": 1}, {1: "a"}, None]
        for about in wrong:
            with pytest.raises(TypeError, match="about must be a dict of str; got"):
                collection.describe(about)
        with cf.Collection(tmp_path / "x", read_only=True) as other:
            assert other.about == {"model": "m"}
            with pytest.raises(PermissionError, match="read_only=True"):
                other.describe({})


@pytest.mark.parametrize("value", ["[]", '{"model": 1}', "{", 7])
def test_damaged_words(value: object, tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "x") as collection:
        collection.describe({"model": "m"})
    database = sqlite3.connect(tmp_path / "x" / "collection.sqlite")
    with database:
        database.execute("UPDATE option SET value = ? WHERE name = 'about'", (value,))
    database.close()
    with pytest.raises(ValueError, match=r"collection\.sqlite is damaged: the option about"):
        cf.Collection(tmp_path / "x")
