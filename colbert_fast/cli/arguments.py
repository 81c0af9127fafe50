"""What several commands read from their arguments."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colbert_fast.cli.output import shortened
from colbert_fast.cli.texts import FORMATS

# Options of every command with a model, and their names for the encoder. One that is not given has no value here,
# because an encoder must know whether its caller chose a value.
MODEL_OPTIONS = {
    "embedding_size": "embedding_size",
    "max_length_query": "max_length_query",
    "max_length_document": "max_length_document",
    "query_prefix": "query_prefix",
    "document_prefix": "document_prefix",
    "device": "device",
    # A backend of scoring is called `--backend`, and a dtype of embeddings `--dtype`.
    "encoder_backend": "backend",
    "encoder_dtype": "dtype",
}


def add_model(parser: argparse.ArgumentParser, *, many: bool = False, required: bool = True) -> None:
    """Add ``--model`` and what goes with it. With ``many``, several models may be given."""
    group = parser.add_argument_group("model")
    name = "a folder, a name on the Hugging Face hub, or the word demo: the packaged MiniLM"
    if many:
        group.add_argument(
            "--model", action="append", default=[], metavar="M", type=unicode_text, help=f"{name}; once for each model"
        )
    else:
        group.add_argument("--model", required=required, metavar="M", type=unicode_text, help=name)
    options: list[tuple[str, Callable[[str], object], str, str]] = [
        ("--embedding-size", _size, "N", "size of a new projection; none: the model's own states"),
        ("--max-length-query", positive, "N", "tokens of a query at most"),
        ("--max-length-document", positive, "N", "tokens of a document at most"),
        ("--query-prefix", unicode_text, "TEXT", "what is put before every query"),
        ("--document-prefix", unicode_text, "TEXT", "what is put before every document"),
        ("--device", _words_of("a device"), "NAME", "such as cpu or cuda; default: the best"),
        ("--encoder-backend", _words_of("a backend"), "NAME", "what runs the transformer: torch, onnx or openvino"),
        ("--encoder-dtype", _words_of("a dtype"), "NAME", "what it computes in, such as bfloat16 or int8"),
    ]
    for option, kind, shown, told in options:
        group.add_argument(option, default=argparse.SUPPRESS, type=kind, metavar=shown, help=told)


def model_options(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the model that the user gave."""
    return {theirs: getattr(chosen, name) for name, theirs in MODEL_OPTIONS.items() if hasattr(chosen, name)}


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add ``--backend``."""
    told = "a backend of scoring, such as cpu:avx2 or torch; default: the best"
    parser.add_argument("--backend", help=told)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add ``--cache``."""
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep embeddings in this folder; a later run goes on from them"
    )


def add_format(parser: argparse.ArgumentParser, name: str, of: str) -> None:
    """Add an option that says how a file is read."""
    told = f"how {of} is read; default: jsonl or tsv by the ending of its name; of any other name: a text on each line"
    parser.add_argument(name, choices=FORMATS, help=told)


def positive(text: str) -> int:
    """Read a number of 1 or more."""
    # Python refuses to read a number with thousands of digits. Twenty digits are more than any valid number has.
    number = int(text.lstrip("0")[:20] or 0) if text.isdecimal() else 0
    if number < 1:
        msg = f"must be a number of 1 or more; got {shortened(ascii(text))}"
        raise argparse.ArgumentTypeError(msg)
    return number


def question(text: str) -> str:
    """Read a question, which must have words."""
    return _words(text, "a question")


def words(text: str) -> str:
    """Read a text, which must have words."""
    return _words(text, "a text")


def unicode_text(text: str) -> str:
    """Read a text, which may be empty."""
    return _unicode(text, "a text")


def _words_of(what: str) -> Callable[[str], str]:
    return lambda text: _words(text, what)


def _words(text: str, what: str) -> str:
    text = _unicode(text, what)
    if not text.strip():
        msg = f"{what} must have words; got {shortened(ascii(text))}"
        raise argparse.ArgumentTypeError(msg)
    return text


def _unicode(text: str, what: str) -> str:
    try:
        # The locale may not be UTF-8, although the bytes of the text are.
        return text if text.isascii() else _decoded(text)
    except UnicodeError:
        msg = f"{what} must be text in UTF-8; got {shortened(ascii(text))}"
        raise argparse.ArgumentTypeError(msg) from None


def _decoded(text: str) -> str:
    """Return the text; if it has bytes that Python could not decode, decode all its bytes as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text).decode()
    return text


def _size(text: str) -> int | None:
    return None if text.lower() == "none" else positive(text)
