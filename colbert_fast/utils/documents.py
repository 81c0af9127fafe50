"""The documents that callers give as dicts: their keys and their texts, checked."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]


def checked_fields(key: Any, on: Any) -> tuple[str, list[str]]:
    """Return the argument `key`, and the argument `on` as a list of names of fields."""
    if not isinstance(key, str):
        msg = f"key must be the name of a field; got {key!r}"
        raise TypeError(msg)
    fields = [on] if isinstance(on, str) else on
    if not isinstance(fields, (list, tuple)) or not all(isinstance(field, str) for field in fields):
        msg = f"on must be the name of a field or a list of names; got {on!r}"
        raise TypeError(msg)
    if not fields:
        msg = "on must name one field or more; got an empty list"
        raise ValueError(msg)
    return key, list(fields)


def checked_list(name: str, values: Any, kind: type, described: str) -> list[Any]:
    """Return an argument as a list. Raise TypeError unless each item is of this kind."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        msg = f"{name} must be a list of {described}; got {type(values).__name__}"
        raise TypeError(msg)
    listed = list(values)
    for index, value in enumerate(listed):
        if not isinstance(value, kind):
            msg = f"{name} must be a list of {described}; {name}[{index}] is {type(value).__name__}"
            raise TypeError(msg)
    return listed


def keys_of(documents: Any, key: str, name: str = "documents") -> tuple[list[Document], list[Hashable]]:
    """Return documents as a list, and their identifiers."""
    listed = checked_list(name, documents, Mapping, "dicts")
    for index, document in enumerate(listed):
        if key not in document:
            msg = f"{name}[{index}] has no field {key!r}, which identifies a document; it has {list(document)}"
            raise ValueError(msg)
        if not isinstance(document[key], Hashable):
            msg = f"{name}[{index}][{key!r}] must identify a document; got {document[key]!r}"
            raise TypeError(msg)
    return listed, [document[key] for document in listed]


def texts_by_key(documents: Any, key: str, on: Sequence[str], *, optional: bool = False) -> dict[Hashable, str]:
    """Return the text of each document by its identifier: the fields `on`, joined by spaces.

    Parameters
    ----------
    documents, key, on
        The dicts, the field that identifies a document, and the fields of its text.
    optional
        Whether a document may lack fields, as long as a document has one of them.

    Raises
    ------
    TypeError
        Not a list of dicts, or a field that is not a str.
    ValueError
        A missing field, or two documents with one identifier and different texts.
    """
    listed, keys = keys_of(documents, key)
    if optional and listed and not any(field in document for document in listed for field in on):
        msg = f"no document has a field of {list(on)}; the first document has {list(listed[0])}"
        raise ValueError(msg)
    texts: dict[Hashable, str] = {}
    for index, (document, name) in enumerate(zip(listed, keys, strict=True)):
        text = " ".join(_field(document, field, index, optional) for field in on)
        if texts.setdefault(name, text) != text:
            msg = f"documents[{index}] and an earlier document have the {key} {name!r} and different texts"
            raise ValueError(msg)
    return texts


def _field(document: Document, field: str, index: int, optional: bool) -> str:
    if field not in document and not optional:
        msg = f"documents[{index}] has no field {field!r}; it has {list(document)}"
        raise ValueError(msg)
    text = document.get(field, "")
    if not isinstance(text, str):
        msg = f"documents[{index}][{field!r}] must be a str; got {type(text).__name__}"
        raise TypeError(msg)
    return text
