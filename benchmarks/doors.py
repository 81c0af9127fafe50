"""Scoring functions of other libraries beside the doors that replace them, on the CPU.

`python -m benchmarks.doors sentence_transformers`, or `pylate`, or `colpali`, in an environment with that library and
colbert-fast. Each row is checked before it is timed. A time is the median of rounds in which both take turns.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colbert_fast.bench import MAX_RELATIVE_ERROR, cpu_name

ROUNDS = 15
DIM = 128


class Row(NamedTuple):
    """A call of functions that the library and our door both have."""

    name: str
    call: Callable[[Any], Any]


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
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    gradients = torch.autograd.grad(score(*leaves, *rest).logsumexp(-1).sum(), leaves)
    return torch.cat([gradient.flatten() for gradient in gradients])


def of_sentence_transformers() -> Any:
    util = importlib.import_module("sentence_transformers.util")
    scoring = importlib.import_module("sentence_transformers.multi_vector_encoder.scoring")
    names = "colbert_scores", "colbert_scores_pairwise", "colbert_kd_scores"
    return SimpleNamespace(maxsim=util.maxsim, **{name: getattr(scoring, name) for name in names})


def sentence_transformers_rows() -> Iterator[Row]:
    queries, q_mask = tokens(32, 32), torch.ones(32, 32, dtype=torch.bool)
    d, mask = tokens(32, 4, 180), prefix_mask(32, 4, 180)
    yield Row(
        "`colbert_scores` and gradients, 32 queries, 32 x 2 documents",
        lambda door: with_gradients(door.colbert_scores, [queries, d[:, :2]], q_mask, mask[:, :2]),
    )
    yield Row(
        "`colbert_scores_pairwise` and gradients, 32 pairs",
        lambda door: with_gradients(door.colbert_scores_pairwise, [queries, d[:, 0]], q_mask, mask[:, 0]),
    )
    yield Row(
        "`colbert_kd_scores` and gradients, 32 queries, 4 candidates each",
        lambda door: with_gradients(door.colbert_kd_scores, [queries, d], q_mask, mask),
    )
    items = ragged(1000)
    yield Row("`maxsim`, 16 queries, a list of 1000 documents", lambda door: door.maxsim(queries[:16], items))


def of_pylate() -> Any:
    scores, rank = importlib.import_module("pylate.scores"), importlib.import_module("pylate.rank")
    names = "colbert_scores", "colbert_scores_pairwise", "colbert_kd_scores", "ColBERTScores"
    return SimpleNamespace(rerank=rank.rerank, **{name: getattr(scores, name) for name in names})


def pylate_rows() -> Iterator[Row]:
    query, documents, mask = tokens(1, 32), tokens(1000, 180), prefix_mask(1000, 180)
    yield Row(
        "`colbert_scores`, 1 query, 1000 documents with a mask",
        lambda door: door.colbert_scores(query, documents, documents_mask=mask),
    )
    queries, items = list(tokens(500, 32)), ragged(500)
    yield Row(
        "`colbert_scores_pairwise`, 500 pairs of lists",
        lambda door: door.colbert_scores_pairwise(queries, items),
    )
    candidates, ids = [ragged(100) for _ in range(10)], [list(range(100))] * 10
    yield Row(
        "`rank.rerank`, 10 queries, 100 candidates each",
        lambda door: [hit["score"] for hits in door.rerank(ids, queries[:10], candidates) for hit in hits],
    )
    q, d, d_mask = tokens(16, 32), tokens(16, 8, 180), prefix_mask(16, 8, 180)
    yield Row(
        "`colbert_kd_scores` and gradients, 16 queries, 8 candidates each",
        lambda door: with_gradients(door.colbert_kd_scores, [q, d], None, d_mask),
    )
    yield Row(
        "`ColBERTScores` and gradients, 16 queries, 16 x 2 documents",
        lambda door: with_gradients(door.ColBERTScores(), [q, d[:, :2]], None, d_mask[:, :2]),
    )


def of_colpali() -> Any:
    scoring = importlib.import_module("colpali_engine.utils.maxsim")
    processor = importlib.import_module("colpali_engine.utils.processing_utils").BaseVisualRetrieverProcessor
    return SimpleNamespace(
        score_multi_vector=processor.score_multi_vector,
        maxsim_inbatch=scoring.maxsim_inbatch,
        maxsim_kd=scoring.maxsim_kd,
    )


def colpali_rows() -> Iterator[Row]:
    queries, pages = [tokens(20) for _ in range(8)], [tokens(1030) for _ in range(100)]
    yield Row(
        "`score_multi_vector`, 8 queries, 100 pages of 1030 patches",
        lambda door: door.score_multi_vector(queries, pages, device="cpu"),
    )
    uneven = [page[:length] for page, length in zip(pages, torch.randint(500, 1031, (100,)).tolist(), strict=True)]
    yield Row(
        "`score_multi_vector`, 8 queries, 100 pages of 500 to 1030 patches",
        lambda door: door.score_multi_vector(queries, uneven, device="cpu"),
    )
    q, d = tokens(8, 20), tokens(8, 4, 1030)
    yield Row(
        "`maxsim_inbatch` and gradients, 8 queries, 8 pages",
        lambda door: with_gradients(door.maxsim_inbatch, [q, d[:, 0].contiguous()]),
    )
    yield Row(
        "`maxsim_kd` and gradients, 8 queries, 4 pages each",
        lambda door: with_gradients(door.maxsim_kd, [q, d]),
    )


# By library: its functions, and the rows.
LIBRARIES: dict[str, tuple[Callable[[], Any], Callable[[], Iterator[Row]]]] = {
    "sentence_transformers": (of_sentence_transformers, sentence_transformers_rows),
    "pylate": (of_pylate, pylate_rows),
    "colpali": (of_colpali, colpali_rows),
}


def check(row: Row, theirs: Any, ours: Any) -> None:
    """Raise ValueError unless both give the same, relative to the largest number of the library."""
    expected, found = (torch.as_tensor(row.call(door)) for door in (theirs, ours))
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= MAX_RELATIVE_ERROR:
        msg = f"{row.name}: the relative error is {error:.1e}, above {MAX_RELATIVE_ERROR:.0e}"
        raise ValueError(msg)


def medians(row: Row, *doors: Any) -> list[float]:
    """Return the milliseconds of each door, in turns."""
    seconds: list[list[float]] = [[] for _ in doors]
    for _ in range(ROUNDS):
        for door, of_door in zip(doors, seconds, strict=True):
            start = time.perf_counter()
            row.call(door)
            of_door.append(time.perf_counter() - start)
    return [1e3 * statistics.median(of_door) for of_door in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=LIBRARIES)
    library = parser.parse_args().library
    functions, rows = LIBRARIES[library]
    doors = functions(), importlib.import_module(f"colbert_fast.integrations.{library}")
    torch.manual_seed(0)
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"| call, dim {DIM} | {library} ms | ours ms | ratio |\n| --- | --- | --- | --- |")
    for row in rows():
        check(row, *doors)
        theirs, ours = medians(row, *doors)
        print(f"| {row.name} | {theirs:.1f} | {ours:.2f} | {theirs / ours:.1f}x |", flush=True)


if __name__ == "__main__":
    main()
