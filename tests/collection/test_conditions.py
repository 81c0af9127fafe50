"""A condition of a user can only read, and an error says what is wrong with it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collections_of import check_holds, documents, names

import colbert_fast as cf
from colbert_fast.collection import filters, reader


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[cf.Collection]:
    with cf.Collection(tmp_path / "c") as made:
        made.add(
            names(4), documents(4), [{"lang": "en"}, {"lang": "de"}, {"Lang": "fr", 'a"b': 1}, {"": 2, "number": 7}]
        )
        made.delete(["d1"])
        yield made
        check_holds(made, {name: tokens for name, tokens in zip(names(4), documents(4), strict=True) if name != "d1"})
        made.verify()


@pytest.mark.parametrize(
    "where",
    [
        *("1); DELETE FROM document; --", "1); DROP TABLE document", "(DELETE FROM document)", "1; SELECT 1", ""),
        *("load_extension('x') OR 1", "fts3_tokenizer('a') OR 1", "1) ATTACH 'x' AS y --", "1) UNION SELECT 999 --"),
        *("1) UNION SELECT NULL WHERE (1", "1) UNION SELECT 'x' WHERE (1", "1) UNION SELECT 1 WHERE (1", "id = "),
        "id IN (WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n)",
        *("(UPDATE document SET id = 'x' RETURNING 1)", "json_extract(_metadata, 'x') = 1", "\0", "'\ud800'", ")", "("),
    ],
)
def test_more_than_a_condition(collection: cf.Collection, where: str) -> None:
    with pytest.raises(ValueError, match="where must be one condition"):
        collection.ids(where)


def test_what_closes_the_bracket_reads_no_more(collection: cf.Collection) -> None:
    assert collection.ids("0) UNION ALL SELECT 0 UNION ALL SELECT number FROM document WHERE (1") == ["d0", "d2", "d3"]


def test_lists_in_the_metadata(collection: cf.Collection) -> None:
    collection.update(["d0", "d2"], [{"tags": ["a", {"b": "c"}]}, {"tags": ["b"]}])
    assert collection.ids("EXISTS (SELECT 1 FROM json_each(_metadata, '$.tags') WHERE value = 'a')") == ["d0"]
    assert collection.ids("EXISTS (SELECT 1 FROM json_tree(_metadata, '$.tags') WHERE value = 'c')") == ["d0"]


def test_names_of_fields(collection: cf.Collection) -> None:
    with pytest.raises(ValueError, match=r"no such column: language; the fields are '', 'Lang', 'a\"b', 'lang', 'num"):
        collection.ids("language = 'en'")
    with pytest.raises(ValueError, match=r"no such column: lang; .* json_extract\(_metadata, '\$.\"name\"'\)"):
        collection.ids("lang = 'en'")
    assert collection.ids("json_extract(_metadata, '$.\"lang\"') = 'en'") == ["d0"]
    assert collection.ids("number = 7") == ["d3"]
    assert collection.ids("id = 'd3'") == ["d3"]
    # SQLite would take a name that it does not know for text.
    for wrong in ('lang = "en"', "\"language\" = 'en'", "\"lang\" = 'en'", '"a""b" = 1', 'id = \'"\' OR "a b"'):
        with pytest.raises(ValueError, match=r"no such column: .*, and text stands in single quotes"):
            collection.ids(wrong)
    for right in ("\"ID\" = 'd0'", "id = 'd0' AND '\"x\"' <> ''", "id = 'd0' -- \"x\"", "id = 'd0' /* \" */"):
        assert collection.ids(right) == ["d0"]
    assert collection.ids('id IN (SELECT "x" FROM (SELECT id AS "x" FROM document) WHERE x > \'d2\')') == ["d3"]


PLAIN = ["größe", "naïve name", "a\\b", "it's", "😀", "a/b", "a.b", "a[0]", "$", "É"]
NAMES = [*PLAIN, "tab\tname", "a\nb", "\x01", "\x7f"]


def test_any_name_of_a_field(tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "c") as collection:
        described = [{name: i} for i, name in enumerate([*NAMES, "metadata", "rowid", "é"])]
        collection.add(names(len(described)), documents(len(described)), described)
        for i, entry in enumerate(described):
            (name,) = entry
            assert collection.ids(f'"{name}" = ?', [i]) == [f"d{i}"], name
            assert collection.metadata(f"d{i}") == entry


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no timer of signals")
def test_ctrl_c_ends_a_long_condition(collection: cf.Collection) -> None:
    interrupt = InterruptedError("of the test")

    def alarm(*_: object) -> None:
        raise interrupt

    collection.add(names(60, first=100), [documents(4)[3]] * 60)
    before = signal.signal(signal.SIGALRM, alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError, match="of the test"):
            collection.ids("0 = (SELECT count(*) FROM document a, document b, document c, document d, document e)")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert collection.ids("id = 'd0'") == ["d0"]
    collection.delete(names(60, first=100))


def test_ctrl_c_while_sqlite_asks_what_is_allowed(collection: cf.Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(filters, "authorize", interrupted)
        for run in (collection.ids, lambda: collection.ids("id = 'd0'"), collection.refresh):
            with pytest.raises(KeyboardInterrupt):
                run()
    assert collection.ids("id = 'd0'") == ["d0"]


@pytest.mark.parametrize(
    "parameters",
    [(), ("en", "de"), [object()], {"x": 1}, ("\ud800",), (2**70,)],
    ids=["0", "2", "kind", "name", "text", "big"],
)
def test_parameters_that_do_not_fit(collection: cf.Collection, parameters: Any) -> None:
    with pytest.raises(ValueError, match="where must be one condition"):
        collection.ids("id = ?" if not isinstance(parameters, dict) else "id = :y", parameters)


def test_asking_for_signals_leaves_nothing(collection: cf.Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_STEPS", 1)
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    for number in range(3):
        assert collection.ids("id <> ?", (str(number),)) == ["d0", "d2", "d3"]
    assert not told


def test_parameters_that_look_alike(collection: cf.Collection) -> None:
    class Name:
        def __init__(self, name: str) -> None:
            self.name = name

        def __conform__(self, protocol: object) -> str:
            return self.name

        def __repr__(self) -> str:
            return "Name"

    assert [collection.ids("id = ?", [Name(name)]) for name in ("d0", "d2")] == [["d0"], ["d2"]]


def test_parameters_of_numpy(collection: cf.Collection) -> None:
    expected = collection.ids("length(id) = 2 AND id <> 'd2'")
    assert expected == ["d0", "d3"]
    for two in (np.int64(2), np.uint8(2), np.float32(2), np.array(2)):
        assert collection.ids("length(id) = ? AND id <> ?", [two, np.str_("d2")]) == expected
        assert collection.ids("length(id) = :two AND id <> 'd2'", {"two": two}) == expected
    with pytest.raises(ValueError, match="where must be one condition"):
        collection.ids("length(id) = ?", [np.ones(2)])


def test_parameters_need_a_condition(collection: cf.Collection) -> None:
    with pytest.raises(ValueError, match="where is None"):
        collection.ids(parameters=("en",))


def test_arguments_of_another_type(collection: cf.Collection) -> None:
    number: Any = 3
    with pytest.raises(TypeError, match="where must be"):
        collection.ids(number)
    for wrong in ("x", number):
        with pytest.raises(TypeError, match="parameters must be a list of values, or a dict; got "):
            collection.ids("id = ?", wrong)


def test_fields_of_a_collection_without_metadata(tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "c") as bare, pytest.raises(ValueError, match="no document has metadata"):
        bare.ids("lang = 'en'")


def test_among_some(collection: cf.Collection) -> None:
    snapshot = collection._current()
    assert snapshot.narrowed(among=["d3", "d0", "d3"]).all_ids() == ["d0", "d3"]
    assert snapshot.narrowed("id > 'd2'", (), ["d3", "d0"]).all_ids() == ["d3"]
    assert snapshot.narrowed(among=[]).segments == []
    with pytest.raises(KeyError, match="'d1' and 1 more"):
        snapshot.narrowed(among=["d0", "d1", "d9"])
    for wrong, error in (("d0", TypeError), ([3], TypeError), (["a\0b"], ValueError)):
        with pytest.raises(error, match="among"):
            snapshot.narrowed(among=wrong)


def test_a_snapshot_stays(collection: cf.Collection) -> None:
    snapshot = collection._current()
    narrowed = snapshot.narrowed("id <> 'd0'")
    collection.delete(["d0", "d3"])
    collection.compact()
    assert snapshot.all_ids() == ["d0", "d2", "d3"]
    assert narrowed.all_ids() == ["d2", "d3"]
    assert snapshot.ids(snapshot.segments[0].documents.tolist()) == ["d0", "d2", "d3"]
    assert snapshot.segments[0].live.tolist() == [0, 2, 3]
    assert narrowed.segments[0].live.tolist() == [2, 3]
    collection.add(["d0", "d3"], [documents(4)[0], documents(4)[3]])
    collection.delete(["d2"])
    collection.add(["d2"], [documents(4)[2]])
    assert collection.ids() == ["d0", "d3", "d2"]
    # The order of the fixture's check.
    collection.add(["d2", "d3"], [documents(4)[2], documents(4)[3]], replace=True)
    assert snapshot.all_ids() == ["d0", "d2", "d3"]
