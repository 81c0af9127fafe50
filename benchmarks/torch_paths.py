"""What torch users write: the formulations that both the CPU and the CUDA suite time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from colbert_fast import bench

# Similarities that the chunked einsum holds at a time, so that they stay in a cache: 16 MiB in float32 for a CPU, and
# 32 MiB in half precision for a GPU, where every chunk also costs some launches.
CHUNKS = {"cpu": 2**22, "cuda": 2**24}


Score = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def in_float32(score: Score) -> Score:
    """Products in float32, for a CPU without instructions for half precision."""
    return lambda q, d, padding: score(q.float(), d.float(), padding)


def einsum_chunked(q: Tensor, d: Tensor, padding: Tensor | None) -> Tensor:
    """As many documents at a time as keep the similarities in a cache."""
    size = max(1, CHUNKS[q.device.type] // (q.shape[0] * q.shape[1] * d.shape[1]))
    parts = [
        bench.einsum(q, d[start : start + size], None if padding is None else padding[start : start + size])
        for start in range(0, len(d), size)
    ]
    return torch.cat(parts, dim=1)


def gemm(q: Tensor, d: Tensor, _: Tensor | None) -> Tensor:
    """One matrix product with the queries first: the tokens of a document end side by side."""
    similarity = q.flatten(0, 1) @ d.flatten(0, 1).T
    return similarity.view(len(q), -1, *d.shape[:2]).amax(-1).float().sum(1)


def gemm_documents_first(q: Tensor, d: Tensor, _: Tensor | None) -> Tensor:
    """One matrix product, transposed: for few query tokens often the faster one."""
    return bench.gemm(q, d)


def segment_reduce(q: Tensor, rows: Tensor, lengths: Tensor, nd: int) -> Tensor:
    """One matrix product over all rows; the maximum of each document's rows, by their number."""
    # Without unsafe, lengths are checked in every call.
    similarity = rows @ q.flatten(0, 1).T
    best = torch.segment_reduce(similarity, "max", lengths=lengths, axis=0, unsafe=True)
    return best.view(nd, len(q), -1).float().sum(-1).T
