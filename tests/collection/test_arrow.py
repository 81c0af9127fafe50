"""Columns of Arrow as documents: of pyarrow, and of whatever gives its numbers in the same format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from six_documents import DIM, IDS, check, ragged, same_length
from torch import Tensor

import colbert_fast as cf
from colbert_fast.collection import incoming


def column_of(items: list[Tensor], kind: str = "list", number: Any = None) -> Any:
    inner = pyarrow.list_(number or pyarrow.float32(), DIM)
    whole = {
        "list": lambda: pyarrow.list_(inner),
        "large_list": lambda: pyarrow.large_list(inner),
        "list of lists": lambda: pyarrow.list_(pyarrow.list_(number or pyarrow.float32())),
        "fixed": lambda: pyarrow.list_(inner, len(items[0])),
    }[kind]()
    return pyarrow.array([item.numpy().tolist() for item in items], whole)


@pytest.mark.parametrize("kind", ["list", "large_list", "list of lists", "fixed"])
def test_columns(kind: str, tmp_path: Path) -> None:
    items = same_length() if kind == "fixed" else ragged()
    column = column_of(items, kind)
    table = pyarrow.table({"name": IDS, "tokens": pyarrow.chunked_array([column[:2], column[2:2], column[2:]])})
    with cf.Collection(tmp_path / "c") as collection:
        collection.add(table["name"], table["tokens"], table.select(["name"]))
        check(collection, items)
        assert collection.metadata("d3") == {"name": "d3"}
        collection.add(["a", "b"], column[3:5])  # a slice of a column
        assert torch.equal(collection["b"].float(), items[4])


def test_float16_and_integers(tmp_path: Path) -> None:
    items = ragged()
    with cf.Collection(tmp_path / "c") as collection:
        half = pyarrow.array(torch.cat(items).half().flatten().numpy())
        inner = pyarrow.FixedSizeListArray.from_arrays(half, DIM)
        collection.add(IDS, pyarrow.ListArray.from_arrays([0, 2, 6, 6, 11, 12, 15], inner))
        check(collection, items)
        collection.add(["a"], column_of([torch.ones(2, DIM).int()], number=pyarrow.int8()))
        assert torch.equal(collection["a"].float(), torch.ones(2, DIM))


def test_no_copy() -> None:
    column = column_of(ragged())
    (found,) = incoming.pieces(column).pieces
    assert found.tokens.data_ptr() == column.values.values.buffers()[1].address


def test_other_libraries(tmp_path: Path) -> None:
    """What gives its numbers by the protocol of Arrow, such as a column of polars."""
    column = column_of(ragged())

    class Column:
        def __arrow_c_array__(self, requested: object = None) -> Any:
            return column.__arrow_c_array__(requested)

    class Stream:
        def __arrow_c_stream__(self, requested: object = None) -> Any:
            return pyarrow.chunked_array([column]).__arrow_c_stream__(requested)

    for i, given in enumerate((Column(), Stream())):
        with cf.Collection(tmp_path / str(i)) as collection:
            collection.add(IDS, given)
            check(collection, ragged())


def test_what_does_not_fit(tmp_path: Path) -> None:
    rows = [[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]]
    with cf.Collection(tmp_path / "c") as collection:
        for column, said in (
            (pyarrow.array([*rows[:1], None]), "no nulls; entry 1 is null"),
            (pyarrow.array([[[1.0, 2.0], None], rows[0]]), "no nulls; entry 1 is null"),
            (pyarrow.array([[[1.0, None]], rows[0]]), "no nulls; entry 1 is null"),
            (pyarrow.array([[[1.0, 2.0]], [[1.0]]]), "all tokens need the same dim; got 2 and 1"),
            (pyarrow.array([[1.0], [2.0]]), "must hold lists of lists of numbers; got a column of list<"),
            (pyarrow.array([[["a"]], [["b"]]]), "must hold lists of lists of numbers; got a column of list<"),
            (pyarrow.array([1.0, 2.0]), "must hold lists of lists of numbers; got a column of double"),
            (pyarrow.table({"a": rows}), "must hold lists of lists of numbers; got a column of struct"),
        ):
            with pytest.raises((TypeError, ValueError), match=said):
                collection.add(["a", "b"], column)
        assert len(collection) == 0
