"""Integers that callers hand in: a single one as a Python int, several as a tensor."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from colbert_fast._arrays import tensor_of

Integers: TypeAlias = "Tensor | np.ndarray[Any, Any] | Sequence[Any]"
"""What names queries and documents by their numbers."""


def positive_int(value: Any, name: str) -> int:
    """Return ``value`` as a Python int. It may be an integer of numpy, or a tensor with a single integer.

    Raises TypeError unless it is an integer (a bool is not one); ValueError unless it is 1 or more and below 2**63.
    """
    number = value if type(value) is int else _integer(value, name)
    if number < 1:
        msg = f"{name} must be 1 or more; got {number}"
        raise ValueError(msg)
    if number >= 2**63:
        msg = f"{name} must be below 2**63; got {number}"
        raise ValueError(msg)
    return number


def not_negative_int(value: Any, name: str) -> int:
    """Return ``value`` as :func:`positive_int` does, but let it be 0, and 2**63 or more."""
    number = _integer(value, name)
    if number < 0:
        msg = f"{name} must be 0 or more; got {number}"
        raise ValueError(msg)
    return number


def _integer(value: Any, name: str) -> int:
    # The dtype of an array or a tensor is asked because torch accepts a tensor of one bool as an index.
    is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
    try:
        if not is_bool:
            return operator.index(value)
    except (TypeError, RuntimeError):  # a tensor of floats, of several numbers, or without memory
        pass
    msg = f"{name} must be an int; got {value!r}"
    raise TypeError(msg) from None


def integer_tensor(value: Integers, name: str) -> Tensor:
    """Return ``value`` as an int64 tensor. Raises TypeError if it holds anything but integers."""
    tensor = tensor_of(value, name)
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        msg = f"{name} must be integers; got {tensor.dtype}"
        raise TypeError(msg)
    return tensor.to(torch.int64)


def check_range(numbers: Tensor, counts: dict[str, int], name: str) -> None:
    """Raise unless the numbers in each column of ``numbers [n, columns]`` are from 0 to the column's count - 1.

    ``counts`` has an entry for each column: the name of what is numbered, and the count. Waits for the device once.
    """
    if len(numbers) == 0:
        return
    lows, highs = torch.stack(torch.aminmax(numbers, dim=0)).tolist()
    for low, high, (what, count) in zip(lows, highs, counts.items(), strict=True):
        if low < 0 or high >= count:
            allowed = f"from 0 to {count - 1}" if count else "but there are none"
            got = f"numbers from {low} to {high}" if low < high else f"the number {low}"
            msg = f"{name} must number {what} {allowed}; got {got}"
            raise ValueError(msg)
