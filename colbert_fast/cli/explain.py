"""``colbert-fast explain``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import colbert_fast as cf
from colbert_fast.cli import encoders
from colbert_fast.cli.arguments import add_model, model_options, words
from colbert_fast.cli.notices import warnings_as_lines
from colbert_fast.cli.output import check_output, write_file


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "explain",
        help="show which token of a document answered each token of a query",
        description="Show which token of a document answered each token of a query, and what that adds to the score.",
    )
    parser.add_argument("query", metavar="QUERY", type=words, help="a text, quoted")
    parser.add_argument("document", metavar="DOCUMENT", type=words, help="a text, quoted")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page for the browser, and print nothing else"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_model(parser)
    parser.set_defaults(run=run, mistake_status=2)


def run(chosen: argparse.Namespace) -> tuple[list[str], int]:
    """Return what is printed, as lines, and the exit status."""
    if chosen.html is not None:
        check_output(chosen.html)
    with warnings_as_lines():
        encoder = encoders.load(chosen.model, model_options(chosen))
        found = cf.explain(encoder, chosen.query, chosen.document)
    if chosen.html is not None:
        write_file(chosen.html, found.to_html())
    if chosen.json:
        return [json.dumps(found.to_dict(), ensure_ascii=False)], 0
    return [] if chosen.html is not None else [str(found)], 0
