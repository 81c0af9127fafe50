"""Checks of arguments that several modules take."""

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
