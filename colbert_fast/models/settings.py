"""The settings with which an encoder turns a text into tokens, and checks of their values."""

from __future__ import annotations

from typing import Any

from sentence_transformers import MultiVectorEncoder

from colbert_fast._integers import positive_int

# The settings that metadata.json holds. The constructor of ColBERT takes arguments with the same names.
SETTINGS = (
    "max_length_query",
    "max_length_document",
    "query_prefix",
    "document_prefix",
    "padding",
    "truncation",
    "add_special_tokens",
)

# No text has so many tokens.
_MAX_LENGTH = 2**31


def check_settings(settings: dict[str, Any]) -> None:
    """Raise ValueError or TypeError for a setting that no encoder can have. Turn the two lengths into Python ints."""
    for name in ("max_length_query", "max_length_document"):
        settings[name] = positive_int(settings[name], name)
        if settings[name] >= _MAX_LENGTH:
            msg = f"{name} must be below {_MAX_LENGTH}; got {settings[name]}"
            raise ValueError(msg)
    for name in ("query_prefix", "document_prefix"):
        if not isinstance(settings[name], str):
            msg = f"{name} must be a str; got {settings[name]!r}"
            raise TypeError(msg)
    for name in ("truncation", "add_special_tokens"):
        if not isinstance(settings[name], bool):
            msg = f"{name} must be True or False; got {settings[name]!r}"
            raise TypeError(msg)
    check_padding(settings["padding"])


def check_padding(value: Any) -> None:
    """Raise ValueError if `value` is not a known way of padding."""
    if value is not True and not (isinstance(value, str) and value in ("max_length", "longest")):
        msg = f'padding must be "max_length", "longest" or True; got {value!r}'
        raise ValueError(msg)


def set_query_length(encoder: MultiVectorEncoder, length: int) -> None:
    """Set a new maximum length of queries. It matters only for an encoder with query expansion."""
    transformer: Any = encoder[0]
    expansion = getattr(transformer, "query_expansion", None)
    if expansion is None:
        return
    positive_int(length, "max_length_query")
    transformer.query_length = None if expansion["strategy"] == "fixed" else length
    transformer.query_expansion = expanded_to(expansion, length)


def expanded_to(expansion: dict[str, Any], length: int) -> dict[str, Any]:
    """Return how sentence-transformers should expand queries of at most `length` tokens.

    The strategy "fixed" fills every query up to `length`. The strategy "min" fills a shorter query up to a length of
    its own, which must not be above `length`.
    """
    fixed = expansion["strategy"] == "fixed"
    return {**expansion, "length": length if fixed else min(length, expansion["length"])}


def check_settings_of(path: str, settings: dict[str, Any]) -> None:
    """Check settings that were read from the file `path`, and name this file in the error."""
    try:
        check_settings(settings)
    except (TypeError, ValueError) as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error
