"""What a text is turned into tokens with: the settings of an encoder, and which values they can have."""

from __future__ import annotations

from typing import Any

from sentence_transformers import MultiVectorEncoder

from colbert_fast._integers import positive_int

# What metadata.json holds and the constructor of ColBERT takes.
SETTINGS = (
    "max_length_query",
    "max_length_document",
    "query_prefix",
    "document_prefix",
    "padding",
    "truncation",
    "add_special_tokens",
)

# No text has as many tokens.
_MAX_LENGTH = 2**31


def check_settings(settings: dict[str, Any]) -> None:
    """Raise ValueError or TypeError for a setting no encoder can have; make the lengths Python's own integers."""
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
    """Raise ValueError unless `value` is a way of padding."""
    if value is not True and not (isinstance(value, str) and value in ("max_length", "longest")):
        msg = f'padding must be "max_length", "longest" or True; got {value!r}'
        raise ValueError(msg)


def set_query_length(encoder: MultiVectorEncoder, length: int) -> None:
    """Make query expansion, where an encoder has it, obey a new maximum length of queries."""
    transformer: Any = encoder[0]
    expansion = getattr(transformer, "query_expansion", None)
    if expansion is None:
        return
    positive_int(length, "max_length_query")
    transformer.query_length = None if expansion["strategy"] == "fixed" else length
    transformer.query_expansion = expanded_to(expansion, length)


def expanded_to(expansion: dict[str, Any], length: int) -> dict[str, Any]:
    """How sentence-transformers should expand queries of at most `length` tokens.

    Expansion of the strategy "fixed" gives every query this length. Expansion of the strategy "min" has a length of
    its own, up to which a shorter query is filled; it must not be above `length`.
    """
    fixed = expansion["strategy"] == "fixed"
    return {**expansion, "length": length if fixed else min(length, expansion["length"])}


def check_settings_of(path: str, settings: dict[str, Any]) -> None:
    """check_settings for what a file says."""
    try:
        check_settings(settings)
    except (TypeError, ValueError) as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error
