"""Which documents a user's condition is true for. The condition is SQL that can only read."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from colbert_fast.collection import checks, database

if TYPE_CHECKING:
    from colbert_fast.collection.reader import Reader

Parameters: TypeAlias = "Sequence[Any] | Mapping[str, Any]"

# What a condition, or this package where it only reads, may do. SQLite asks when it compiles a statement.
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_TRANSACTION}
_FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "edit", "writefile"}
# No field is a column of this name, because a name with quotes is none.
_NUMBER = '"""number"""'
# Text, comments, and names in brackets, backquotes or double quotes. What stands in double quotes is captured.
_QUOTED = re.compile(r"""'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/|\[[^\]]*\]|`[^`]*`|"((?:[^"]|"")*)\"""", re.DOTALL)


def authorize(action: int, first: str | None, second: str | None, schema: str | None, trigger: str | None) -> int:
    """Say to SQLite whether a statement may do something."""
    if action == sqlite3.SQLITE_PRAGMA and first == "integrity_check":
        return sqlite3.SQLITE_OK
    if action not in _ALLOWED or (action == sqlite3.SQLITE_FUNCTION and second in _FORBIDDEN_FUNCTIONS):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def numbers_where(reader: Reader, where: str, parameters: Parameters) -> np.ndarray[Any, Any]:
    """Return the numbers of the documents for which a condition is true, in order.

    Raises
    ------
    ValueError
        A condition that is no SQL, does more than read, or names a field that no document has; parameters that do not
        fit it.
    """
    if not isinstance(where, str):
        msg = f"where must be a condition of SQL as a str; got {type(where).__name__}"
        raise TypeError(msg)
    if not where.strip():
        msg = "where must be one condition of SQL, and it is empty; None means all documents"
        raise ValueError(msg)
    if isinstance(parameters, (str, bytes)) or not isinstance(parameters, (Sequence, Mapping)):
        msg = f"parameters must be a list of values, or a dict; got {parameters!r:.200}"
        raise TypeError(msg)
    fields = checks.fields(reader)
    used = _used(fields, where)
    columns = "".join(f", {_extracted(name)} AS {_quoted(name)}" for name in used)
    inner = f"SELECT number AS {_NUMBER}, id, metadata AS _metadata{columns} FROM document"
    # A comment at the end of the condition ends with its line.
    sql = f"SELECT {_NUMBER} FROM ({inner}) WHERE ({where}\n)"
    try:
        _check_quoted(where, used)
        # A condition that closes our bracket may select a document twice.
        return np.unique(reader.numbers(sql, _values(parameters)))
    except (sqlite3.Error, sqlite3.Warning, TypeError, ValueError, OverflowError) as error:
        if "disk image" in str(error) or "not a database" in str(error) or isinstance(error, UnicodeDecodeError):
            with database.errors(reader.folder):
                raise
        if "JSON" in str(error):
            _check_metadata(reader)
        hint = ""
        if "no such column" in str(error):
            hint = f"; the fields are {', '.join(map(repr, fields[:50]))}" if fields else "; no document has metadata"
            if len({checks.folded(name) for name in fields}) < len(fields):
                hint += "; where two differ in case only, json_extract(_metadata, '$.\"name\"') is one of them"
        if "not authorized" in str(error) or "prohibited" in str(error):
            hint = "; a condition can only read"
        msg = f"where must be one condition of SQL with its parameters; {where!r}: {error}{hint}"
        raise ValueError(msg) from error


def _check_metadata(reader: Reader) -> None:
    """Raise ValueError if SQLite cannot read the metadata of a document, so that no condition can be tried."""
    sql = (
        "SELECT number FROM document WHERE typeof(metadata) NOT IN ('text', 'null') OR NOT json_valid(metadata) LIMIT 1"
    )
    for (number,) in reader.rows(sql):
        raise checks.damaged(reader.folder, f"the metadata of document {number} are no JSON")


def _values(parameters: Parameters) -> Parameters:
    """Return parameters as SQLite takes them. It would take a number of numpy for the bytes in its memory."""

    def plain(value: Any) -> Any:
        return value.item() if isinstance(value, (np.generic, np.ndarray)) else value

    if isinstance(parameters, Mapping):
        return {name: plain(value) for name, value in parameters.items()}
    return [plain(value) for value in parameters]


def is_plain(where: str, parameters: Parameters) -> bool:
    """Return whether a condition and the text of its parameters say all about them. Other objects may look alike."""
    if not isinstance(where, str) or type(parameters) not in (tuple, list, dict):
        return False
    values = parameters.values() if isinstance(parameters, Mapping) else parameters
    return all(value is None or type(value) in (int, float, str, bytes) for value in values)


def _check_quoted(where: str, used: Sequence[str]) -> None:
    """Raise ValueError for a name in double quotes that is no column: SQLite would take it for text.

    A condition with a SELECT may have given names to things of its own.
    """
    if re.search("select", where, re.IGNORECASE):
        return
    known = {checks.folded(name) for name in (*used, *checks.COLUMNS)}
    for match in _QUOTED.finditer(where):
        if match[1] is not None and checks.folded(match[1]) not in known:
            msg = f"no such column: {match[1]}, and text stands in single quotes"
            raise ValueError(msg)


def _used(fields: Sequence[str], where: str) -> list[str]:
    """Return the fields that a condition may name. SQLite does not tell upper from lower case in names."""
    text = checks.folded(where)
    # Most of many fields are no part of the text at all, which is found out much faster than whether they are words.
    named = [(name, one) for name in fields if name and (one := checks.folded(name)) in text and _is_word(one, text)]
    times = Counter(one for _, one in named)
    return [
        name
        for name, one in named
        if times[one] == 1 and one not in checks.COLUMNS and '"' not in name and "\0" not in name
    ]


def _is_word(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _path(name: str) -> str:
    # As JSON has it, because SQLite compares the names as they are written.
    escaped = json.dumps(name, ensure_ascii=False).replace("'", "''")
    return f"'$.{escaped}'"


def _extracted(name: str) -> str:
    return f"json_extract(metadata, {_path(name)})"


def _quoted(name: str) -> str:
    return f'"{name}"'
