"""Checks that several modules make: of arguments, and of the releases of other packages."""

from __future__ import annotations

import operator
import os
from typing import Any


def positive_int(value: Any, name: str) -> int:
    """Return ``value`` as a Python int. It may be an integer of numpy, or a tensor with a single integer.

    Raises TypeError unless it is an integer, which a bool is not; ValueError unless it is 1 or more.
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
    """The same of 0 or more, without a bound."""
    number = _integer(value, name)
    if number < 0:
        msg = f"{name} must be 0 or more; got {number}"
        raise ValueError(msg)
    return number


def _integer(value: Any, name: str) -> int:
    # The dtype of an array or a tensor: torch takes one of bool for an index.
    is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
    try:
        if not is_bool:
            return operator.index(value)
    except (TypeError, RuntimeError):  # a tensor of floats, of several numbers, or without memory
        pass
    msg = f"{name} must be an int; got {value!r}"
    raise TypeError(msg) from None


def environment(name: str) -> str | None:
    """Return what an environment variable says, or None if it is not set or blank."""
    return (os.environ.get(name) or "").strip() or None


def release(version: str) -> list[int]:
    """Return the numbers that a version begins with: [6, 2] for 6.2.0rc1."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return numbers
