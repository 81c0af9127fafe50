"""What changes a collection: documents are added, deleted, described anew, and packed together.

A change holds the lock of writers. Files are written first, and are safe on the disk; then one transaction of the
database makes them part of the collection. A process that is killed before leaves files that nobody knows, which the
next writer to open the folder removes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from colbert_fast._codecs import MOST_DIM
from colbert_fast.collection import checks, database, parts, segments
from colbert_fast.collection.layout import Layout, Options
from colbert_fast.collection.lock import WriterLock
from colbert_fast.collection.segments import Written
from colbert_fast.collection.snapshot import LiveSegment, Snapshot, unpacked
from colbert_fast.packed import PackedTokens

# A segment has at most so many bytes of tokens in float32, or one document.
SEGMENT_BYTES = 1 << 29
# SQLite's log of changes begins anew when it is about so long.
_LOG_BYTES = 1 << 22
# So many ids are looked up at a time.
_IDS_AT_ONCE = 1 << 14


class Batch:
    """Documents that are added together.

    Parameters
    ----------
    ids
        One for each document.
    tokens
        On the CPU, floating point.
    metadata
        JSON of each document, or None.
    """

    def __init__(self, ids: list[str], tokens: PackedTokens, metadata: list[str | None]) -> None:
        self.ids = ids
        self.tokens = tokens
        self.metadata = metadata

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, first: int, last: int) -> Batch:
        """Return some of the documents."""
        rows = slice(first, last)
        return Batch(self.ids[rows], self.tokens[rows], self.metadata[rows])

    def without_tokens(self) -> Batch:
        """Return the ids and the metadata alone, so that written tokens need no memory."""
        return Batch(self.ids, PackedTokens.from_list([]), self.metadata)


class Writer:
    """Changes a collection.

    Parameters
    ----------
    folder
        Of the collection.
    wait
        Seconds to wait for another writer.
    """

    def __init__(self, folder: str, wait: float) -> None:
        self._folder = folder
        self._wait = wait
        self._lock = WriterLock(folder)

    @contextlib.contextmanager
    def _connected(self, wait: float) -> Iterator[sqlite3.Connection]:
        """Hold the lock and a connection. A connection for each change, so that none outlives a fork."""
        with self._lock.held(wait):
            connection = database.connect(self._folder, mode="rwc", wait=self._wait)
            try:
                yield connection
            finally:
                connection.close()

    @contextlib.contextmanager
    def _writing(self, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        """Hold the lock and a connection, whose errors name the database."""
        with self._connected(self._wait if wait is None else wait) as connection, database.errors(self._folder):
            yield connection

    def create(self, options: Options) -> None:
        """Make the database, unless another process has just made it, or let it keep a log of changes again."""
        with self._writing() as connection:
            if database.is_blank(connection, self._folder):
                segments.check_none(self._folder)
                values = {"codes": options.codes, "exact": options.exact, "seed": options.seed, "dim": 0}
                database.create(connection, values)
                segments.sync_folder(self._folder)
            elif not database.has_log(connection, self._folder):
                connection.execute("PRAGMA journal_mode=WAL")

    def sweep(self) -> None:
        """Remove the files of killed processes, unless somebody writes now."""
        if not any(segments.PATTERN.fullmatch(name) for name in os.listdir(self._folder)):
            return
        with contextlib.suppress(TimeoutError), self._writing(wait=0) as connection:
            known = _files(connection)
            unknown = {name for name in os.listdir(self._folder) if segments.PATTERN.fullmatch(name)} - known
            # A damaged database may have lost a segment that is dear.
            if unknown and _is_sound(connection) and database.settled(connection):
                for name in unknown:
                    self._remove(name)

    def checkpoint(self) -> None:
        """Put a long log into the database, as far as no reader needs the log, unless somebody writes now."""
        log = os.path.join(self._folder, database.NAME + "-wal")
        with contextlib.suppress(OSError):  # a full disk has room for what is committed
            if os.path.getsize(log) > _LOG_BYTES:
                with self._writing(wait=0) as connection:
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _remove(self, file: str) -> None:
        # Windows does not remove a file that a reader has mapped. The next writer that opens the folder does.
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, file))

    @contextlib.contextmanager
    def _committing(self, connection: sqlite3.Connection, written: Sequence[Written]) -> Iterator[None]:
        """Run a transaction that makes files part of the collection. Remove them if it fails."""
        try:
            with database.transaction(connection):
                yield
        except BaseException as error:
            # An interrupt may come after the commit.
            known = _files(connection)
            if "I/O" not in str(error) or database.settled(connection):
                for one in written:
                    if one.file not in known:
                        self._remove(one.file)
            raise

    def add(self, batches: Iterable[Batch], *, replace: bool, whole: bool) -> int:
        """Add documents and return how many.

        Parameters
        ----------
        batches
            In order.
        replace
            Whether a document may take the place of one with its id.
        whole
            Whether all batches are added in one transaction; else each segment is.
        """
        if not whole:
            count = 0
            for group in grouped(batches):
                with self._connected(self._wait) as connection:
                    count += self._add(connection, [group], replace)
            return count
        with self._connected(self._wait) as connection:
            return self._add(connection, grouped(batches), replace)

    def _add(self, connection: sqlite3.Connection, groups: Iterable[list[Batch]], replace: bool) -> int:
        # Not around the groups: they run iterators of the user, whose errors are their own.
        naming = functools.partial(database.errors, self._folder)
        with naming():
            options, dim = _options(connection, self._folder)
        # The last place of each id, where places count the documents of this call.
        places: dict[str, int] = {}
        count = 0
        added: list[tuple[Written, list[Batch]]] = []
        try:
            for group in groups:
                for batch in group:
                    with naming():
                        _check_new(connection, batch.ids, places, count, replace)
                    count += len(batch)
                dim = _common_dim(group, dim)
                added.append((self._write(options, dim, group), [batch.without_tokens() for batch in group]))
                group.clear()  # frees the tokens before the next segment is gathered
        except BaseException:
            for written, _ in added:
                self._remove(written.file)
            raise
        if not added:
            return 0
        with naming(), self._committing(connection, [written for written, _ in added]):
            connection.execute("UPDATE option SET value = ? WHERE name = 'dim'", (dim,))
            if replace:
                _delete(connection, places)
            first = 0
            for written, group in added:
                _insert(connection, written, group, first, places)
                first += written.documents
        return len(places)

    def _write(self, options: Options, dim: int, group: list[Batch]) -> Written:
        ids = [name for batch in group for name in batch.ids]
        tokens = sum(int(batch.tokens.lengths.sum()) for batch in group)
        layout = Layout(options, dim, len(ids), tokens)
        return segments.write(self._folder, layout, parts.encoded(options, dim, [b.tokens for b in group], ids))

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents and return how many there were."""
        with self._writing() as connection, database.transaction(connection):
            return _delete(connection, dict.fromkeys(ids))

    def update(self, ids: Sequence[str], metadata: Sequence[str | None]) -> None:
        """Give documents other metadata."""
        with self._writing() as connection, database.transaction(connection):
            for name, text in zip(ids, metadata, strict=True):
                if connection.execute("UPDATE document SET metadata = ? WHERE id = ?", (text, name)).rowcount == 0:
                    msg = f"the collection has no document {name!r}"
                    raise KeyError(msg)
            _insert_fields(connection, metadata)

    def describe(self, about: str) -> None:
        """Keep words about the collection, as JSON."""
        with self._writing() as connection, database.transaction(connection):
            connection.execute("INSERT OR REPLACE INTO option VALUES('about', ?)", (about,))

    def compact(self, latest: Callable[[], Snapshot]) -> None:
        """Write the segments anew that have deleted documents, or that fit into one with their neighbours.

        Parameters
        ----------
        latest
            Returns the state of the collection.
        """
        with self._writing() as connection:
            snapshot = latest()
            runs = _runs(snapshot.all_segments(), max(1, SEGMENT_BYTES // max(1, 4 * snapshot.dim)))
            written: list[Written | None] = []
            try:
                for run in runs:
                    written.append(self._packed(snapshot, run))
            except BaseException:
                for one in written:
                    if one is not None:
                        self._remove(one.file)
                raise
            with self._committing(connection, [one for one in written if one is not None]):
                for run, one in zip(runs, written, strict=True):
                    _renumber(connection, run, one)
            for run in runs:
                for segment in run:
                    self._remove(segment.mapped.file)

    def _packed(self, snapshot: Snapshot, run: Sequence[LiveSegment]) -> Written | None:
        """Write the documents of a run of segments into one; None if there are none."""
        pairs = [(segment.mapped, segment.live) for segment in run if len(segment.live)]
        documents = sum(len(segment.live) for segment in run)
        tokens = sum(segment.tokens for segment in run)
        if not documents:
            return None
        layout = Layout(snapshot.options, snapshot.dim, documents, tokens)
        return segments.write(self._folder, layout, parts.copied(pairs))


def grouped(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Gather batches, or cut them, into what a segment holds."""
    group: list[Batch] = []
    room = 1
    for batch in batches:
        most = max(1, SEGMENT_BYTES // max(1, 4 * batch.tokens.tokens.shape[1]))
        # A document without tokens takes room too.
        weights = batch.tokens.lengths.clamp_min(1)
        for first, last in parts.spans(weights, most):
            weight = int(weights[first:last].sum())
            if group and weight > room:
                yield group
                group = []
            # A batch without tokens may have another dim.
            room = (min(room, most) if group else most) - weight
            group.append(batch.part(first, last))
    if group:
        yield group


def _files(connection: sqlite3.Connection) -> set[str]:
    return {file for (file,) in connection.execute("SELECT file FROM segment")}


def _is_sound(connection: sqlite3.Connection) -> bool:
    """Return whether the database is whole, and has the documents that its segments have."""
    deleted = connection.execute("SELECT documents, deleted FROM segment").fetchall()
    expected = sum(documents - int(unpacked(documents, bits).sum()) for documents, bits in deleted)
    (found,) = connection.execute("SELECT count(*) FROM document").fetchone()
    return bool(found == expected and connection.execute("PRAGMA quick_check").fetchall() == [("ok",)])


def _options(connection: sqlite3.Connection, folder: str) -> tuple[Options, int]:
    found = checks.options(dict(connection.execute("SELECT name, value FROM option")), folder)
    return Options(found["codes"], found["exact"], found["seed"]), found["dim"]


def _common_dim(group: Sequence[Batch], dim: int) -> int:
    """Return the dim of the collection, 0 if it has none yet, or else of new tokens."""
    own = [batch.tokens.tokens.shape[1] for batch in group if len(batch.tokens.tokens)]
    if not (own or dim):
        own = [max(batch.tokens.tokens.shape[1] for batch in group)]
    for found in own:
        if found != dim and (dim or not 1 <= found <= MOST_DIM):
            wanted = f"the dim of the collection, {dim}" if dim else f"a dim from 1 to {MOST_DIM}"
            msg = f"embeddings need {wanted}; got {found}"
            raise ValueError(msg)
        dim = found
    return dim


def _check_new(
    connection: sqlite3.Connection, ids: Sequence[str], places: dict[str, int], first: int, replace: bool
) -> None:
    """Note the place of each id. Raise ValueError if an id is there already and may not be replaced."""
    for begin in range(0, 0 if replace else len(ids), _IDS_AT_ONCE):
        sql = "SELECT id FROM document WHERE id IN (SELECT value FROM json_each(?)) LIMIT 1"
        for (name,) in connection.execute(sql, (json.dumps(ids[begin : begin + _IDS_AT_ONCE]),)):
            msg = f"the collection has a document {name!r} already; replace=True replaces it"
            raise ValueError(msg)
    for place, name in enumerate(ids, first):
        if name in places and not replace:
            msg = f"ids must differ; {name!r} comes twice"
            raise ValueError(msg)
        places[name] = place


def _insert(
    connection: sqlite3.Connection, written: Written, group: Sequence[Batch], place: int, places: dict[str, int]
) -> None:
    """Insert a segment and its documents. Those whose id comes again later are deleted at once."""
    (first,) = connection.execute("SELECT coalesce(max(first + documents), 0) FROM segment").fetchone()
    ids = [name for batch in group for name in batch.ids]
    texts = [text for batch in group for text in batch.metadata]
    gone = np.array([places[name] != place + i for i, name in enumerate(ids)], dtype=np.uint8)
    _insert_segment(connection, first, written, np.packbits(gone).tobytes() if gone.any() else None)
    rows = [(first + i, name, texts[i]) for i, name in enumerate(ids) if not gone[i]]
    connection.executemany("INSERT INTO document VALUES(?, ?, ?)", rows)
    _insert_fields(connection, texts)


def _delete(connection: sqlite3.Connection, ids: Iterable[str]) -> int:
    """Delete documents by their ids, and return how many there were."""
    names, numbers = list(ids), []
    for first in range(0, len(names), _IDS_AT_ONCE):
        sql = "SELECT number FROM document WHERE id IN (SELECT value FROM json_each(?))"
        found = connection.execute(sql, (json.dumps(names[first : first + _IDS_AT_ONCE]),))
        numbers += [number for (number,) in found]
    gone = np.unique(np.array(numbers, dtype=np.int64))
    sql = "DELETE FROM document WHERE number IN (SELECT value FROM json_each(?))"
    connection.execute(sql, (json.dumps(gone.tolist()),))
    for first, documents, deleted in connection.execute("SELECT first, documents, deleted FROM segment").fetchall():
        begin, end = np.searchsorted(gone, [first, first + documents])
        if begin < end:
            bits = unpacked(documents, deleted)
            bits[gone[begin:end] - first] = 1
            connection.execute("UPDATE segment SET deleted = ? WHERE first = ?", (np.packbits(bits).tobytes(), first))
    return len(gone)


def _insert_fields(connection: sqlite3.Connection, metadata: Iterable[str | None]) -> None:
    fields = {name for text in metadata if text is not None for name in json.loads(text)}
    connection.executemany("INSERT OR IGNORE INTO field VALUES(?)", [(name,) for name in sorted(fields)])


def _runs(all_segments: Sequence[LiveSegment], most: int) -> list[list[LiveSegment]]:
    """Return the runs of neighbouring segments that are each to become one segment of at most so many tokens."""
    runs: list[list[LiveSegment]] = []
    room = 0
    for segment in all_segments:
        weight = max(segment.tokens, len(segment.live))
        if weight > room or not runs:
            runs.append([])
            room = most
        runs[-1].append(segment)
        room -= weight
    return [run for run in runs if len(run) > 1 or len(run[0].live) < run[0].mapped.documents]


def _renumber(connection: sqlite3.Connection, run: Sequence[LiveSegment], written: Written | None) -> None:
    """Put one segment in the place of a run of them. Their documents keep their order."""
    first = run[0].mapped.first
    connection.executemany("DELETE FROM segment WHERE first = ?", [(segment.mapped.first,) for segment in run])
    # In ascending order, because a number only ever becomes smaller, and the numbers below it are free by then.
    old = [number for segment in run for number in segment.documents.tolist()]
    moves = [(new, number) for new, number in enumerate(old, first) if new != number]
    connection.executemany("UPDATE document SET number = ? WHERE number = ?", moves)
    if written is not None:
        _insert_segment(connection, first, written, None)


def _insert_segment(connection: sqlite3.Connection, first: int, written: Written, deleted: bytes | None) -> None:
    row = (first, written.file, written.documents, written.tokens, written.checksums, deleted)
    connection.execute("INSERT INTO segment VALUES(?, ?, ?, ?, ?, ?)", row)
