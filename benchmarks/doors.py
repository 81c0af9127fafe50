"""Scoring functions of PyLate and colpali-engine beside the doors that replace them, on CPU.

`python -m benchmarks.doors pylate`, or `colpali`, in an environment with that library and colbert-fast. Each row is
checked before it is timed. A time is the median of rounds in which both take turns.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colbert_fast.bench import cpu_name
from colbert_fast.integrations import colpali, pylate

ROUNDS = 15
DIM = 128


class Row(NamedTuple):
    """One call of a library, and the same call of ours."""

    name: str
    theirs: Callable[[], Any]
    ours: Callable[[], Any]


def tokens(*shape: int) -> Tensor:
    """Unit vectors ``[*shape, DIM]``."""
    return torch.nn.functional.normalize(torch.randn(*shape, DIM), dim=-1)


def ragged(count: int) -> list[Tensor]:
    """Documents of 30 to 180 tokens."""
    return [tokens(length) for length in torch.randint(30, 181, (count,)).tolist()]


def prefix_mask(*shape: int) -> Tensor:
    """A mask ``[*shape]`` that keeps between a sixth of the last dimension and all of it."""
    *counts, longest = shape
    return torch.arange(longest) < torch.randint(longest // 6, longest + 1, (*counts, 1))


def with_gradients(score: Callable[..., Tensor], leaves: Sequence[Tensor], *rest: Any) -> Tensor:
    """Score and go back. Return all gradients in one row."""
    gradients = torch.autograd.grad(score(*leaves, *rest).logsumexp(-1).sum(), list(leaves))
    return torch.cat([gradient.flatten() for gradient in gradients])


def pylate_rows() -> Iterator[Row]:
    scores, rank = importlib.import_module("pylate.scores"), importlib.import_module("pylate.rank")

    def row(name: str, call: Callable[[Any], Any]) -> Row:
        return Row(name, functools.partial(call, scores), functools.partial(call, pylate))

    query, documents, mask = tokens(1, 32), tokens(1000, 180), prefix_mask(1000, 180)
    yield row(
        "`colbert_scores`, 1 query, 1000 documents with a mask",
        lambda door: door.colbert_scores(query, documents, documents_mask=mask),
    )
    queries, items = list(tokens(500, 32)), ragged(500)
    yield row(
        "`colbert_scores_pairwise`, 500 pairs of lists",
        lambda door: door.colbert_scores_pairwise(queries, items),
    )
    candidates = [ragged(100) for _ in range(10)]
    ids = [list(range(100))] * 10
    yield Row(
        "`rank.rerank`, 10 queries, 100 candidates each",
        lambda: [result["score"] for results in rank.rerank(ids, queries[:10], candidates) for result in results],
        lambda: [result["score"] for results in pylate.rerank(ids, queries[:10], candidates) for result in results],
    )
    leaves = [tokens(16, 32).requires_grad_(), tokens(16, 8, 180).requires_grad_()]
    masks = None, prefix_mask(16, 8, 180)
    yield row(
        "`colbert_kd_scores` and gradients, 16 queries, 8 candidates each",
        lambda door: with_gradients(door.colbert_kd_scores, leaves, *masks),
    )
    groups = [leaves[0], tokens(16, 2, 180).requires_grad_()]
    group_masks = None, prefix_mask(16, 2, 180)
    yield row(
        "`ColBERTScores` and gradients, 16 queries, 16 x 2 documents",
        lambda door: with_gradients(door.ColBERTScores(), groups, *group_masks),
    )


def colpali_rows() -> Iterator[Row]:
    scoring = importlib.import_module("colpali_engine.utils.maxsim")
    processor = importlib.import_module("colpali_engine.utils.processing_utils").BaseVisualRetrieverProcessor
    queries, pages = [tokens(20) for _ in range(8)], [tokens(1030) for _ in range(100)]
    yield Row(
        "`score_multi_vector`, 8 queries, 100 pages of 1030 patches",
        lambda: processor.score_multi_vector(queries, pages, device="cpu"),
        lambda: colpali.score_multi_vector(queries, pages, device="cpu"),
    )
    uneven = [page[:length] for page, length in zip(pages, torch.randint(500, 1031, (100,)).tolist(), strict=True)]
    yield Row(
        "`score_multi_vector`, 8 queries, 100 pages of 500 to 1030 patches",
        lambda: processor.score_multi_vector(queries, uneven, device="cpu"),
        lambda: colpali.score_multi_vector(queries, uneven, device="cpu"),
    )
    leaves = [tokens(8, 20).requires_grad_(), tokens(8, 1030).requires_grad_()]
    yield Row(
        "`maxsim_inbatch` and gradients, 8 queries, 8 pages",
        lambda: with_gradients(scoring.maxsim_inbatch, leaves),
        lambda: with_gradients(colpali.maxsim_inbatch, leaves),
    )
    groups = [leaves[0], tokens(8, 4, 1030).requires_grad_()]
    yield Row(
        "`maxsim_kd` and gradients, 8 queries, 4 pages each",
        lambda: with_gradients(scoring.maxsim_kd, groups),
        lambda: with_gradients(colpali.maxsim_kd, groups),
    )


def medians(row: Row) -> tuple[float, float]:
    """Check that both give the same, and return the milliseconds of theirs and of ours."""
    torch.testing.assert_close(torch.as_tensor(row.ours()), torch.as_tensor(row.theirs()), rtol=1e-3, atol=1e-4)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, seconds in zip((row.theirs, row.ours), times, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    theirs, ours = (1e3 * statistics.median(seconds) for seconds in times)
    return theirs, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=["pylate", "colpali"])
    library = parser.parse_args().library
    torch.manual_seed(0)
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"| call, dim {DIM} | {library} ms | ours ms | ratio |\n| --- | --- | --- | --- |")
    for row in pylate_rows() if library == "pylate" else colpali_rows():
        theirs, ours = medians(row)
        print(f"| {row.name} | {theirs:.1f} | {ours:.2f} | {theirs / ours:.1f}x |", flush=True)


if __name__ == "__main__":
    main()
