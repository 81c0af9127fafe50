"""``colbert-fast rank``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from colbert_fast._backends import named
from colbert_fast.cli import encoders, runs, texts
from colbert_fast.cli.arguments import add_backend, add_cache, add_format, add_model, model_options, positive
from colbert_fast.cli.notices import warnings_as_lines
from colbert_fast.cli.output import check_output, tell, write_lines


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "rank",
        help="rank the texts of a file for the queries of a file",
        description="Rank a corpus for queries: a TREC run, or JSON. A file - is standard input.",
    )
    parser.add_argument("queries", metavar="QUERIES", help="a file of queries: JSONL, TSV or plain text")
    parser.add_argument("corpus", metavar="CORPUS", help="a file of documents: JSONL, TSV or plain text")
    parser.add_argument("--k", type=positive, default=100, help="results of each query at most (default 100)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write; default: standard output")
    parser.add_argument(
        "--format",
        choices=(runs.TREC, runs.JSON, runs.JSONL),
        default=runs.TREC,
        help="of the output: a TREC run (default), one JSON list, or a line of JSON for each query",
    )
    parser.add_argument("--candidates", metavar="RUN", help="a TREC run; only its documents are ranked, query by query")
    add_format(parser, "--queries-format", "QUERIES")
    add_format(parser, "--corpus-format", "CORPUS")
    add_cache(parser)
    add_backend(parser)
    add_model(parser)
    parser.set_defaults(run=run, mistake_status=2, data=True)


def run(chosen: argparse.Namespace) -> tuple[list[str], int]:
    """Return what is printed, as lines, and the exit status."""
    named(chosen.backend)
    if [chosen.queries, chosen.corpus, chosen.candidates].count(texts.STANDARD_INPUT) > 1:
        msg = "only one file can be standard input"
        raise ValueError(msg)
    if chosen.output is not None:
        check_output(chosen.output)
    queries = texts.read(chosen.queries, chosen.queries_format)
    corpus = texts.read(chosen.corpus, chosen.corpus_format)
    if chosen.format == runs.TREC:
        runs.check_trec_ids(queries, "query")
        runs.check_trec_ids(corpus, "document")
    candidates = None
    if chosen.candidates is not None:
        candidates = runs.read_run(chosen.candidates, queries, corpus)
        if without := sum(not row for row in candidates):
            run_file = texts.shown(chosen.candidates)
            tell(f"warning: {without} of {len(candidates)} queries have no candidates in {run_file}")
    with warnings_as_lines():
        encoder = encoders.load(chosen.model, model_options(chosen))
        encoders.check_backend(encoder, chosen.backend)
        # Imported only here, because they need what `load` looks for.
        from colbert_fast.cli.embedding import Embedder
        from colbert_fast.cli.ranking import search

        embedder = Embedder(encoder, folder=chosen.cache)
        found = search(embedder, queries.texts, corpus.texts, chosen.k, candidates, chosen.backend)
    lines = runs.as_lines(chosen.format, queries, corpus.ids, found.rankings)
    if chosen.output is None:
        return lines, 0
    write_lines(chosen.output, lines)
    return [], 0
