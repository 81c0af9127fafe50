"""The token embeddings of texts, by key: to its users a dict of arrays, to the kernels one packed batch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from colbert_fast._arrays import float_tensor
from colbert_fast.packed import PackedTokens
from colbert_fast.rank.lent_arrays import LentArrays


class TokenEmbeddings(MutableMapping[Any, NDArray[np.float32]]):
    """Token embeddings by key, used like a dict of arrays: read, replace, add, delete, `update`, `dict(...)`.

    Reading an item gives an array, float32 ``[rows, dim]``, padded with zero rows to the maximum length where
    neural-cherche pads it. What is written into this array changes the item. The memory holds no padding, except that
    of arrays which somebody has: all items lie in one :class:`PackedTokens`, which is made when the texts are encoded,
    and which the rankers score as it is. An item that is replaced or deleted stays in memory.

    Parameters
    ----------
    pad_row
        What zero rows at the end of an array mean that is added by ``embeddings[key] = array``. True: neural-cherche
        padded the document, so its similarity with each query token is at least 0. False: they mean nothing.
    """

    def __init__(self, *, pad_row: bool = False) -> None:
        self._pad_row = pad_row
        # Where the items lie, and the number of the first item of each batch.
        self._batches, self._starts = [PackedTokens.from_list([])], [0]
        # The number of each key's item, and how many rows its array has.
        self._numbers: dict[Hashable, int] = {}
        self._heights: list[int] = []
        # The keys with repetitions; it may still hold keys that were deleted since they were added.
        self._order: list[Hashable] = []
        self._deleted = False
        self._lent = LentArrays()

    @property
    def packed(self) -> PackedTokens:
        """All items, float32 on the CPU; :meth:`numbers` says which is which."""
        self._take_changes(self._lent.lent())
        if len(self._batches) > 1:
            self._batches, self._starts = [PackedTokens.cat(self._batches)], [0]
        return self._batches[0]

    def numbers(self, keys: Iterable[Hashable]) -> list[int]:
        """Return the number of each key's item in :attr:`packed`. Raises KeyError for a key that is not here."""
        self._take_changes(self._lent.lent())
        return [self._numbers[key] for key in keys]

    @property
    def dim(self) -> int:
        """Size of one embedding; 0 if nothing was added."""
        return self._batches[0].dim

    @property
    def order(self) -> list[Any]:
        """The keys as they were given to the encoder, in this order and with repetitions."""
        return [key for key in self._order if key in self._numbers]

    def add_packed(
        self,
        keys: Sequence[Hashable],
        packed: PackedTokens,
        heights: int | Sequence[int] = 0,
        order: Iterable[Hashable] | None = None,
    ) -> None:
        """Add or replace items that are packed already.

        Parameters
        ----------
        keys
            The key of each item.
        packed
            The items. They are copied only if there are others, or if they are not float32 on the CPU.
        heights
            The number of rows that the array of each item has at least when it is read: a number for all, or for each.
        order
            The keys with repetitions. Default: `keys`.

        Raises
        ------
        ValueError
            The items that are here have another dim, or there is not one key for each item.
        """
        packed = packed.to("cpu", torch.float32)
        if self._heights and len(packed) and packed.dim != self.dim:
            msg = f"all embeddings need the same dim; these have dim {packed.dim} and the others {self.dim}"
            raise ValueError(msg)
        self._take_changes()
        for key in keys if len(self._lent) else ():
            self._lent.forget(key)
        self._append(keys, packed, [heights] * len(keys) if isinstance(heights, int) else heights, order)

    def _append(
        self,
        keys: Sequence[Hashable],
        packed: PackedTokens,
        least: Sequence[int],
        order: Iterable[Hashable] | None = None,
    ) -> None:
        before = len(self._heights)
        new = {key for key in keys if key not in self._numbers}
        if self._deleted:  # a deleted key may come back, and its place is then the last one
            self._order, self._deleted = self.order, False
        self._order.extend(key for key in (keys if order is None else order) if key in new)
        self._numbers.update(zip(keys, range(before, before + len(keys)), strict=True))
        if before:
            self._batches.append(packed)
            self._starts.append(before)
        else:
            self._batches = [packed]
        self._heights.extend(max(pair) for pair in zip(least, packed.lengths.tolist(), strict=True))

    def add_from(self, other: TokenEmbeddings, keys: Sequence[Hashable]) -> None:
        """Add or replace the items of `other` with these keys, which stay packed."""
        if keys:
            numbers, chosen = other.numbers(keys), set(keys)
            heights = [other._heights[number] for number in numbers]
            self.add_packed(keys, other.packed[numbers], heights, [key for key in other.order if key in chosen])

    def update(self, other: Any = (), /, **others: Any) -> None:
        """Add or replace items, as ``dict.update`` does. The items of a mapping are packed at once."""
        if isinstance(other, Mapping):
            keys = list(other)
            self.add_from(token_embeddings(other, keys, "embeddings", pad_row=self._pad_row), keys)
            other = ()
        super().update(other, **others)

    def copy(self) -> TokenEmbeddings:
        """Return TokenEmbeddings with the same items. No change of the one is a change of the other."""
        found = TokenEmbeddings(pad_row=self._pad_row)
        found._batches, found._order, found._deleted = [self.packed], [*self._order], self._deleted
        found._numbers, found._heights = dict(self._numbers), [*self._heights]
        return found

    __copy__ = copy

    def __or__(self, other: Mapping[Any, Any]) -> TokenEmbeddings:
        if not isinstance(other, Mapping):
            return NotImplemented
        found = self.copy()
        found.update(other)
        return found

    def __ror__(self, other: Mapping[Any, Any]) -> TokenEmbeddings:
        if not isinstance(other, Mapping):
            return NotImplemented
        found = TokenEmbeddings(pad_row=self._pad_row)
        found.update(other)
        found.update(self)
        return found

    def __ior__(self, other: Any) -> TokenEmbeddings:  # type: ignore[misc]
        self.update(other)
        return self

    def __getitem__(self, key: Hashable) -> NDArray[np.float32]:
        self._take_changes()
        number = self._numbers[key]
        return self._lent.lend(key, self._rows(number), self._heights[number])

    def __setitem__(self, key: Hashable, array: Any) -> None:
        rows = rows_of(array, f"embeddings[{key!r}]")
        self.add_packed([key], PackedTokens.from_list([without_padding(rows, self._pad_row)]), len(rows))

    def __delitem__(self, key: Hashable) -> None:
        del self._numbers[key]
        self._lent.forget(key)
        self._deleted = True

    def popitem(self) -> tuple[Any, NDArray[np.float32]]:
        """Remove the last item, and return its key and its array. Raises KeyError if there is none."""
        for key in reversed(self):
            return key, self.pop(key)
        msg = "popitem(): there are no embeddings"
        raise KeyError(msg)

    def __reversed__(self) -> Iterator[Any]:
        return reversed(self._numbers)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return an array that holds a dict, as numpy makes it of a dict, so that `numpy.save` saves the items."""
        found = np.empty((), object if dtype is None else dtype)
        found[()] = dict(self)
        return found

    def __getstate__(self) -> dict[str, Any]:
        state = {**vars(self), "_batches": [self.packed], "_starts": [0]}
        return {name: value for name, value in state.items() if name != "_lent"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lent=LentArrays())

    def _take_changes(self, lent: Iterable[tuple[Hashable, NDArray[np.float32]]] = ()) -> None:
        """Store the arrays that were written to: of those that nobody has any more, and of the given ones."""
        for key, array in [*self._lent.returned(), *lent]:
            number = self._numbers[key]
            rows, words = self._rows(number).view(np.uint32), array.view(np.uint32)  # NaN equals itself
            if not np.array_equal(words[: len(rows)], rows) or words[len(rows) :].any():
                item = without_padding(torch.from_numpy(array.copy()), self._pad_row)
                self._append([key], PackedTokens.from_list([item]), [len(array)])

    def _rows(self, number: int) -> NDArray[np.float32]:
        batch = bisect_right(self._starts, number) - 1
        rows: NDArray[np.float32] = self._batches[batch][number - self._starts[batch]].detach().numpy()
        return rows

    def __contains__(self, key: object) -> bool:
        return key in self._numbers

    def __iter__(self) -> Iterator[Any]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __repr__(self) -> str:
        return f"TokenEmbeddings({len(self)} items, dim {self.dim})"


def token_embeddings(embeddings: Any, keys: Iterable[Hashable], name: str, *, pad_row: bool) -> TokenEmbeddings:
    """Return a mapping as TokenEmbeddings, which has at least these keys. TokenEmbeddings are returned as they are.

    Raises
    ------
    TypeError
        Not a mapping, or an item that is no array.
    ValueError
        A key that is not in the mapping, or arrays that are not ``[length, dim]`` with one dim.
    """
    if not isinstance(embeddings, Mapping):
        msg = f"{name} must be a dict of embeddings; got {type(embeddings).__name__}"
        raise TypeError(msg)
    distinct = list(dict.fromkeys(keys))
    if missing := [key for key in distinct if key not in embeddings]:
        msg = f"{name} has no embedding of {missing[0]!r}: encode it first"
        raise ValueError(msg)
    if isinstance(embeddings, TokenEmbeddings):
        return embeddings
    arrays = [rows_of(embeddings[key], f"{name}[{key!r}]") for key in distinct]
    packed = PackedTokens.from_list([without_padding(rows, pad_row) for rows in arrays])
    found = TokenEmbeddings(pad_row=pad_row)
    found.add_packed(distinct, packed, [len(rows) for rows in arrays])
    return found


def rows_of(array: Any, name: str) -> Tensor:
    """Return an array, a tensor or nested lists as float32 ``[length, dim]`` on the CPU."""
    rows = float_tensor(array, name).detach().to("cpu", torch.float32)
    if rows.ndim != 2:
        msg = f"{name} must be [length, dim]; got shape {list(rows.shape)}"
        raise ValueError(msg)
    return rows


def without_padding(rows: Tensor, pad_row: bool) -> Tensor:
    """Leave out the zero rows at the end, except one if ``pad_row``: more of them score the same as one."""
    real = np.flatnonzero(rows.numpy().any(axis=1))  # torch would start its threads for each small array
    length = int(real[-1]) + 1 if len(real) else 0
    return rows[: length + 1] if pad_row else rows[:length]


def check_dims(q: TokenEmbeddings, d: TokenEmbeddings) -> None:
    """Raise ValueError if queries and documents have different dims."""
    if len(q) and len(d) and q.dim != d.dim:
        msg = f"queries and documents need the same dim; got queries [*, {q.dim}] and documents [*, {d.dim}]"
        raise ValueError(msg)
