"""Reads a column of Arrow whose values are lists of tokens, without copying them."""

from __future__ import annotations

from typing import Any

import numpy as np

from colbert_fast._arrays import float_tensor, tensor_of
from colbert_fast._extras import need
from colbert_fast.packed import PackedTokens


def is_column(value: Any) -> bool:
    """Return whether a value gives its numbers in Arrow's format, as columns of pyarrow, polars and others do."""
    return hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__")


def chunks(column: Any) -> list[PackedTokens]:
    """Return the documents of each chunk of a column, over the memory of the column.

    Parameters
    ----------
    column
        Of lists, or of lists of one size, of tokens: each token a list of ``dim`` numbers.

    Raises
    ------
    ImportError
        There is no pyarrow.
    TypeError
        A column of another type.
    ValueError
        A null, or tokens of different dims.
    """
    need("a column of Arrow", None, {"pyarrow": "16"})
    import pyarrow

    if not isinstance(column, (pyarrow.Array, pyarrow.ChunkedArray)):
        whole = not hasattr(column, "__arrow_c_stream__")
        column = pyarrow.array(column) if whole else pyarrow.chunked_array(column)
    parts = column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column]
    return [_packed(part, str(column.type)) for part in parts if len(part)]


def _packed(column: Any, kind: str) -> PackedTokens:
    tokens, starts = _lists(column, kind)
    numbers, places = _lists(tokens, kind)
    sizes = np.diff(places)
    dim = int(sizes[0]) if len(sizes) else 0
    if (sizes != dim).any():
        msg = f"all tokens need the same dim; got {dim} and {sizes[sizes != dim][0]} in a column of {kind}"
        raise ValueError(msg)
    _check_no_null(numbers)
    try:
        flat = numbers.to_numpy()
        rows = float_tensor(flat.reshape(len(sizes), dim), "embeddings")
    except (TypeError, ValueError, NotImplementedError):
        raise _wrong_kind(kind) from None
    return PackedTokens(rows, tensor_of(starts[:-1], "starts"), tensor_of(np.diff(starts), "lengths"))


def _lists(column: Any, kind: str) -> tuple[Any, np.ndarray[Any, Any]]:
    """Return the values of all lists of a column, and where each list begins, and the last one ends."""
    import pyarrow

    _check_no_null(column)
    if pyarrow.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        values = column.values.slice(column.offset * size, len(column) * size)
        return values, np.arange(len(column) + 1, dtype=np.int64) * size
    if not (pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type)):
        raise _wrong_kind(kind)
    offsets = column.offsets.to_numpy().astype(np.int64)
    return column.values.slice(offsets[0], offsets[-1] - offsets[0]), offsets - offsets[0]


def _check_no_null(column: Any) -> None:
    if column.null_count:
        msg = f"a column of embeddings must have no nulls; entry {column.is_null().index(True)} is null"
        raise ValueError(msg)


def _wrong_kind(kind: str) -> TypeError:
    return TypeError(f"a column of embeddings must hold lists of lists of numbers; got a column of {kind}")
