"""A database that another program wrote, or changed: it works, or ValueError says what is wrong with it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
import torch
from collections_of import check_holds, documents, names

import colbert_fast as cf
from colbert_fast.collection import database

GIVEN = documents(6)


def run(folder: Path, sql: str, parameters: tuple[object, ...] = ()) -> list[object]:
    """Run a statement on a database as another program would."""
    other = sqlite3.connect(folder / database.NAME, isolation_level=None)
    rows = other.execute(sql, parameters).fetchall()
    other.close()
    return rows


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in folders")
def test_a_pipe_in_the_place_of_the_database(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / database.NAME)
    for read_only in (False, True):
        with pytest.raises(ValueError, match=rf"{database.NAME} must be an ordinary file"):
            cf.Collection(tmp_path, read_only=read_only)


def test_another_database(tmp_path: Path) -> None:
    run(tmp_path, "CREATE TABLE document(id)")
    with pytest.raises(ValueError, match="application_id is 0"):
        cf.Collection(tmp_path)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("PRAGMA user_version = 2", "user_version 1; it has 2"),
        ("PRAGMA application_id = 7", "application_id is 7"),
        ("CREATE TRIGGER t AFTER DELETE ON document BEGIN SELECT 1; END", "t must be None; got"),
        ("ALTER TABLE document ADD COLUMN x", "document must be 'CREATE TABLE document"),
        ("UPDATE option SET value = 'int3' WHERE name = 'codes'", "the option codes must be one of"),
        ("UPDATE option SET value = -1 WHERE name = 'dim'", "the option dim must be"),
        ("DELETE FROM option", "the option codes must be one of"),
        ("UPDATE segment SET file = '../../etc/passwd'", "the file of a segment is"),
        ("UPDATE segment SET file = '00000000000000000000000000000000.safetensors'", "is missing"),
        ("UPDATE segment SET documents = 1 << 60", "documents of the segment"),
        ("UPDATE segment SET documents = 1 << 35", "lengths must be"),
        ("UPDATE segment SET tokens = 7", "must be"),
        ("UPDATE segment SET tokens = 'x'", "tokens of the segment"),
        ("UPDATE segment SET first = -3", "first of the segment"),
        ("UPDATE segment SET deleted = x'0000'", "deleted of the segment"),
        ("UPDATE segment SET deleted = x'01'", "a bit beyond"),
    ],
)
def test_a_database_that_lies(tmp_path: Path, sql: str, message: str) -> None:
    with cf.Collection(tmp_path) as collection:
        collection.add(names(6), GIVEN)
    run(tmp_path, sql)
    for read_only in (False, True):
        with pytest.raises(ValueError, match=message) as raised:
            cf.Collection(tmp_path, read_only=read_only)
        assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE document SET id = x'00' WHERE number = 3", r"the id of document 3 is b'\\x00'"),
        ("UPDATE document SET id = 'a' || char(0) WHERE number = 3", "the id of document 3 is"),
        ("DELETE FROM document WHERE number = 3", "it has 5 documents, and the segments have 6"),
        ("INSERT INTO document VALUES(99, 'x', NULL)", "it has 7 documents, and the segments have 6"),
        ("UPDATE segment SET deleted = x'10'", "it has 6 documents, and the segments have 5"),
    ],
)
def test_documents_that_lie(tmp_path: Path, sql: str, message: str) -> None:
    with cf.Collection(tmp_path) as collection:
        collection.add(names(6), GIVEN)
    run(tmp_path, sql)
    with cf.Collection(tmp_path) as collection:
        with pytest.raises(ValueError, match=rf"{database.NAME} is damaged: {message}"):
            collection.ids()
        if "documents" in message:
            with pytest.raises(ValueError, match=rf"{database.NAME} is damaged: {message}"):
                collection.ids("id = 'd1'")
        with pytest.raises(ValueError, match=database.NAME):
            collection.verify()


def test_segments_that_have_other_documents(tmp_path: Path) -> None:
    with cf.Collection(tmp_path) as collection:
        collection.add(names(6), GIVEN)
        collection.delete(["d2"])
    run(tmp_path, "UPDATE document SET number = 2 WHERE id = 'd3'")
    with cf.Collection(tmp_path) as collection:
        for read in (
            lambda: collection["d3"],
            lambda: collection.topk(torch.ones(1, 1, 8), 1, where="id > ''"),
            lambda: collection.topk(torch.ones(1, 1, 8), 1, among=["d3"]),
        ):
            with pytest.raises(ValueError, match=rf"{database.NAME} is damaged: document"):
                read()


def sqlite_reads(metadata: str | bytes) -> bool:
    """Whether this SQLite reads as JSON what is none: newer ones take NaN, and the byte 0, for null."""
    other = sqlite3.connect(":memory:")
    try:
        return other.execute("SELECT json_extract(?, '$.a') IS NULL", (metadata,)).fetchone() == (1,)
    except sqlite3.Error:
        return False
    finally:
        other.close()


@pytest.mark.parametrize("metadata", ["{", '{"a": NaN}', b"\0"])
def test_metadata_that_are_no_json(tmp_path: Path, metadata: str | bytes) -> None:
    with cf.Collection(tmp_path) as collection:
        collection.add(names(6), GIVEN, [{"a": 1}] * 6)
        with pytest.raises(ValueError, match="where must be one condition"):
            collection.ids("json_extract('{', '$.a')")
    run(tmp_path, "UPDATE document SET metadata = ? WHERE number = 3", (metadata,))
    what = rf"{database.NAME} is damaged: the metadata of document 3"
    with cf.Collection(tmp_path) as collection:
        if sqlite_reads(metadata):  # then the document has no a
            assert len(collection.ids("a = 1")) == 5
            return
        with pytest.raises(ValueError, match=what):
            collection.ids("a = 1")


def test_a_database_in_another_mode(tmp_path: Path) -> None:
    """As a copy by VACUUM INTO is, where a reader and a writer would wait for each other."""
    with cf.Collection(tmp_path) as collection:
        collection.add(names(6), GIVEN)
    assert run(tmp_path, "PRAGMA journal_mode=DELETE") == [("delete",)]
    with cf.Collection(tmp_path, wait=0) as collection:
        reader = cf.Collection(tmp_path, read_only=True)
        collection.delete(["d1"])
        check_holds(reader, dict(zip(names(6), GIVEN, strict=True)))
        reader.close()


def test_a_field_that_has_no_name(tmp_path: Path) -> None:
    with cf.Collection(tmp_path) as collection:
        collection.add(names(6), GIVEN)
    run(tmp_path, "INSERT INTO field VALUES(x'00')")
    with cf.Collection(tmp_path) as collection:
        for read in (lambda: collection.ids("x > 1"), collection.verify):
            with pytest.raises(ValueError, match=rf"{database.NAME} is damaged: the name of a field is b'\\x00'"):
                read()


def test_an_index_that_has_another_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cf.Collection(tmp_path) as collection:
        collection.add(names(6), GIVEN)
        monkeypatch.setattr(collection._current().reader, "numbers_of", lambda ids: [99])
        with pytest.raises(ValueError, match=rf"{database.NAME} is damaged: there is no document 99"):
            collection.metadata("d1")
