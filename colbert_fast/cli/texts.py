"""Read queries or a corpus from a file: JSONL, TSV or plain text."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

FORMATS = ("jsonl", "tsv", "text")
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".tsv": "tsv"}
STANDARD_INPUT = "-"
# A TSV file may begin with the names of its columns.
_HEADER = (("id", "text"), ("_id", "text"))


class Texts(NamedTuple):
    """n texts, and the id of each."""

    ids: list[str]
    texts: list[str]


class Record(NamedTuple):
    """One text of a file. ``fields``: the object on a line of JSONL, as it is."""

    id: str
    text: str
    fields: dict[str, Any]


def read(path: str, form: str | None = None) -> Texts:
    """Read the texts of a file, and their ids. For the arguments and the errors see ``records``."""
    found = list(records(path, form))
    return Texts([record.id for record in found], [record.text for record in found])


def records(path: str, form: str | None = None) -> Iterator[Record]:
    """Yield the texts of a file, without holding them.

    Parameters
    ----------
    path
        A file in UTF-8, or "-" for standard input. Lines end in a newline or in a carriage return and a newline. Lines
        without content are skipped.
    form
        "jsonl": an object on each line, with ``_id`` or ``id``, ``text``, and perhaps ``title``, which is put before
        the text. "tsv": an id, a tab and a text. "text": a text; its id is the number of its line. None: by the ending
        of the file's name.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        A line that cannot be read, two lines with one id, or a file without any text. The message names file and line.
    """
    where = shown(path)
    parse = _PARSERS[form or _ENDINGS.get(path[path.rfind(".") :].lower(), "text")]
    places: dict[str, int] = {}
    for number, line in lines(path):
        try:
            found = parse(line, number)
        except (ValueError, RecursionError) as error:
            msg = f"{where}, line {number}: {error}"
            raise ValueError(msg) from None
        if found is None:
            continue
        if (earlier := places.setdefault(found.id, number)) != number:
            msg = f"{where}, line {number}: the id {found.id!r} is already on line {earlier}"
            raise ValueError(msg)
        yield found
    if not places:
        msg = f"{where} holds no text"
        raise ValueError(msg)


def corpus_of(path: str) -> str:
    """Return the file of a corpus: of a folder in the layout of BEIR its corpus.jsonl."""
    return os.path.join(path, "corpus.jsonl") if os.path.isdir(path) else path


def shown(path: str) -> str:
    """Return what messages call a file."""
    return "standard input" if path == STANDARD_INPUT else path


def lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that have content, each with its number."""
    if path == STANDARD_INPUT:
        if sys.stdin is None:
            msg = "standard input is closed"
            raise OSError(msg)
        # As bytes: the locale may not be UTF-8, and a line ends at a newline only, so that a bad line has a number.
        yield from _decoded(sys.stdin.buffer, shown(path))
        return
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}"
        raise OSError(msg) from None
    with file:
        yield from _decoded(file, path)


def document_text(title: str, text: str) -> str:
    """Return what is embedded of a document: its title and its text, with a space between them."""
    return f"{title} {text}" if title and text else title or text


def check_unicode(what: str, text: str) -> None:
    """Raise ValueError for half of a surrogate pair, which JSON can escape and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        msg = f"{what} must be Unicode text; it has half of a surrogate pair"
        raise ValueError(msg) from None


def _decoded(file: Iterable[bytes], where: str) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(_read(file, where), start=1):
        try:
            # The first line may begin with a byte order mark.
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            msg = f"{where}, line {number}: not UTF-8: {error.reason} at byte {error.start}"
            raise ValueError(msg) from None
        if line.strip():
            yield number, line


def _read(file: Iterable[bytes], where: str) -> Iterator[bytes]:
    try:
        yield from file
    except OSError as error:
        msg = f"cannot read {where}: {error.strerror or error}"
        raise OSError(msg) from None


def _of_json(line: str, number: int) -> Record:
    try:
        found = json.loads(line)
    except ValueError as error:
        msg = f"not JSON: {error}"
        raise ValueError(msg) from None
    if not isinstance(found, dict):
        msg = f"must be a JSON object with _id (or id) and text; got {type(found).__name__}"
        raise ValueError(msg)
    name = found.get("_id", found.get("id"))
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        msg = f"_id (or id) must be a string; got {name!r}"
        raise ValueError(msg)
    check_unicode("_id (or id)", str(name))
    title = found.get("title")
    text = document_text(_string("title", "" if title is None else title), _string("text", found.get("text")))
    return Record(str(name), text, found)


def _string(field: str, value: Any) -> str:
    if not isinstance(value, str):
        msg = f"{field} must be a string; got {value!r}"
        raise ValueError(msg)
    check_unicode(field, value)
    return value


def _of_tsv(line: str, number: int) -> Record | None:
    name, tab, text = line.partition("\t")
    if not tab or not name.strip():
        msg = "must be an id, a tab and a text"
        raise ValueError(msg)
    return None if number == 1 and (name, text) in _HEADER else Record(name.strip(), text, {})


def _of_text(line: str, number: int) -> Record:
    return Record(str(number), line, {})


_PARSERS: dict[str, Callable[[str, int], Record | None]] = {
    "jsonl": _of_json,
    "tsv": _of_tsv,
    "text": _of_text,
}
