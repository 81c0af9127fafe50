"""Arrays that a mapping gave to its users, who may write into them."""

from __future__ import annotations

import weakref
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float32]


class LentArrays:
    """The arrays that the users of a mapping have, and those that they had.

    A user of a dict of arrays may write into an array that he has read, and the dict then holds what he wrote. A
    mapping that makes an array when it is read asks here for the arrays that may have been written to.
    """

    def __init__(self) -> None:
        self._lent: weakref.WeakValueDictionary[Hashable, _Memory] = weakref.WeakValueDictionary()
        self._returned: list[_Memory] = []

    def __len__(self) -> int:
        return len(self._lent) + len(self._returned)

    def lend(self, key: Hashable, rows: _Array, height: int) -> _Array:
        """Return an array float32 ``[height, dim]``: the ``rows [n, dim]``, and rows of zeros after them.

        As long as a user has an array of this key, or a view of it, this is the same memory again.
        """
        memory = self._lent.get(key)
        if memory is None:
            memory = _Memory(height * rows.shape[1] * rows.itemsize)
            memory.key, memory.shape, memory.home = key, (height, rows.shape[1]), weakref.ref(self)
            memory.array()[: len(rows)] = rows
            self._lent[key] = memory
        return memory.array()

    def forget(self, key: Hashable) -> None:
        """Ask no more for the array of this key, because the key has another item now, or none."""
        memory = self._lent.pop(key, None)
        if memory is not None:
            memory.home = None
        self._returned = [memory for memory in self._returned if memory.key != key]

    def take_back(self, memory: _Memory) -> None:
        """Note that no user has this memory any more."""
        if self._lent.get(memory.key) is memory:
            self._lent.pop(memory.key, None)
        self._returned.append(memory)

    def returned(self) -> list[tuple[Hashable, _Array]]:
        """Return each array that no user has any more, with its key. Each comes once."""
        returned, self._returned = self._returned, []
        return [(memory.key, memory.array()) for memory in returned]

    def lent(self) -> list[tuple[Hashable, _Array]]:
        """Return each array that a user has, with its key."""
        # valuerefs() copies in one step, so that another thread may read an item meanwhile.
        found = [reference() for reference in self._lent.valuerefs()]
        return [(memory.key, memory.array()) for memory in found if memory is not None]


class _Memory(bytearray):
    """The memory of a lent array. It goes back when the array and all views of it are gone."""

    key: Hashable
    shape: tuple[int, int]
    home: weakref.ref[LentArrays] | None = None

    def array(self) -> _Array:
        found: _Array = np.ndarray(self.shape, np.float32, self)
        return found

    def __del__(self) -> None:
        home = self.home() if self.home is not None else None
        if home is not None:
            home.take_back(self)
