"""Finds the items that an index names: a number, which may count from the end, a list, an integer tensor or a mask."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colbert_fast._arrays import tensor_of

_ACCEPTED = (
    "an index must be an integer, a slice, a list of integers or of bools, "
    "or a 1-D tensor or array of integers or of bools"
)


def item_numbers(index: Any, n: int, device: torch.device) -> int | Tensor:
    """Return the number of one of n items, from 0 to n - 1, or the numbers of several as int64 ``[m]`` on ``device``.

    Raises
    ------
    TypeError
        An index of another kind.
    IndexError
        A number that no item has, or a mask that has not n entries. Checking this waits for the device of the index.
    """
    if isinstance(index, (list, range)):
        index = _of_list(list(index), n)
    elif isinstance(index, (Tensor, np.ndarray)):
        index = tensor_of(index, "index")
    if not isinstance(index, Tensor):
        return _checked_number(_as_int(index, "an index"), n)
    if index.is_floating_point() or index.is_complex() or (index.dtype == torch.bool and index.ndim == 0):
        msg = f"{_ACCEPTED}; got a tensor of {index.dtype}, {index.ndim}-D"
        raise TypeError(msg)
    if index.ndim == 0:
        return _checked_number(int(index), n)
    if index.ndim != 1:
        msg = f"an index must have one dimension; got shape {list(index.shape)} for {n} items"
        raise IndexError(msg)
    if index.dtype == torch.bool:
        if len(index) != n:
            msg = f"a mask must have one entry for each of {n} items; got {len(index)}"
            raise IndexError(msg)
        return index.nonzero().squeeze(1).to(device)
    return _checked_numbers(index, n).to(device)


def _of_list(index: list[Any], n: int) -> Tensor:
    if index and all(isinstance(entry, (bool, np.bool_)) for entry in index):
        return torch.tensor([bool(entry) for entry in index], dtype=torch.bool, device="cpu")
    numbers = [_checked_number(_as_int(entry, f"index[{i}]"), n) for i, entry in enumerate(index)]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _as_int(value: Any, name: str) -> int:
    # torch and numpy accept a single bool of their own as an integer.
    if not isinstance(value, bool) and str(getattr(value, "dtype", "")) not in ("bool", "torch.bool"):
        try:
            return operator.index(value)
        except TypeError:
            pass
    if name == "an index":
        msg = f"{_ACCEPTED}; got {type(value).__name__}"
    else:
        msg = f"{_ACCEPTED}; {name} is {type(value).__name__}"
    raise TypeError(msg)


def _checked_number(number: int, n: int) -> int:
    if not -n <= number < n:
        msg = f"index {number} is out of range for {n} items"
        raise IndexError(msg)
    return number + n if number < 0 else number


def _checked_numbers(index: Tensor, n: int) -> Tensor:
    numbers = index.to(torch.int64)
    # A uint64 number beyond int64 becomes negative here. No batch has so many items, so it is outside.
    outside = (numbers < -n) | (numbers >= n) | (numbers < 0 if index.dtype == torch.uint64 else numbers < -n)
    # A tensor on the meta device has no values, and the values of a traced tensor are not known yet.
    if not (index.is_meta or torch.compiler.is_compiling()) and bool(outside.any()):
        wrong = int(numbers[outside][0])
        _checked_number(wrong % 2**64 if index.dtype == torch.uint64 else wrong, n)
    return torch.where(numbers < 0, numbers + n, numbers)
