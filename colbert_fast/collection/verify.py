"""Reads all of a collection and says everything that is wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import numpy as np

from colbert_fast.collection import checks, database, segments
from colbert_fast.collection.snapshot import LiveSegment, Snapshot


def verify(snapshot: Snapshot) -> None:
    """Raise ValueError with a line for each problem, if there are any."""
    problems = list(_of_database(snapshot))
    for segment in snapshot.all_segments():
        problems += _of_segment(snapshot, segment)
    if problems:
        raise ValueError("\n".join(problems))


def _of_database(snapshot: Snapshot) -> Iterator[str]:
    reader = snapshot.reader
    path = os.path.join(reader.folder, database.NAME)
    try:
        for (text,) in reader.rows("PRAGMA integrity_check"):
            if text != "ok":
                yield f"{path}: {text}"
        found = [number for (number,) in reader.rows("SELECT number FROM document ORDER BY number")]
        expected = np.concatenate(
            [np.zeros(0, np.int64), *(segment.documents.numpy() for segment in snapshot.all_segments())]
        )
        if found != expected.tolist():
            wrong = sorted(set(found) ^ set(expected.tolist()))
            yield f"{path}: documents and segments disagree about the documents {wrong[:5]}"
        fields = set(checks.fields(reader))
        for number, name, text in reader.rows("SELECT number, id, metadata FROM document"):
            checks.stored_id(name, number, reader.folder)
            unknown = set(checks.metadata(reader.folder, number, text) or ()) - fields
            if unknown:
                yield f"{path}: document {number} has the unknown fields {sorted(unknown)}"
    except ValueError as error:
        yield str(error)


def _of_segment(snapshot: Snapshot, segment: LiveSegment) -> Iterator[str]:
    mapped = segment.mapped
    try:
        mapped.layout.check(mapped.path)
        _ = mapped.codes  # checks the lengths and the norms
        expected = _checksums(snapshot, segment)
        found = segments.found_checksums(mapped.path, mapped.layout)
    except (OSError, ValueError) as error:
        yield str(error)
        return
    for name, checksum in found.items():
        if expected.get(name) != checksum:
            yield f"{mapped.path}: {name} does not fit its checksum in {database.NAME}"


def _checksums(snapshot: Snapshot, segment: LiveSegment) -> dict[str, int]:
    rows = snapshot.reader.rows("SELECT checksums FROM segment WHERE first = ?", (segment.mapped.first,))
    try:
        found = json.loads(rows[0][0])
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        what = f"the checksums of the segment {segment.mapped.file} are {rows!r:.200}"
        raise checks.damaged(snapshot.reader.folder, what)
    return found
