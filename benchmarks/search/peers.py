"""Other libraries, with their defaults and with settings that find more.

Each function imports its library itself: a library need not be installed where this module is read, and some need
another torch than the others.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search.data import Array, Data, unit
from benchmarks.search.index import Index, Search

# They take 12 GB of memory.
_MOST_TOKENS_OF_QDRANT = 2_000_000


def _tensors(data: Data) -> list[Any]:
    import torch

    return [torch.from_numpy(item) for item in data.items()]


def _asked(index: Any, settings: dict[str, int]) -> Search:
    """Search fast-plaid or xtr-warp-rs, whose indexes are called alike."""
    import torch

    def find(query: Array, k: int) -> tuple[list[int], None]:
        found = index.search(torch.from_numpy(query)[None], top_k=k, show_progress=False, **settings)
        return [number for number, _ in found[0]], None

    return find


def _build_fast_plaid(data: Data, folder: Path) -> None:
    from fast_plaid import search

    search.FastPlaid(str(folder / "index"), device="cpu").create(_tensors(data))


def _open_fast_plaid(settings: dict[str, int], _: Data, folder: Path) -> Search:
    from fast_plaid import search

    return _asked(search.FastPlaid(str(folder / "index"), device="cpu"), settings)


def _build_xtr_warp(data: Data, folder: Path) -> None:
    from xtr_warp.search import XTRWarp

    XTRWarp(str(folder / "index")).create(_tensors(data), device="cpu", show_progress=False)


def _open_xtr_warp(settings: dict[str, int], _: Data, folder: Path) -> Search:
    from xtr_warp.search import XTRWarp

    return _asked(XTRWarp(str(folder / "index")).load(device="cpu"), settings)


def _build_col_bandit(data: Data, folder: Path) -> None:
    from colbandit import ColBandit

    ColBandit().index(data.items()).save(str(folder / "index.npz"))


def _open_col_bandit(alpha: float, _: Data, folder: Path) -> Search:
    from colbandit import ColBandit

    index = ColBandit.load(str(folder / "index.npz"))
    index.alpha_ef = alpha

    def find(query: Array, k: int) -> tuple[list[int], None]:
        return [int(number) for number in index.search(query, k)[0]], None

    return find


def _build_lancedb(indexed: bool, data: Data, folder: Path) -> None:
    import lancedb.index
    import pyarrow as pa

    dim = data.documents.shape[1]
    schema = pa.schema([("number", pa.int64()), ("vector", pa.list_(pa.list_(pa.float32(), dim)))])

    def batches() -> Any:
        for first, rows, lengths in data.batches(1000):
            if indexed:
                # The index knows cosines alone. In float16 a length is 1 only about.
                rows = unit(rows)
            tokens = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), dim)
            ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
            numbers = pa.array(np.arange(first, first + len(lengths)))
            yield pa.record_batch([numbers, pa.ListArray.from_arrays(ends, tokens)], schema=schema)

    table = lancedb.connect(folder).create_table("documents", batches(), schema=schema)
    if indexed:
        table.create_index("vector", config=lancedb.index.IvfPq(distance_type="cosine"))


def _open_lancedb(metric: str, settings: dict[str, int], _: Data, folder: Path) -> Search:
    import lancedb

    table = lancedb.connect(folder).open_table("documents")

    def find(query: Array, k: int) -> tuple[list[int], None]:
        asked = table.search(query, vector_column_name="vector").distance_type(metric)
        for name, value in settings.items():
            asked = getattr(asked, name)(value)
        return asked.limit(k).to_arrow()["number"].to_pylist(), None

    return find


def _build_qdrant(data: Data, folder: Path) -> None:
    from qdrant_client import QdrantClient, models

    if len(data.documents) > _MOST_TOKENS_OF_QDRANT:
        msg = "the local mode of qdrant takes about 6 kB of memory a token"
        raise MemoryError(msg)
    client = QdrantClient(path=str(folder))
    comparator = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    params = models.VectorParams(
        size=data.documents.shape[1], distance=models.Distance.DOT, multivector_config=comparator
    )
    client.create_collection("documents", vectors_config=params)
    for first, rows, lengths in data.batches(100):
        items = np.split(rows, np.cumsum(lengths)[:-1])
        points = [models.PointStruct(id=first + i, vector=item.tolist()) for i, item in enumerate(items)]
        client.upsert("documents", points)
    client.close()


def _open_qdrant(_: Data, folder: Path) -> Search:
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(folder))

    def find(query: Array, k: int) -> tuple[list[int], None]:
        found = client.query_points("documents", query=query.tolist(), limit=k, with_payload=False)
        return [int(point.id) for point in found.points], None

    return find


INDEXES = (
    Index(
        "fast-plaid",
        "fast-plaid",
        _build_fast_plaid,
        {
            "": partial(_open_fast_plaid, {}),
            "64 probes, 8192 scores": partial(_open_fast_plaid, {"n_ivf_probe": 64, "n_full_scores": 8192}),
        },
        module="fast_plaid.search",
    ),
    Index(
        "xtr-warp-rs",
        "xtr-warp-rs",
        _build_xtr_warp,
        {
            "": partial(_open_xtr_warp, {}),
            "128 probes, bound 4096": partial(_open_xtr_warp, {"nprobe": 128, "bound": 4096}),
        },
        module="xtr_warp.search",
    ),
    Index(
        "Col-Bandit",
        "colbandit",
        _build_col_bandit,
        {"": partial(_open_col_bandit, 0.2), "alpha 1": partial(_open_col_bandit, 1.0)},
    ),
    Index("LanceDB flat", "lancedb", partial(_build_lancedb, False), {"": partial(_open_lancedb, "dot", {})}),
    Index(
        "LanceDB IVF-PQ",
        "lancedb",
        partial(_build_lancedb, True),
        {
            "": partial(_open_lancedb, "cosine", {}),
            "64 probes, refine 10": partial(_open_lancedb, "cosine", {"nprobes": 64, "refine_factor": 10}),
        },
    ),
    Index("qdrant local", "qdrant-client", _build_qdrant, {"": _open_qdrant}),
)
