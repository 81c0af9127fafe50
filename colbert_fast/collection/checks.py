"""What is read from the database, or given by a user, is checked here before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from colbert_fast._codecs import MOST_DIM
from colbert_fast.collection import database
from colbert_fast.collection.layout import CODES, EXACT
from colbert_fast.collection.segments import PATTERN

if TYPE_CHECKING:
    from colbert_fast.collection.reader import Reader

# No segment is larger, so that products of such numbers stay in int64.
_MOST = 1 << 40
_LARGEST_NUMBER = 1 << 62
# SQLite reads no JSON that is nested more than 1000 deep, and then no condition on any document could be tried.
_DEEPEST = 100
# What a condition may name beside the fields of the metadata.
COLUMNS = ("id", "_metadata")


def damaged(folder: str, what: str) -> ValueError:
    """Return an error that names the database."""
    return ValueError(f"{os.path.join(folder, database.NAME)} is damaged: {what}")


def options(found: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the options of a collection, as its database has them, checked."""
    allowed: dict[str, Any] = {"codes": tuple(CODES), "exact": (*EXACT, None)}
    for name, values in allowed.items():
        if name not in found or found[name] not in values:
            raise damaged(folder, f"the option {name} must be one of {values}; got {found.get(name)!r}")
    for name, most in (("seed", _LARGEST_NUMBER), ("dim", MOST_DIM)):
        if not _is_number(found.get(name), most):
            raise damaged(folder, f"the option {name} must be from 0 to {most}; got {found.get(name)!r}")
    return found


def about(found: dict[str, Any], folder: str) -> dict[str, str]:
    """Return the words about a collection, as its database has them, checked."""
    try:
        words = json.loads(found.get("about", "{}"))
    except (TypeError, ValueError, RecursionError) as error:
        raise damaged(folder, f"the option about: {error}") from None
    if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
        raise damaged(folder, f"the option about must be an object of strings; got {words!r:.200}")
    return words


def stored_id(found: Any, number: int, folder: str) -> str:
    """Return the id of a document, as the database has it, checked."""
    if not isinstance(found, str) or "\0" in found:
        raise damaged(folder, f"the id of document {number} is {found!r:.200}")
    return found


def fields(reader: Reader) -> list[str]:
    """Return the names in the metadata of any document, checked."""
    found = [name for (name,) in reader.rows("SELECT name FROM field ORDER BY name")]
    for name in found:
        if not isinstance(name, str):
            raise damaged(reader.folder, f"the name of a field is {name!r:.200}")
    return found


def segments(reader: Reader) -> Iterator[tuple[int, str, int, int, bytes | None]]:
    """Return first, file, documents, tokens and deleted of each segment, in the order of the documents, checked."""
    after = 0
    sql = "SELECT first, file, documents, tokens, deleted FROM segment ORDER BY first"
    for first, file, documents, tokens, deleted in reader.rows(sql):
        if not isinstance(file, str) or not PATTERN.fullmatch(file) or file.endswith(".tmp"):
            raise damaged(reader.folder, f"the file of a segment is {file!r}")
        for name, value in (("documents", documents), ("tokens", tokens)):
            if not _is_number(value, _MOST):
                raise damaged(reader.folder, f"{name} of the segment {file} must be from 0 to {_MOST}; got {value!r}")
        if not _is_number(first, _LARGEST_NUMBER) or first < after:
            raise damaged(reader.folder, f"first of the segment {file} must be {after} or more; got {first!r}")
        after = first + documents
        if deleted is not None:
            _check_deleted(reader.folder, file, documents, deleted)
        yield first, file, documents, tokens, deleted


def _check_deleted(folder: str, file: str, documents: int, deleted: Any) -> None:
    length = (documents + 7) // 8
    if not isinstance(deleted, bytes) or len(deleted) != length:
        raise damaged(folder, f"deleted of the segment {file} must have {length} bytes")
    if documents % 8 and deleted[-1] & ((1 << (8 - documents % 8)) - 1):
        raise damaged(folder, f"deleted of the segment {file} has a bit beyond its {documents} documents")


def _is_number(value: Any, most: int) -> bool:
    return isinstance(value, int) and 0 <= value <= most


def metadata(folder: str, number: int, text: Any) -> dict[str, Any] | None:
    """Return the metadata of a document as they were given."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise damaged(folder, f"the metadata of document {number}: {error}") from None
    if not isinstance(found, dict):
        raise damaged(folder, f"the metadata of document {number} are no object")
    return found


def ids(given: Iterable[str], name: str) -> list[str]:
    """Return ids as a list of str. Raises TypeError or ValueError for what cannot be an id."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        msg = f"{name} must be a list of str; got one {type(given).__name__}"
        raise TypeError(msg)
    found = list(given)
    for i, one in enumerate(found):
        if not isinstance(one, str):
            msg = f"{name} must be str; {name}[{i}] is {type(one).__name__}"
            raise TypeError(msg)
        # SQLite's functions on JSON end a text at a NUL, and UTF-8 has no lone surrogates.
        if "\0" in one or not (one.isascii() or _is_text(one)):
            msg = f"{name}[{i}] must be text without NUL and lone surrogates; got {one!r}"
            raise ValueError(msg)
    return found


def flag(given: Any, name: str) -> bool:
    """Return an argument that must be True or False. Raises TypeError."""
    if not isinstance(given, bool):
        msg = f"{name} must be True or False; got {given!r}"
        raise TypeError(msg)
    return given


def _is_text(one: str) -> bool:
    try:
        one.encode()
    except UnicodeEncodeError:
        return False
    return True


def metadata_text(given: Any, name: str) -> str | None:
    """Return the metadata of one document as JSON, or None. Raises TypeError or ValueError for what JSON cannot say."""
    if given is None:
        return None
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        msg = f"{name} must be a dict with names that are str, or None; got {given!r}"
        raise TypeError(msg)
    for key in given:
        if not _is_text(key):
            msg = f"the names in {name} must be text without lone surrogates; got {key!r}"
            raise ValueError(msg)
        if folded(key) in COLUMNS:
            msg = f"{name} must not have a field {key!r}, because {folded(key)} means another thing in a condition"
            raise ValueError(msg)
    try:
        text = json.dumps(dict(given), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{name} must be what JSON can say, and {_refused(given)!r} is not: {error}"
        raise (TypeError if isinstance(error, TypeError) else ValueError)(msg) from None
    if text.count("{") + text.count("[") > _DEEPEST and _depth(given) > _DEEPEST:
        msg = f"{name} must not be nested more than {_DEEPEST} deep"
        raise ValueError(msg)
    # Names as they are, because SQLite compares them so; lone surrogates in the values escaped, as JSON can say them.
    return text.encode("utf-8", "backslashreplace").decode()


def _refused(given: Mapping[str, Any]) -> str:
    """Return the first field with a value that JSON cannot say."""
    for key, value in given.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            return key
    return ""


def folded(name: str) -> str:
    """Return a name as SQLite compares names of columns: without a difference between the letters A-Z and a-z."""
    if name.isascii():
        return name.lower()
    return "".join(letter.lower() if letter.isascii() else letter for letter in name)


def _depth(value: Any) -> int:
    """Return how deep lists and dicts are nested."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [one.values() if isinstance(one, Mapping) else one for one in level]
        level = [one for some in inner for one in some if isinstance(one, (Mapping, list, tuple))]
    return depth


def metadata_texts(given: Iterable[Any], count: int) -> list[str | None]:
    """Return the metadata of documents as JSON. Raises TypeError or ValueError as ``metadata_text``, or for no list."""
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        msg = f"metadata must be a list, with one entry for each document; got one {type(given).__name__}"
        raise TypeError(msg)
    given = list(given)
    if len(given) != count:
        msg = f"metadata must have one entry for each of {count} documents; got {len(given)}"
        raise ValueError(msg)
    return [metadata_text(one, f"metadata[{i}]") for i, one in enumerate(given)]
