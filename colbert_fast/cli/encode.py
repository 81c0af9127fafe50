"""``colbert-fast encode``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from colbert_fast.cli import encoders, texts
from colbert_fast.cli.arguments import add_format, add_model, model_options, unicode_text
from colbert_fast.cli.notices import warnings_as_lines
from colbert_fast.cli.output import check_output
from colbert_fast.collection.layout import CODES, EXACT

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "encode",
        help="write the embeddings of the texts of a file to a collection, or to a safetensors file",
        description="Write the embeddings of the texts of a file to a collection, or to a safetensors file.",
    )
    corpus = "JSONL, TSV or plain text; a folder with corpus.jsonl; - is standard input"
    parser.add_argument("corpus", metavar="CORPUS", help=corpus)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--collection", type=Path, metavar="FOLDER", help="add them to this collection")
    target.add_argument("--output", type=Path, metavar="FILE", help="such as corpus.safetensors")
    resume = (
        "skip the documents that the collection has; or keep shards in the folder FILE.parts until FILE is whole, and "
        "go on from those that are there"
    )
    parser.add_argument("--resume", action="store_true", help=resume)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_format(parser, "--format", "CORPUS")
    group = parser.add_argument_group("collection")
    group.add_argument("--codes", choices=tuple(CODES), help="what a search scans (default of a new one: int8)")
    exact = "the dtype in which the tokens are kept beside the codes (default of a new one: float16)"
    group.add_argument("--exact", choices=(*EXACT, "none"), help=exact)
    fields = "keep these fields of JSONL as metadata; none named: all but the id and the text"
    group.add_argument("--metadata", nargs="*", metavar="FIELD", type=unicode_text, help=fields)
    group = parser.add_argument_group("file")
    group.add_argument("--queries", action="store_true", help="embed the texts as queries, not as documents")
    group.add_argument("--dtype", choices=tuple(_DTYPES), help="of the embeddings (default float32)")
    add_model(parser)
    parser.set_defaults(run=run, mistake_status=2, check=lambda chosen: _check(parser, chosen))


def run(chosen: argparse.Namespace) -> tuple[list[str], int]:
    """Return what is printed, as lines, and the exit status."""
    if chosen.collection is not None:
        # Imported only here, with the database.
        from colbert_fast.cli import collecting

        with warnings_as_lines():
            return collecting.run(chosen)
    output: Path = chosen.output
    dtype = chosen.dtype or "float32"
    check_output(output, ordinary=True)
    given = texts.read(texts.corpus_of(chosen.corpus), chosen.format)
    parts = output.with_name(f"{output.name}.parts") if chosen.resume else None
    with warnings_as_lines():
        encoder = encoders.load(chosen.model, model_options(chosen))
        # Imported only here, because they need what `load` looks for.
        from colbert_fast.cli.embedding import Embedder, remove_shards, save

        embedder = Embedder(encoder, dtype=_DTYPES[dtype], folder=parts)
        started = time.perf_counter()
        found = embedder.all(given.texts, query=chosen.queries)
        seconds = time.perf_counter() - started
    metadata = {
        "kind": "queries" if chosen.queries else "documents",
        **encoders.described(encoder, chosen.model),
    }
    # Ids as a tensor: the metadata of a safetensors file have a limit of size.
    ids = torch.frombuffer(bytearray(json.dumps(given.ids, ensure_ascii=False).encode()), dtype=torch.uint8)
    save(output, found, {"ids": ids}, metadata)
    if parts is not None:
        remove_shards(parts)
    facts = {
        "file": str(output),
        "kind": metadata["kind"],
        "texts": len(found),
        "tokens": found.rows,
        "dim": found.dim,
        "dtype": dtype,
        "bytes": output.stat().st_size,
        "seconds": round(seconds, 3),
    }
    return [json.dumps(facts) if chosen.json else _told(facts)], 0


def _check(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    of_collection, of_file = ("codes", "exact", "metadata"), ("queries", "dtype")
    for name in of_collection if chosen.collection is None else of_file:
        if getattr(chosen, name) not in (None, False):
            parser.error(f"argument --{name}: goes with {'--output' if name in of_file else '--collection'} only")
    if chosen.queries and chosen.dtype == "int8":
        parser.error("argument --dtype: int8 is for documents; queries can be float32 or float16")


def _told(facts: dict[str, Any]) -> str:
    size = f"{facts['bytes'] / 2**20:.2f} MiB"
    return (
        f"{facts['file']}: {facts['texts']} {facts['kind']}, {facts['tokens']} tokens of dim {facts['dim']}, "
        f"{facts['dtype']}, {size}, encoded in {facts['seconds']:.2f} s"
    )
