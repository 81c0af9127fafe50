"""Read a collection in the layout of BEIR: corpus.jsonl, queries.jsonl and qrels/{split}.tsv in one folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_beir(
    folder: str | os.PathLike[str], split: str = "test"
) -> tuple[list[dict[str, str]], dict[str, str], dict[str, dict[str, int]]]:
    """Read a collection in the layout of BEIR (Thakur et al., 2021) from a folder. Nothing is downloaded.

    Parameters
    ----------
    folder
        It holds three files in UTF-8:

        - corpus.jsonl: one document on each line, an object with ``_id``, ``text`` and perhaps ``title``;
        - queries.jsonl: one query on each line, an object with ``_id`` and ``text``;
        - qrels/{split}.tsv: the judgements, one on each line: the query's id, the document's id and an integer, with
          tabs between them. The first line may be a header.

        Lines without content are skipped.
    split
        Which judgements are read.

    Returns
    -------
    documents : list of dict
        ``{"id", "title", "text"}`` for each document, in the order of the file. A missing title is "".
    queries : dict
        The text of each query that the split judges, by its id, in the order of the judgements.
    qrels : dict
        For each of these queries, by its id: the judgement of each judged document, by the document's id.

    Raises
    ------
    FileNotFoundError
        The folder or one of its files does not exist. The message lists the splits that exist.
    ValueError
        A line that cannot be read, two lines with one id, or a judged query that is not in queries.jsonl. The message
        names the file and the line.
    """
    folder = Path(folder)
    _check_files(folder, split)
    documents = [
        {"id": name, "title": _text_of(line, "title", where, default=""), "text": _text_of(line, "text", where)}
        for name, line, where in _objects(folder / "corpus.jsonl")
    ]
    texts = {name: _text_of(line, "text", where) for name, line, where in _objects(folder / "queries.jsonl")}
    qrels: dict[str, dict[str, int]] = {}
    for where, query, document, judgement in _judgements(folder / "qrels" / f"{split}.tsv"):
        if query not in texts:
            msg = f"{where}: the query {query!r} is not in queries.jsonl"
            raise ValueError(msg)
        if qrels.setdefault(query, {}).setdefault(document, judgement) != judgement:
            msg = f"{where}: an earlier line has another judgement of the document {document!r} for the query {query!r}"
            raise ValueError(msg)
    return documents, {query: texts[query] for query in qrels}, qrels


def _check_files(folder: Path, split: str) -> None:
    if not folder.is_dir():
        msg = f"the folder {folder} does not exist"
        raise FileNotFoundError(msg)
    names = ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        splits = sorted(path.stem for path in folder.glob("qrels/*.tsv"))
        msg = f"{folder} lacks {', '.join(missing)}; it has judgements for these splits: {splits}"
        raise FileNotFoundError(msg)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines that have content, each with its place: the file and the number of the line."""
    with path.open("rb") as file:  # not as text: a line ends at a newline only, and a bad line has a number
        for number, raw in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                msg = f"{where}: not UTF-8: {error.reason}"
                raise ValueError(msg) from None
            if line.strip():
                yield where, line


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the id, the object and the place of each line of a .jsonl file."""
    places: dict[str, str] = {}
    for where, line in _lines(path):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            msg = f"{where}: not JSON: {error}"
            raise ValueError(msg) from None
        if not isinstance(found, dict):
            msg = f"{where}: a line must be a JSON object with _id and text; got {type(found).__name__}"
            raise ValueError(msg)
        name = found.get("_id")
        if isinstance(name, bool) or not isinstance(name, (str, int)):
            msg = f"{where}: _id must be a string; got {name!r}"
            raise ValueError(msg)
        if (earlier := places.setdefault(str(name), where)) != where:
            msg = f"{where}: the _id {str(name)!r} is already on line {earlier.rpartition(' ')[2]}"
            raise ValueError(msg)
        yield str(name), found, where


def _text_of(line: dict[str, Any], field: str, where: str, default: str | None = None) -> str:
    text = line.get(field)
    text = default if text is None else text
    if not isinstance(text, str):
        msg = f"{where}: {field} must be a string; got {text!r}"
        raise ValueError(msg)
    return text


def _judgements(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """Yield the place, the query's id, the document's id and the judgement of each line of a .tsv file."""
    for index, (where, line) in enumerate(_lines(path)):
        fields = [field.strip() for field in line.split("\t")]
        try:
            query, document, judgement = fields
            number = int(judgement)
        except ValueError:
            if index == 0 and len(fields) == 3 and not any(map(str.isdigit, fields[2])):  # the header
                continue
            msg = f"{where}: a line must be a query's id, a document's id and an integer, with tabs; got {line!r}"
            raise ValueError(msg) from None
        yield where, query, document, number
