"""The judgements of queries that callers give as dicts, checked."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeAlias

Judgements: TypeAlias = Mapping[str, Mapping[Any, int]]


def checked_judgements(qrels: Any) -> dict[str, dict[Any, int]]:
    """Return the argument `qrels` as dicts of int: the judgement of each document, by the query and the document.

    Raises
    ------
    TypeError
        Not a dict of dicts.
    ValueError
        A judgement that is not an integer.
    """
    if not isinstance(qrels, Mapping):
        msg = f"qrels must be a dict with the judgements of each query; got {type(qrels).__name__}"
        raise TypeError(msg)
    checked: dict[str, dict[Any, int]] = {}
    for query, judged in qrels.items():
        if not isinstance(judged, Mapping):
            msg = f"qrels[{query!r}] must be a dict of an integer for each document; got {type(judged).__name__}"
            raise TypeError(msg)
        for name, value in judged.items():
            if not isinstance(value, Real) or not float(value).is_integer():
                msg = f"qrels[{query!r}][{name!r}] must be an integer; got {value!r}"
                raise ValueError(msg)
        checked[query] = {name: int(value) for name, value in judged.items()}
    return checked
