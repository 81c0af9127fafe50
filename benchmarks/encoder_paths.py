"""The ways to run an encoder, side by side: how fast each one embeds, and how well its embeddings rank.

    python -m benchmarks.encoder_paths quality FOLDER... [--path NAME]... [--documents N]
    python -m benchmarks.encoder_paths speed FOLDER... [--path NAME]... [--documents N] [--rounds N]

A folder has the layout of BEIR, as for `benchmarks.accuracy`. The model is the demo's. `quality` ranks all documents
for every query. `speed` embeds the first documents of each folder in turns; a time is the median. A path whose library
is missing is left out, with the reason.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import colbert_fast as cf
from benchmarks.accuracy import demo_encoder, mean_ndcg
from benchmarks.beir import lines, read_judgements
from colbert_fast.bench import cpu_name

Encode = Callable[[list[str], bool], cf.PackedTokens]
THEIRS = "sentence-transformers, its default"


def _theirs() -> Encode:
    encoder = demo_encoder().encoder

    def encode(texts: list[str], query: bool) -> cf.PackedTokens:
        side = encoder.encode_query if query else encoder.encode_document
        return cf.PackedTokens.from_list(side(texts, show_progress_bar=False))

    return encode


def _ours(compiled: bool = False, **options: Any) -> Callable[[], Encode]:
    def load() -> Encode:
        encoder = demo_encoder(**options)
        if compiled:
            encoder.encoder[0].model = torch.compile(encoder.model, dynamic=True)
        return lambda texts, query: encoder.encode_packed(texts, query_mode=query)

    return load


PATHS: dict[str, Callable[[], Encode]] = {
    THEIRS: _theirs,
    "torch, float32": _ours(),
    "torch, float32, attn_implementation='eager'": _ours(attn_implementation="eager"),
    "torch, float32, torch.compile": _ours(compiled=True),
    "torch, bfloat16": _ours(dtype=torch.bfloat16),
    "onnx, float32": _ours(backend="onnx"),
    "onnx, int8": _ours(backend="onnx", dtype="int8"),
    "openvino, float32": _ours(backend="openvino"),
    "openvino, bfloat16": _ours(backend="openvino", dtype="bfloat16"),
    "openvino, int8": _ours(backend="openvino", dtype="int8"),
}


def loaded(names: Sequence[str]) -> dict[str, Encode]:
    """Load the paths that can run here, and print why the others cannot."""
    found = {}
    for name in names:
        try:
            found[name] = PATHS[name]()
        except (ImportError, ValueError) as problem:
            print(f"{name}: left out: {problem}", flush=True)
    return found


def documents_of(folder: Path, limit: int | None) -> tuple[list[str], list[str]]:
    """Return the ids and the texts of a folder's first documents."""
    corpus = lines(folder / "corpus.jsonl")[:limit]
    return [line["_id"] for line in corpus], [f"{line.get('title', '')} {line['text']}".strip() for line in corpus]


def quality(encode: Encode, folder: Path, limit: int | None) -> float:
    """Return nDCG@10 x 100, with all documents ranked for every query."""
    ids, texts = documents_of(folder, limit)
    asked = lines(folder / "queries.jsonl")
    queries = encode([line["text"] for line in asked], True).to(torch.float32)
    scores = cf.maxsim(queries, encode(texts, False).to(torch.float32))
    judged = read_judgements(folder / "qrels" / "test.tsv")
    return 100 * mean_ndcg(scores, [line["_id"] for line in asked], ids, judged)


def speed(paths: dict[str, Encode], texts: list[str], rounds: int) -> dict[str, float]:
    """Return the median seconds in which each path embeds the texts."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for encode in paths.values():
        encode(texts[:8], False)
    for _ in range(rounds):
        for name, encode in paths.items():
            start = time.perf_counter()
            encode(texts, False)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(some) for name, some in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.encoder_paths", description="The ways to run an encoder.")
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("folder", nargs="+", type=Path, help="in the layout of BEIR")
    parser.add_argument("--path", action="append", choices=tuple(PATHS), help="only these; once for each")
    parser.add_argument("--documents", type=int, metavar="N", help="only the first N of each folder")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of speed (default 3)")
    chosen = parser.parse_args(arguments)
    for folder in chosen.folder:
        if not (folder / "corpus.jsonl").is_file():
            parser.error(f"{folder} must be a folder with corpus.jsonl, in the layout of BEIR")
    try:
        paths = loaded(chosen.path or list(PATHS))
    except ModuleNotFoundError as missing:
        parser.error(str(missing))
    if chosen.what == "quality":
        for name, encode in paths.items():
            found = ", ".join(
                f"{folder.name} {quality(encode, folder, chosen.documents):.2f}" for folder in chosen.folder
            )
            print(f"{name}: nDCG@10 {found}", flush=True)
        return
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for folder in chosen.folder:
        texts = documents_of(folder, chosen.documents)[1]
        medians = speed(paths, texts, chosen.rounds)
        for name, value in medians.items():
            ratio = f", {medians[THEIRS] / value:.2f} times" if THEIRS in medians else ""
            print(f"{folder.name}, {len(texts)} documents, {name}: {value:.2f} s{ratio}", flush=True)


if __name__ == "__main__":
    main()
