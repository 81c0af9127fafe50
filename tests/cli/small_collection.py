"""A tiny encoder and a tiny collection in the layout of BEIR, for tests of the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import colbert_fast as cf
from colbert_fast import cli
from colbert_fast.models import ColBERT

DOCUMENTS = {
    "d1": ("berlin", "berlin is the capital of germany."),
    "d2": ("", "paris! the capital of france is paris."),
    "d3": ("bananas", "bananas are rich in potassium"),
    "d4": ("", ""),
    "d5": ("rome", "all roads lead to rome"),
    "d6": ("", "the moon and the tides"),
    "d7": ("", "a wing in the wind"),
}
QUERIES = {"q1": "capital of france", "q2": "rich bananas", "q3": "tides"}
QRELS = {"q1": {"d2": 1, "d1": 1}, "q2": {"d3": 2}, "q3": {"d6": 1, "absent": 1}}
# The tiny transformer's own states. A new projection would be another one at each load.
OPTIONS = ["--embedding-size", "none", "--device", "cpu"]


def jsonl(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def save_collection(folder: Path) -> Path:
    """Write DOCUMENTS, QUERIES and QRELS, and a query that nobody has judged."""
    corpus = ({"_id": name, "title": title, "text": text} for name, (title, text) in DOCUMENTS.items())
    (folder / "corpus.jsonl").write_text(jsonl(corpus))
    queries = {**QUERIES, "q4": "wind"}
    (folder / "queries.jsonl").write_text(jsonl({"_id": name, "text": text} for name, text in queries.items()))
    (folder / "qrels").mkdir()
    rows = [f"{query}\t{name}\t{grade}\n" for query, judged in QRELS.items() for name, grade in judged.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return folder


def texts_of_documents() -> list[str]:
    return [f"{title} {text}".strip() for title, text in DOCUMENTS.values()]


def counted(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Return a list that grows by each call that embeds; one of them may be interrupted."""
    calls: list[int] = []
    encode = ColBERT.encode_packed

    def counting(self: ColBERT, texts: list[str], **options: Any) -> cf.PackedTokens:
        calls.append(len(texts))
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return encode(self, texts, **options)

    monkeypatch.setattr(ColBERT, "encode_packed", counting)
    return calls


class Command:
    """Runs commands in this process, and says what they wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object, status: int = 0) -> str:
        """Return standard output. The command must end with this status, and be silent where it is 0."""
        out, err = self.both(*arguments, status=status)
        assert err == ""
        return out

    def both(self, *arguments: object, status: int = 0) -> tuple[str, str]:
        self._capsys.readouterr()
        assert cli.main([str(argument) for argument in arguments]) == status, self._capsys.readouterr()
        return tuple(self._capsys.readouterr())

    def refused(self, *arguments: object) -> str:
        """Return the one line that a command says to its user's mistake."""
        out, err = self.both(*arguments, status=2)
        assert out == "" and len(err.splitlines()) == 1 and err.startswith("colbert-fast: ")
        return err.removeprefix("colbert-fast: ").rstrip("\n")
