"""``colbert-fast demo``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import colbert_fast as cf
from colbert_fast._backends import select
from colbert_fast.cli import encoders
from colbert_fast.cli.arguments import add_backend, positive, question
from colbert_fast.cli.output import shortened

_TEXTS = Path(__file__).parents[1] / "demo_texts.json"


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("demo", help="rank real text with a real model, offline")
    parser.add_argument(
        "query", nargs="*", type=question, help="your own questions, each quoted; default: three examples"
    )
    parser.add_argument(
        "--top", type=positive, default=3, metavar="K", help="passages to show per question (default 3)"
    )
    add_backend(parser)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> tuple[list[str], int]:
    """Encode passages and questions, rank the passages by MaxSim, and return the answers as lines of text."""
    examples, passages = _demo_texts()
    queries = chosen.query or examples
    top = min(chosen.top, len(passages))
    name = select("cpu", torch.float32, chosen.backend).name
    encoder = encoders.load(encoders.DEMO, {"device": "cpu"})
    started = time.perf_counter()
    documents = encoder.encode_documents(passages)
    questions = encoder.encode_queries(queries)
    encoded = time.perf_counter()
    scores, found = cf.topk(questions, documents, top, backend=chosen.backend)
    scored = time.perf_counter()

    lines = []
    for query, row_scores, row in zip(queries, scores.tolist(), found.tolist(), strict=True):
        lines += [f"\n{query}", "  rank   score  passage"]
        for rank, (score, number) in enumerate(zip(row_scores, row, strict=True), start=1):
            if number >= 0:
                lines.append(f"  {rank:>4} {score:>7.3f}  {shortened(passages[number])}")
    tokens = documents.tokens.shape[0] + questions.tokens.shape[0]
    lines += [
        "",
        f"encoded {len(passages)} passages and {len(queries)} questions ({tokens} tokens) in {encoded - started:.2f} s",
        f"scored {len(queries)} x {len(passages)} pairs in {(scored - encoded) * 1e3:.2f} ms with {name}, "
        f"{cf.get_num_threads()} threads",
    ]
    return lines, 0


def _demo_texts() -> tuple[list[str], list[str]]:
    """Return the questions and the passages of the demo."""
    try:
        texts = json.loads(_TEXTS.read_text(encoding="utf-8"))
        return list(texts["queries"]), list(texts["passages"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        msg = f"the demo's texts cannot be read from {_TEXTS}: {type(error).__name__}: {error}"
        raise ValueError(msg) from None
