"""Files that are damaged, or lie: ValueError with the name of the file, and never a crash or a wrong answer."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from collections_of import CODES, check_holds, documents, names
from hypothesis import given, settings
from hypothesis import strategies as st

import colbert_fast as cf
from colbert_fast.collection import database

GIVEN = documents(6, dim=12)
KEPT = dict(zip(names(6), GIVEN, strict=True))
# `COLLECTIONS_FUZZED=100000 pytest tests/collection/test_damage.py` is the long run.
FEW = settings(max_examples=int(os.environ.get("COLLECTIONS_FUZZED", "60")), deadline=None)


@pytest.fixture(scope="module")
def whole() -> Any:
    """A folder of each kind of codes."""
    with tempfile.TemporaryDirectory() as place:
        for codes in CODES:
            with cf.Collection(Path(place, codes), codes=codes) as made:
                made.add(names(6), GIVEN, [{"lang": "en", "n": i} for i in range(6)])
                made.add(["gone", "last"], documents(2, dim=12, seed=1))
                made.delete(["gone", "last"])
        yield Path(place)


def check_damaged(folder: Path, file: Path) -> bool:
    """Use a collection with a damaged file. Return whether the damage was noticed; if not, it holds what it held."""
    try:
        with cf.Collection(folder, read_only=True) as collection:
            collection.verify()
            check_holds(collection, KEPT)
            for segment in collection._current().segments:
                for codes in segment.codes:
                    assert int((codes.starts + codes.lengths).max()) <= len(codes.levels)
            assert all(collection.metadata(name) is not None for name in names(6)) or file.name == database.NAME
            result = collection.topk(torch.ones(2, 3, 12), 6)
            assert sorted(result.ids[0]) == names(6)
            # SQLite has no checksums, so a word of the metadata may be another.
            found = collection.ids("json_extract(_metadata, '$.n') >= 0 OR NOT _metadata IS NULL")
            assert found == names(6)
            assert collection.ids("lang = 'en'") == names(6) or file.name == database.NAME
    except ValueError as error:
        assert str(folder) in str(error), error
        # What the database says and a segment does not may be the fault of either.
        assert file.name in str(error) or database.NAME in str(error) or file.name == database.NAME, error
        return True
    except KeyError:  # an id is another
        assert file.name == database.NAME
        return True
    return False


def change_damaged(folder: Path) -> None:
    """Change a damaged collection: it works, or says what is wrong."""
    try:
        with cf.Collection(folder) as collection:
            collection.delete(["d2"])
            collection.add(["d2"], GIVEN[2:3], [{"lang": "en", "n": 2}])
            collection.compact()
            assert torch.equal(collection["d2"].float(), GIVEN[2])
    except ValueError as error:
        assert str(folder) in str(error) or "already" in str(error), error
    except KeyError:
        pass


# What matters most lies at the begin of a file. Positions are parts of the length, so that a failure shows briefly.
PLACES = st.one_of(st.integers(0, 200), st.floats(0, 1))
WORST = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1])
DAMAGES = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), PLACES, st.integers(0, 7)),
        st.tuples(st.just("cut"), PLACES, st.none()),
        st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=9)),
        st.tuples(st.just("zeros"), PLACES, st.integers(1, 500)),
        st.tuples(st.sampled_from(["little", "big"]), PLACES, WORST),
    ),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes, damages: list[tuple[str, float, Any]]) -> bytes:
    data = bytearray(content)
    for kind, place, what in damages:
        at = min(place, len(data)) if isinstance(place, int) else int(place * len(data))
        if kind == "flip":
            data[at : at + 1] = bytes(byte ^ 1 << what for byte in data[at : at + 1])
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = what
        elif kind == "zeros":
            data[at : at + what] = bytes(len(data[at : at + what]))
        else:
            data[at : at + 8] = what.to_bytes(8, kind)
    return bytes(data)


def _damage(whole: Path, codes: str, pattern: str, damages: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "c")
        shutil.copytree(whole / codes, folder)
        file = sorted(folder.glob(pattern))[0]
        before = file.read_bytes()
        after = damaged(before, damages)
        file.write_bytes(after)
        noticed = check_damaged(folder, file)
        change_damaged(folder)
        # A segment has no byte that may change.
        assert noticed or after == before or file.name == database.NAME


@settings(FEW)
@given(codes=st.sampled_from(CODES), damages=DAMAGES)
def test_a_damaged_segment_is_always_noticed(whole: Path, codes: str, damages: Any) -> None:
    _damage(whole, codes, "*.safetensors", damages)


@settings(FEW)
@given(codes=st.sampled_from(CODES), damages=DAMAGES)
def test_a_damaged_database(whole: Path, codes: str, damages: Any) -> None:
    _damage(whole, codes, database.NAME, damages)


HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(FEW)
@given(codes=st.sampled_from(CODES), data=st.data())
def test_a_header_that_lies(whole: Path, codes: str, data: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "c")
        shutil.copytree(whole / codes, folder)
        file = sorted(folder.glob("*.safetensors"))[0]
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        name = data.draw(st.sampled_from(sorted(header)))
        inner = data.draw(st.sampled_from([None, *sorted(header[name])]))
        lie = data.draw(HEADERS)
        if inner is None:
            header[name] = lie
        elif isinstance(header[name][inner], list) and data.draw(st.booleans()):
            header[name][inner][-1] = lie
        else:
            header[name][inner] = lie
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % 64)
        same = json.loads(text) == json.loads(content[8 : 8 + length])
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        assert check_damaged(folder, file) or same


def test_lengths_that_lie(tmp_path: Path) -> None:
    for lengths in ([5] * 6, [-1, 4, 0, 1, 0, 0], [2**62] * 6, [2**63 - 1, 2, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with cf.Collection(folder) as collection:
            collection.add(names(6), GIVEN)
            (segment,) = collection._current().files.values()
            entry, path = segment.layout.entries["lengths"], Path(segment.path)
        content = bytearray(path.read_bytes())
        content[entry.start : entry.stop] = torch.tensor(lengths).numpy().tobytes()
        path.write_bytes(content)
        with cf.Collection(folder) as collection:
            for use in (lambda c: c["d3"], lambda c: c[names(6)], lambda c: c._current().segments[0].codes):
                with pytest.raises(ValueError, match=f"{path.name}.*lengths"):
                    use(collection)
            with pytest.raises(ValueError, match="lengths"):
                collection.compact()


@pytest.mark.parametrize(("exact", "field"), [("float16", "exact"), (None, "multipliers")])
def test_tokens_that_are_no_numbers(tmp_path: Path, exact: str | None, field: str) -> None:
    with cf.Collection(tmp_path, exact=exact) as collection:
        collection.add(names(6), GIVEN)
        (segment,) = collection._current().files.values()
        entry, path = segment.layout.entries[field], Path(segment.path)
    content = bytearray(path.read_bytes())
    content[entry.start : entry.stop] = b"\xff" * (entry.stop - entry.start)
    path.write_bytes(content)
    with (
        cf.Collection(tmp_path) as collection,
        pytest.raises(ValueError, match=rf"{path.name}: {field} must be finite"),
    ):
        collection.topk(torch.ones(1, 2, 12), 6)


def test_verify_lists_everything(tmp_path: Path) -> None:
    with cf.Collection(tmp_path) as collection:
        for i in range(3):
            collection.add(names(2, 2 * i), GIVEN[2 * i : 2 * i + 2])
        paths = [Path(segment.path) for segment in collection._current().files.values()]
        for path, at in zip(paths[:2], (-1, -1), strict=True):
            content = bytearray(path.read_bytes())
            content[at] ^= 1
            path.write_bytes(content)
        damaged = sqlite3.connect(tmp_path / database.NAME, isolation_level=None)
        damaged.execute("DELETE FROM document WHERE id = 'd4'")
        damaged.close()
        collection.refresh()
        with pytest.raises(ValueError, match="does not fit its checksum") as raised:
            collection.verify()
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    assert "disagree about the documents [4]" in lines[0]
    assert [path.name in line for path, line in zip(paths[:2], lines[1:], strict=True)] == [True, True]


def test_a_damaged_database_loses_no_segment(tmp_path: Path) -> None:
    with cf.Collection(tmp_path) as collection:
        collection.add(names(6), GIVEN)
    damaged_one = sqlite3.connect(tmp_path / database.NAME, isolation_level=None)
    damaged_one.execute("DELETE FROM segment")
    damaged_one.close()
    with cf.Collection(tmp_path) as collection, pytest.raises(ValueError, match="documents and segments disagree"):
        collection.verify()
    assert list(tmp_path.glob("*.safetensors"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in folders")
def test_a_pipe_in_the_place_of_a_segment(tmp_path: Path) -> None:
    with cf.Collection(tmp_path) as collection:
        collection.add(names(6), GIVEN)
    (path,) = tmp_path.glob("*.safetensors")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="must be an ordinary file"):
        cf.Collection(tmp_path)
