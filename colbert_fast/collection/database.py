"""The SQLite database of a collection: ids, metadata, and which segments there are. It is the transaction."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "collection.sqlite"
# "CFco", so that `file` and others can tell the database from another.
APPLICATION = 0x4346636F
VERSION = 1

# Documents are numbered in the order in which they were added; to pack segments together gives them new numbers in
# the same order. A segment holds the numbers from `first` on, one for each of its items, so that nothing need be
# stored or read per document to find it. `deleted` has a bit for each item of the segment, as numpy.packbits makes
# them, or is NULL. What `document` does not have is deleted. `field` has the names in the metadata of any document,
# so that a filter may use them as columns.
_TABLES = {
    "option": "CREATE TABLE option(name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "segment": (
        "CREATE TABLE segment(first INTEGER PRIMARY KEY, file TEXT NOT NULL UNIQUE, documents INTEGER NOT NULL, "
        "tokens INTEGER NOT NULL, checksums TEXT NOT NULL, deleted BLOB)"
    ),
    "document": "CREATE TABLE document(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, metadata TEXT)",
    "field": "CREATE TABLE field(name TEXT PRIMARY KEY) WITHOUT ROWID",
}


def connect(folder: str, *, mode: str, wait: float, isolation: str = "") -> sqlite3.Connection:
    """Open the database.

    Parameters
    ----------
    folder
        Of the collection.
    mode
        "ro", "rw" or "rwc", which makes the file.
    wait
        Seconds to wait for a lock of SQLite.
    isolation
        More for the address, such as ``"&immutable=1"``.
    """
    address = f"{Path(os.path.abspath(folder), NAME).as_uri()}?mode={mode}{isolation}"
    with errors(folder):
        connection = sqlite3.connect(address, timeout=wait, isolation_level=None, check_same_thread=False, uri=True)
        try:
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute("PRAGMA cell_size_check=ON")
            if mode != "ro":
                connection.execute("PRAGMA synchronous=FULL")
                # On a Mac, fsync alone leaves the data in the cache of the disk.
                connection.execute("PRAGMA fullfsync=ON")
                connection.execute("PRAGMA checkpoint_fullfsync=ON")
            return connection
        except BaseException:
            connection.close()
            raise


@contextlib.contextmanager
def errors(folder: str) -> Iterator[None]:
    """Turn an error of SQLite into one that names the file and says what is wrong."""
    path = os.path.join(folder, NAME)
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if isinstance(error, sqlite3.OperationalError):
            if "full" in text:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path) from error
            if "locked" in text:
                msg = f"{path} is locked by another program"
                raise TimeoutError(msg) from error
            if "readonly" in text or "unable to open" in text:
                raise PermissionError(errno.EACCES, text, path) from error
            if "I/O" in text:
                raise OSError(errno.EIO, text, path) from error
        msg = f"{path} is damaged: {text}"
        raise ValueError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{path} is damaged: {error}"
        raise ValueError(msg) from error


def is_blank(connection: sqlite3.Connection, folder: str) -> bool:
    """Return whether the database has no tables yet. Raise ValueError if it is not the database of a collection."""
    path = os.path.join(folder, NAME)
    with errors(folder):
        # One transaction, because another process may make the tables now.
        connection.execute("BEGIN")
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            found = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        # Without the indexes that SQLite makes for UNIQUE, which have no SQL.
        tables = {name: (kind, sql) for kind, name, sql in found if sql is not None}
    if not tables and application == 0:
        return True
    if application != APPLICATION:
        msg = f"{path} must be the database of a collection; its application_id is {application}, not {APPLICATION}"
        raise ValueError(msg)
    if version != VERSION:
        msg = f"{path} must have user_version {VERSION}; it has {version}, so another release of colbert-fast wrote it"
        raise ValueError(msg)
    for name in {**_TABLES, **tables}:
        if tables.get(name) != ("table", _TABLES.get(name)):
            msg = f"{path}: {name} must be {_TABLES.get(name)!r}; got {tables.get(name)!r}"
            raise ValueError(msg)
    return False


def has_log(connection: sqlite3.Connection, folder: str) -> bool:
    """Return whether a database is in the mode in which readers and a writer do not wait for each other."""
    with errors(folder):
        found: tuple[str] = connection.execute("PRAGMA journal_mode").fetchone()
    return found == ("wal",)


def create(connection: sqlite3.Connection, options: dict[str, Any]) -> None:
    """Make the tables, in one transaction."""
    connection.execute("PRAGMA journal_mode=WAL")
    with transaction(connection):
        connection.execute(f"PRAGMA application_id={APPLICATION}")
        connection.execute(f"PRAGMA user_version={VERSION}")
        for sql in _TABLES.values():
            connection.execute(sql)
        connection.executemany("INSERT INTO option VALUES(?, ?)", options.items())


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done inside, durably, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def settled(connection: sqlite3.Connection) -> bool:
    """Return whether no commit that failed comes back.

    When the disk has not confirmed a commit, it has failed, but may be in the log as a whole. Readers do not see it,
    and still a crash would bring it back. The next transaction takes its place in the log, and this is one. On a full
    disk the transaction may have no place, but a commit that came back would have had none either.
    """
    try:
        with transaction(connection):
            connection.execute(f"PRAGMA user_version={VERSION}")  # is written although it stays the same
    except sqlite3.OperationalError as error:
        return "full" in str(error)
    return True
