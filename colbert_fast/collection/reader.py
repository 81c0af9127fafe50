"""A state of the database that stays as it is, whatever writers do: a read transaction that is held open."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from colbert_fast.collection import database, filters

# Connections of the parent, which a fork has copied into this process. SQLite forbids to use or to close them here, so
# a child that reads opens its own.
_FOREIGN: list[sqlite3.Connection] = []
# SQLite looks for signals after so many of its steps, a few times in a hundredth of a second.
_STEPS = 100_000


class Reader:
    """Reads one state of the database, on any thread.

    Parameters
    ----------
    folder
        Of the collection.
    read_only
        Whether the folder may be one that nobody can write to.
    wait
        Seconds to wait for a lock of SQLite.

    Raises
    ------
    FileNotFoundError
        There is no database.
    """

    def __init__(self, folder: str, *, read_only: bool, wait: float) -> None:
        self.folder = folder
        self.process: int = os.getpid()
        self._lock = threading.RLock()
        # What the statement that runs was not allowed to do, and what a signal has raised inside SQLite.
        self._denied: list[Any] = []
        self._caught: list[BaseException] = []
        self._connection = _connection(folder, read_only, wait)
        try:
            self._connection.execute("PRAGMA query_only=ON")
            self.is_blank: bool = database.is_blank(self._connection, folder)
            self.has_log: bool = database.has_log(self._connection, folder)
            # SQLite makes these functions once for a connection, with statements that are then forbidden.
            self.rows("SELECT 1 FROM json_each('[]'), json_tree('[]')")
            self._connection.set_authorizer(_asking(self._denied, self._caught))
            self.rows("BEGIN")
            if not self.is_blank:
                self.rows("SELECT first FROM segment LIMIT 1")  # the transaction begins with what is first read
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Run a statement, which Ctrl-C ends. Python sees a signal only while it runs code of its own."""
        with self._lock:
            self._denied.clear()
            self._caught.clear()
            self._connection.set_progress_handler(_watching(self._caught).__next__, _STEPS)
            try:
                yield
            except sqlite3.DatabaseError as error:
                # SQLite says no more of what was raised where it called Python.
                refused = "not authorized" in str(error) or "prohibited" in str(error)
                if str(error) == "interrupted" or (refused and not self._denied):
                    raise (self._caught[0] if self._caught else KeyboardInterrupt()) from None
                raise

    def rows(self, sql: str, parameters: Any = ()) -> list[Any]:
        """Run a statement that this package wrote, and return its rows."""
        with database.errors(self.folder), self._running():
            return self._connection.execute(sql, parameters).fetchall()

    def numbers(self, sql: str, parameters: Any = ()) -> np.ndarray[Any, Any]:
        """Run a statement that a user may have written a part of, and return its first column, int64 ``[n]``."""
        with self._running():
            found = self._connection.execute(sql, parameters).fetchall()
        return np.fromiter((row[0] for row in found), np.int64, len(found))

    def numbers_of(self, ids: Sequence[str]) -> list[int | None]:
        """Return the numbers of documents by their ids; None where there is no such document."""
        sql = "SELECT id, number FROM document WHERE id IN (SELECT value FROM json_each(?))"
        found = dict(self.rows(sql, (json.dumps(list(ids)),)))
        return [found.get(name) for name in ids]

    def close(self) -> None:
        """Give the state back. In a forked child the connection is the parent's and is left alone."""
        if self.process != os.getpid():
            _FOREIGN.append(self._connection)
        else:
            self._connection.close()

    def __del__(self) -> None:
        # At the end of Python the names of a module may be None. The connection then ends with the process.
        if os is not None and hasattr(self, "_connection"):
            self.close()


def _watching(caught: list[BaseException]) -> Iterator[int]:
    """Yield 0 for ever, and 1 after a signal has raised something."""
    while True:
        try:
            yield 0
        except GeneratorExit:  # nobody asks any more
            return
        except BaseException as error:
            caught.append(error)
            yield 1


def _asking(denied: list[Any], caught: list[BaseException]) -> Callable[..., int]:
    """Return what SQLite asks, without the reader, which must not live as long as its connection."""

    def ask(*words: Any) -> int:
        try:
            answer = filters.authorize(*words)
        except BaseException as error:
            caught.append(error)
            return sqlite3.SQLITE_DENY
        if answer != sqlite3.SQLITE_OK:
            denied.append(words)
        return answer

    return ask


def _connection(folder: str, read_only: bool, wait: float) -> sqlite3.Connection:
    path = os.path.join(folder, database.NAME)
    if not os.path.exists(path):
        msg = f"{folder} holds no collection: there is no {database.NAME}"
        raise FileNotFoundError(msg)
    if not os.path.isfile(path):  # SQLite would wait at a pipe for ever
        msg = f"{path} must be an ordinary file"
        raise ValueError(msg)
    if not read_only:
        return database.connect(folder, mode="rw", wait=wait)
    connection = database.connect(folder, mode="ro", wait=wait)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchall()
        return connection
    except sqlite3.OperationalError as error:
        if "readonly" not in str(error) and "unable to open" not in str(error):
            return connection  # the error comes again, where the file is named
        connection.close()
        # SQLite cannot make its index of the log here. Without a log it needs none.
        log = path + "-wal"
        if os.access(folder, os.W_OK) or (os.path.exists(log) and os.path.getsize(log)):
            msg = f"{path} cannot be read where nothing can be written ({error}): first close it where it is written"
            raise PermissionError(msg) from error
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return connection
    return database.connect(folder, mode="ro", wait=wait, isolation="&immutable=1")
