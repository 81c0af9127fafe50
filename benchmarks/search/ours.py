"""colbert_fast, in memory and on disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.search.data import Array, Data
from benchmarks.search.index import Index, Search


def _in_memory(function: str, dtype: str, data: Data, _: Path) -> Search:
    import torch

    import colbert_fast as cf

    lengths = torch.from_numpy(np.array(data.lengths))
    rows = torch.from_numpy(np.array(data.documents))
    packed = cf.PackedTokens(
        rows if dtype == "int8" else rows.to(getattr(torch, dtype)), lengths.cumsum(0) - lengths, lengths
    )
    documents = packed.quantize("int8") if dtype == "int8" else packed

    def best(query: Array, k: int) -> tuple[list[int], None]:
        return cf.topk(query[None], documents, k)[1][0].tolist(), None

    def best_of_all_scores(query: Array, k: int) -> tuple[list[int], int]:
        scores = cf.maxsim(query[None], documents)[0]
        return scores.topk(min(k, len(scores)))[1].tolist(), len(scores)

    return best if function == "topk" else best_of_all_scores


def _build(codes: str, data: Data, folder: Path) -> None:
    import torch

    import colbert_fast as cf

    with cf.Collection(folder / "collection", codes=codes) as collection:
        for first, rows, lengths in data.batches(10_000):
            sizes = torch.from_numpy(np.array(lengths))
            # The rows are float16 numbers, so that nothing is lost.
            packed = cf.PackedTokens(torch.from_numpy(rows).half(), sizes.cumsum(0) - sizes, sizes)
            collection.add([str(number) for number in range(first, first + len(lengths))], packed)


def _open(candidates: int | None, _: Data, folder: Path) -> Search:
    import colbert_fast as cf

    collection = cf.Collection(folder / "collection", read_only=True)

    def search(query: Array, k: int) -> tuple[list[int], int]:
        found = collection.topk(query[None], k, candidates=candidates)
        return [int(name) for name in found.ids[0] if name is not None], int(found.read[0])

    return search


def _collection(codes: str, **settings: int | None) -> Index:
    opened: dict[str, Callable[[Data, Path], Search]] = {
        name.replace("_", " "): partial(_open, candidates) for name, candidates in settings.items()
    }
    return Index(f"Collection {codes}", "colbert-fast", partial(_build, codes), opened)


INDEXES = (
    *(
        Index(f"{function} {dtype}", "colbert-fast", None, {"": partial(_in_memory, function, dtype)})
        for dtype in ("float32", "int8")
        for function in ("maxsim", "topk")
    ),
    _collection("int8", certified=None),
    _collection("int4+4", certified=None),
    _collection("int2", candidates_20=20),
    _collection("int1", candidates_50=50),
)
