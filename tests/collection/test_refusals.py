"""What is refused, and that a refused change leaves nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from collections_of import check_holds, documents, names

import colbert_fast as cf
from colbert_fast.collection import changes, database, lock, segments
from colbert_fast.collection.layout import Layout

GIVEN = documents(6)


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[cf.Collection]:
    with cf.Collection(tmp_path / "c", wait=0) as made:
        made.add(names(6), GIVEN)
        yield made
        check_holds(made, dict(zip(names(6), GIVEN, strict=True)))
        made.verify()
        assert len(list((tmp_path / "c").glob("*.safetensors*"))) == 1


@pytest.mark.parametrize(
    ("ids", "embeddings", "message"),
    [
        (["n", "n"], GIVEN[:2], "'n' comes twice"),
        (["n", "d3"], GIVEN[:2], "a document 'd3' already"),
        (["n"], GIVEN[:2], "one entry for each of 2 documents; got 1"),
        (["a\0"], GIVEN[:1], "without NUL"),
        (["\ud800"], GIVEN[:1], "surrogates"),
        (["n"], [torch.ones(2, 9)], "the dim of the collection, 8; got 9"),
        (["m", "n"], [torch.ones(2, 8), torch.tensor([[1.0] * 8, [1e6] * 8])], r"float16; token 1 of document 'n'"),
        (["m", "n"], [torch.ones(0, 8), torch.full((1, 8), torch.nan)], r"token 0 of document 'n'"),
        (["n"], np.full((1, 1, 8), np.inf), r"token 0 of document 'n'"),
    ],
)
def test_documents_that_are_refused(collection: cf.Collection, ids: Any, embeddings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collection.add(ids, embeddings)


def nested(depth: int) -> Any:
    return {"a": [nested(depth - 2)]} if depth else 0


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ([{"b": 1, "a": np.ones(1)}], TypeError, r"metadata\[0\] must be what JSON can say, and 'a' is not"),
        ([{"a": float("nan")}], ValueError, r"metadata\[0\] must be what JSON can say"),
        ([{1: "a"}], TypeError, "names that are str"),
        (["a"], TypeError, r"metadata\[0\] must be a dict"),
        ([{"Id": 1}], ValueError, "a field 'Id', because id means another thing"),
        ([{"_metadata": 1}], ValueError, "a field '_metadata'"),
        ([{"\ud800": 1}], ValueError, "without lone surrogates"),
        ([{"a": nested(100)}], ValueError, "more than 100 deep"),
        ([None, None], ValueError, "one entry for each of 1 documents; got 2"),
        ({"a": 1}, TypeError, "metadata must be a list.*got one dict"),
    ],
)
def test_metadata_that_are_refused(collection: cf.Collection, metadata: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        collection.add(["n"], GIVEN[:1], metadata)
    with pytest.raises(error, match=message):
        collection.update(["d1"], metadata)


def test_ids_that_are_no_list_of_str(collection: cf.Collection) -> None:
    wrong: list[tuple[Any, str]] = [("d1", "one str"), ([1], "int"), (b"d1", "one bytes"), (3, "one int")]
    for ids, got in wrong:
        with pytest.raises(TypeError, match=got):
            collection.delete(ids)
        with pytest.raises(TypeError, match=got):
            collection.add(ids, GIVEN[:1])
    with pytest.raises(KeyError, match="no document 'none'"):
        collection["none"]
    with pytest.raises(KeyError, match="no document 'none'"):
        collection.metadata("none")
    number: Any = 3
    with pytest.raises(TypeError, match="by a list of ids; got 3"):
        collection[number]
    assert number not in collection


def test_options_that_contradict_the_folder(collection: cf.Collection, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"codes": "int4"}, "codes='int8'; codes cannot become 'int4'"),
        ({"exact": None}, "exact='float16'; exact cannot become None"),
        ({"exact": "bfloat16"}, "cannot become 'bfloat16'"),
        ({"codes": "int3"}, "codes must be one of"),
        ({"exact": "float8"}, "exact must be one of"),
        ({"codes": ["int8"]}, "codes must be one of"),
        ({"wait": float("nan")}, "wait must be a number of seconds"),
        ({"wait": -1}, "wait must be a number of seconds"),
        ({"wait": "1"}, "wait must be a number of seconds"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            cf.Collection(folder, **options)
    cf.Collection(folder, codes="int8", exact="float16").close()


@pytest.mark.parametrize("value", [None, 1, "no", np.False_])
def test_flags_that_are_not_true_or_false(collection: cf.Collection, tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="replace must be True or False"):
        collection.add(["d0"], GIVEN[1:2], replace=value)
    with pytest.raises(TypeError, match="read_only must be True or False"):
        cf.Collection(tmp_path / "new", read_only=value)
    assert not (tmp_path / "new").exists()


def test_a_folder_without_a_collection(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no collection"):
        cf.Collection(tmp_path, read_only=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file is a file; a collection is a folder"):
        cf.Collection(tmp_path / "file")
    (tmp_path / f"{'0' * 32}.safetensors").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"segments but no collection\.sqlite"):
        cf.Collection(tmp_path)
    assert (tmp_path / f"{'0' * 32}.safetensors").read_bytes() == b"precious"


def test_a_collection_that_is_made_while_it_is_opened(tmp_path: Path) -> None:
    """All that says what a database is comes from one state of it."""
    maker = threading.Thread(target=lambda: cf.Collection(tmp_path).close())

    class Slow(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            done = super().execute(sql, *arguments)
            if sql == "PRAGMA application_id":
                maker.start()
                maker.join(0.3)
            return done

    connection = sqlite3.connect(tmp_path / database.NAME, isolation_level=None, factory=Slow)
    assert database.is_blank(connection, str(tmp_path))
    maker.join()
    connection.close()
    cf.Collection(tmp_path, read_only=True).close()


def test_segments_that_come_while_a_collection_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / database.NAME).touch()
    check = segments.check_none

    def late(folder: str) -> None:
        monkeypatch.setattr(segments, "check_none", check)
        with cf.Collection(tmp_path) as made:
            made.add(names(6), GIVEN)
        check(folder)

    monkeypatch.setattr(segments, "check_none", late)
    with cf.Collection(tmp_path, read_only=True) as opened:
        check_holds(opened, dict(zip(names(6), GIVEN, strict=True)))


def test_a_second_writer_waits_or_is_refused(collection: cf.Collection, tmp_path: Path) -> None:
    other = cf.Collection(tmp_path / "c", wait=60)
    with collection._writer._writing():
        refused = cf.Collection(tmp_path / "c", wait=0.05)
        with pytest.raises(TimeoutError, match=rf"process {os.getpid()} writes to .*; waited 0.05 seconds"):
            refused.add(["n"], GIVEN[:1])
        refused.close()
        done = threading.Thread(target=lambda: other.add(["n"], GIVEN[:1]))
        done.start()
        done.join(0.1)
        assert done.is_alive()
    done.join()
    assert "n" not in collection
    collection.refresh()
    assert "n" in collection
    collection.delete(["n"])
    collection.compact()
    other.close()


def test_ids_that_change_the_collection(collection: cf.Collection) -> None:
    def ids() -> Iterator[str]:
        collection.delete(["d1"])
        yield "n"

    with pytest.raises(RuntimeError, match="an iterator of ids or metadata must not change"):
        collection.add(ids(), GIVEN[:1])


def test_threads_share_a_collection(tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "c", wait=60) as collection:
        failed = []

        def work(number: int) -> None:
            try:
                for i in range(6):
                    collection.add([f"{number}/{i}"], [GIVEN[i]])
                    assert torch.equal(collection[f"{number}/{i}"].float(), GIVEN[i])
                    assert f"{number}/{i}" in collection.ids("id LIKE ?", (f"{number}/%",))
                collection.delete([f"{number}/0"])
                collection.compact()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        collection.verify()
        assert sorted(collection.ids()) == [f"{number}/{i}" for number in range(4) for i in range(1, 6)]


@pytest.mark.parametrize("moment", ["the header is read", "the file is mapped"])
def test_segments_that_vanish_while_they_are_opened(
    collection: cf.Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    collection.add(["n"], GIVEN[:1])
    from_file, check = torch.UntypedStorage.from_file, Layout.check

    def compacted(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            patch.undo()
            collection.delete(["n"])
            collection.compact()
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        if moment == "the file is mapped":
            patch.setattr(torch.UntypedStorage, "from_file", compacted(from_file))
        else:
            patch.setattr(Layout, "check", compacted(check))
        with cf.Collection(tmp_path / "c", read_only=True) as reader:
            check_holds(reader, dict(zip(names(6), GIVEN, strict=True)))


def test_the_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_LOG_BYTES", 1 << 17)
    with cf.Collection(tmp_path / "c") as collection:
        collection.add(names(6), GIVEN)
        log = tmp_path / "c" / f"{database.NAME}-wal"
        for i in range(40):
            collection.update(names(6), [{"text": f"{i}" * 3000}] * 6)
        assert log.stat().st_size < 1 << 19
        # A reader keeps what it sees, and the log grows meanwhile.
        reader = cf.Collection(tmp_path / "c", read_only=True)
        for i in range(40):
            collection.update(names(6), [{"text": f"{i}" * 4000}] * 6)
        assert reader.metadata("d1") == {"text": "39" * 3000}
        assert log.stat().st_size > 1 << 19
        reader.close()
        check_holds(collection, dict(zip(names(6), GIVEN, strict=True)))


def test_a_closed_collection(tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "c") as collection:
        collection.add(names(6), GIVEN)
        tokens = collection["d3"]
    assert torch.equal(tokens.float(), GIVEN[3])
    for use in (len, cf.Collection.ids, cf.Collection.refresh, lambda c: c.add(["n"], GIVEN[:1])):
        with pytest.raises(ValueError, match="is closed"):
            use(collection)
    collection.close()


def test_writing_to_a_view_changes_no_file(collection: cf.Collection, tmp_path: Path) -> None:
    collection["d3"].zero_()
    with cf.Collection(tmp_path / "c") as other:
        assert torch.equal(other["d3"].float(), GIVEN[3])
    collection._snapshot = None
    collection.refresh()


@pytest.mark.parametrize("after", range(0, 9, 2))
def test_a_full_disk(collection: cf.Collection, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    monkeypatch.setattr(changes, "SEGMENT_BYTES", 4 * 4 * 8)
    write, left = segments._Parts._write, after

    def full(self: Any, at: int, data: memoryview) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, at, data)

    with monkeypatch.context() as patch:
        patch.setattr(segments._Parts, "_write", full)
        with pytest.raises(OSError, match="No space left on device"):
            collection.add(names(9, 6), documents(9, seed=1))


def test_a_disk_that_is_full_for_the_database(collection: cf.Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = database.connect

    def small(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.execute("PRAGMA max_page_count = 1")  # SQLite takes as many as there are
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(database, "connect", small)
        with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOSPC))):
            collection.add([f"{i}" * 3000 for i in range(9)], documents(9, seed=1))


@pytest.mark.skipif(not hasattr(os, "pread"), reason="the index of the log cannot be read and written here")
@pytest.mark.parametrize("change", ["add", "compact"])
def test_a_commit_that_the_disk_does_not_confirm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """It fails, and stays in the log, where a crash would bring it back."""
    folder = tmp_path / "c"
    collection = cf.Collection(folder)
    collection.add(names(6), GIVEN)
    reader = cf.Collection(folder, read_only=True)
    collection.delete(["d5"])
    shared = os.open(folder / f"{database.NAME}-shm", os.O_RDWR)

    class Unsure(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            # As SQLite leaves it: the index of the log, which it shares with others, is that from before the commit.
            before = os.pread(shared, 136, 0)
            done = super().execute(sql, *arguments)
            if sql == "COMMIT":
                patch.undo()
                os.pwrite(shared, before, 0)
                msg = "disk I/O error"
                raise sqlite3.OperationalError(msg)
            return done

    with monkeypatch.context() as patch:
        connect = sqlite3.connect
        patch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **options, factory=Unsure))
        with pytest.raises(OSError, match="disk I/O error"):
            collection.add(["n"], GIVEN[:1]) if change == "add" else collection.compact()
    check_holds(collection, dict(zip(names(5), GIVEN[:5], strict=True)))
    after = tmp_path / "after a crash"
    shutil.copytree(folder, after, ignore=shutil.ignore_patterns("*-shm"))
    with cf.Collection(after) as again:
        again.verify()
        check_holds(again, dict(zip(names(5), GIVEN[:5], strict=True)))
        assert len(list(after.glob("*.safetensors"))) == 1
    os.close(shared)
    reader.close()


def test_a_disk_that_knows_no_locks(collection: cf.Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr(lock, "_try_lock", refuse)
        with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOLCK)) + ".*writer.lock"):
            collection.delete(["d1"])


def test_read_only(collection: cf.Collection, tmp_path: Path) -> None:
    reader = cf.Collection(tmp_path / "c", read_only=True)
    check_holds(reader, dict(zip(names(6), GIVEN, strict=True)))
    for change in (lambda c: c.add(["n"], GIVEN[:1]), lambda c: c.delete(["d1"]), cf.Collection.compact):
        with pytest.raises(PermissionError, match="read_only=True"):
            change(reader)
    collection.add(["n"], GIVEN[:1])
    assert "n" not in reader
    reader.refresh()
    assert "n" in reader
    collection.delete(["n"])
    collection.compact()
    assert torch.equal(reader["n"].float(), GIVEN[0])
    reader.close()


READ_WHERE_NOTHING_CAN_BE_WRITTEN = """
import os, sys, tempfile, torch, colbert_fast as cf
with tempfile.TemporaryDirectory() as place:
    os.chmod(place, 0o755)
    folder = os.path.join(place, "c")
    with cf.Collection(folder) as made:
        made.add(["a", "b"], torch.ones(2, 3, 8))
        made.verify()
    for name in os.listdir(folder):
        os.chmod(os.path.join(folder, name), 0o444)
    os.chmod(folder, 0o555)
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            open(os.path.join(folder, "x"), "w")
        except PermissionError:
            pass
        else:
            os._exit(2)
        with cf.Collection(folder, read_only=True) as reader:
            reader.verify()
            assert reader.ids("id > 'a'") == ["b"]
            assert reader["b"].shape == (3, 8)
        try:
            cf.Collection(folder).add(["c"], torch.ones(1, 3, 8))
        except OSError:
            os._exit(0)
        os._exit(3)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.chmod(folder, 0o755)
    sys.exit(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_folder_that_nobody_can_write_to() -> None:
    command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c"]
    done = subprocess.run([*command, READ_WHERE_NOTHING_CAN_BE_WRITTEN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_a_folder_that_is_named_in_bytes(tmp_path: Path) -> None:
    path: Any = os.fsencode(tmp_path / "c")
    with cf.Collection(path, wait=float("inf")) as collection:
        collection.add(names(6), GIVEN)
        assert collection.path == str(tmp_path / "c")
    with pytest.raises(ValueError, match="must not be empty"):
        cf.Collection("")
    with pytest.raises(ValueError, match="must be Unicode"):
        cf.Collection(tmp_path / "\udcff")


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed here")
def test_a_link_in_the_place_of_the_lock(tmp_path: Path) -> None:
    """Whoever opens a foreign folder does not lose what it points to."""
    (tmp_path / "dear").write_text("dear")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / lock.NAME).symlink_to(tmp_path / "dear")
    with pytest.raises(OSError, match=lock.NAME):
        cf.Collection(tmp_path / "c")
    assert (tmp_path / "dear").read_text() == "dear"


def test_verify_beside_a_change(tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "c") as collection:
        collection.add(names(6), GIVEN)
        reader = cf.Collection(tmp_path / "c", read_only=True)
        collection.delete(["d1"])
        collection.compact()
        reader.verify()
        (file,) = (tmp_path / "c").glob("*.safetensors")
        file.rename(tmp_path / "away")
        with pytest.raises(ValueError, match=file.name):
            reader.verify()
        with pytest.raises(ValueError, match=file.name):
            collection.verify()
        reader.close()
