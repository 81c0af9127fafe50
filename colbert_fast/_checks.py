"""Checks that several modules make: of arguments, and of the releases of other packages."""

from __future__ import annotations

from typing import Any


def positive_int(value: Any, name: str) -> int:
    """Return ``value``, or raise TypeError unless it is an int, ValueError unless it is 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be an int; got {value!r}"
        raise TypeError(msg)
    if value < 1:
        msg = f"{name} must be 1 or more; got {value}"
        raise ValueError(msg)
    if value >= 2**63:
        msg = f"{name} must be below 2**63; got {value}"
        raise ValueError(msg)
    return value


def release(version: str) -> list[int]:
    """Return the numbers that a version begins with: [6, 2] for 6.2.0rc1."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return numbers
