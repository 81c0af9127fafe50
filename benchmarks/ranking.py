"""Time `rank.ColBERT` and `retrieve.ColBERT` beside neural-cherche's, on the same embeddings.

    python -m benchmarks.ranking [--documents N] [--queries N] [--candidates N] [--rounds N]

It runs in an environment with neural-cherche 1.4.3, which needs an older transformers than `colbert_fast.models`. The
embeddings are random unit vectors with the lengths of real passages, so that no model is needed. neural-cherche gets
them as it keeps them: padded to 256 rows. Both use the threads that torch uses. The two take turns, and the fastest
round of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from colbert_fast import PackedTokens, rank, retrieve
from colbert_fast.rank import TokenEmbeddings

DIM, QUERY_ROWS, DOCUMENT_ROWS = 128, 64, 256


class Model:
    """What the rankers ask of an encoder after the texts are encoded."""

    device = "cpu"
    padding = "max_length"
    _scores_padding = True


def embedded(lengths: np.ndarray[Any, Any], rows: int, generator: torch.Generator) -> TokenEmbeddings:
    """Return random embeddings of these lengths, as an encoder that pads to ``rows`` would have made them."""
    items = []
    for length in lengths.tolist():
        item = torch.nn.functional.normalize(torch.randn(length, DIM, generator=generator), dim=1)
        items.append(torch.cat([item, torch.zeros(1, DIM)]) if length < rows else item)
    found = TokenEmbeddings(pad_row=True)
    found.add_packed([f"text {number}" for number in range(len(items))], PackedTokens.from_list(items), rows)
    return found


def seconds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    fastest = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            fastest[name] = min(fastest[name], time.perf_counter() - start)
    return fastest


def check(ours: list[list[dict[str, Any]]], theirs: list[list[dict[str, Any]]]) -> None:
    for our_ranking, their_ranking in zip(ours, theirs, strict=True):
        mine, other = ([result["similarity"] for result in ranking] for ranking in (our_ranking, their_ranking))
        np.testing.assert_allclose(mine, other, rtol=1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"documents": 500, "queries": 16, "candidates": 100, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    from neural_cherche import rank as their_rank  # type: ignore[import-not-found]
    from neural_cherche import retrieve as their_retrieve

    generator, random = torch.Generator().manual_seed(0), np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.4, 0.6, options.documents), 8, DOCUMENT_ROWS).astype(int)
    documents = embedded(lengths, DOCUMENT_ROWS, generator)
    queries = embedded(random.integers(6, 33, options.queries), QUERY_ROWS, generator)
    padded, padded_queries = dict(documents), dict(queries)
    keys = list(documents)
    candidates = [
        [{"id": keys[i]} for i in random.choice(len(keys), options.candidates, replace=False)] for _ in queries
    ]
    quiet: dict[str, Any] = {"tqdm_bar": False, "k": 10}
    ours, theirs = rank.ColBERT("id", "text", Model()), their_rank.ColBERT("id", "text", Model())
    found, their_found = (module.ColBERT("id", "text", Model()) for module in (retrieve, their_retrieve))
    found.add(documents)
    their_found.add(padded)
    check(ours(candidates, queries, documents, **quiet), theirs(candidates, padded_queries, padded, **quiet))
    check(found(queries, **quiet), their_found(padded_queries, **quiet))
    times = seconds(
        {
            "rank": lambda: ours(candidates, queries, documents, **quiet),
            "rank, a dict of padded arrays": lambda: ours(candidates, padded_queries, padded, **quiet),
            "rank, neural-cherche": lambda: theirs(candidates, padded_queries, padded, **quiet),
            "retrieve": lambda: found(queries, **quiet),
            "retrieve, neural-cherche": lambda: their_found(padded_queries, **quiet),
        },
        options.rounds,
    )
    for name, value in times.items():
        baseline = times[f"{name.split(',')[0]}, neural-cherche"]
        print(f"{name:32} {value * 1000:10.1f} ms {baseline / value:8.1f} x")


if __name__ == "__main__":
    main()
