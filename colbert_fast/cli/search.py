"""``colbert-fast search``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import colbert_fast as cf
from colbert_fast._backends import named
from colbert_fast.cli import encoders
from colbert_fast.cli.arguments import add_backend, add_model, model_options, positive, question, words
from colbert_fast.cli.notices import warnings_as_lines
from colbert_fast.cli.output import shortened


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "search",
        help="find the best documents of a collection for queries",
        description="Find the best documents of a collection for queries, exactly, with the model of the collection.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a collection, as encode --collection makes it")
    parser.add_argument("query", metavar="QUERY", nargs="+", type=question, help="a text, quoted")
    parser.add_argument("-k", "--k", type=positive, default=10, help="results of each query at most (default 10)")
    where = "only documents for which this is true: SQL over id and the fields of the metadata"
    parser.add_argument("--where", metavar="SQL", type=words, help=where)
    candidates = "score only N documents of each query exactly, the best by the codes: faster, and may miss some"
    parser.add_argument("--candidates", metavar="N", type=positive, help=candidates)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_backend(parser)
    add_model(parser, required=False)
    parser.set_defaults(run=run, mistake_status=2)


def run(chosen: argparse.Namespace) -> tuple[list[str], int]:
    """Return what is printed, as lines, and the exit status."""
    named(chosen.backend)
    options = model_options(chosen)
    with warnings_as_lines(), cf.Collection(chosen.folder, read_only=True) as collection:
        encoder = encoders.of_collection(collection, chosen.model, options)
        found = collection.topk(
            encoder.encode_packed(chosen.query, query_mode=True),
            chosen.k,
            where=chosen.where,
            candidates=chosen.candidates,
            backend=chosen.backend,
            device=options.get("device"),
        )
        results = [
            [
                {"id": name, "score": score, "metadata": collection.metadata(name)}
                for name, score in zip(ids, scores, strict=True)
                if name is not None
            ]
            for ids, scores in zip(found.ids, found.scores.tolist(), strict=True)
        ]
    if not chosen.json:
        return _as_table(chosen.query, results), 0
    rows = [
        {"query": query, "certified": found.certified, "read": int(read), "results": row}
        for query, read, row in zip(chosen.query, found.read, results, strict=True)
    ]
    return ["[", ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "]"], 0


def _as_table(queries: list[str], results: list[list[dict[str, Any]]]) -> list[str]:
    lines = []
    for query, row in zip(queries, results, strict=True):
        wide = max([2, *(len(one["id"]) for one in row)])
        lines += ["", query, f"  rank    score  {'id':<{wide}}"]
        for rank, one in enumerate(row, start=1):
            metadata = one["metadata"] or {}
            told = " ".join(str(metadata.get("title") or metadata.get("text") or "").split())
            lines.append(f"  {rank:>4} {one['score']:>8.4f}  {one['id']:<{wide}}  {shortened(told, 70)}".rstrip())
        if not row:
            lines.append("  no document")
    return [line.rstrip() for line in lines[1:]]
