"""What torch users write: the formulations that both the CPU and the CUDA suite time."""

from __future__ import annotations

import torch
from torch import Tensor

# Similarities that the chunked einsum holds at a time, so that they stay in a cache: 16 MiB in float32 for a CPU's,
# 32 MiB in half precision for that of a GPU, where every chunk also costs some launches.
CHUNKS = {"cpu": 2**22, "cuda": 2**24}


def einsum(q: Tensor, d: Tensor, padding: Tensor | None) -> Tensor:
    """Score as the papers' code does: all similarities at once."""
    similarity = torch.einsum("qid,njd->qnij", q, d)
    if padding is not None:
        similarity = similarity.masked_fill(padding[:, None, :], float("-inf"))
    return similarity.amax(-1).float().sum(-1)


def einsum_cast(q: Tensor, d: Tensor, padding: Tensor | None) -> Tensor:
    """Half precision products where the CPU has no instructions for them."""
    return einsum(q.float(), d.float(), padding)


def einsum_chunked(q: Tensor, d: Tensor, padding: Tensor | None) -> Tensor:
    """As many documents at a time as keep the similarities in a cache."""
    size = max(1, CHUNKS[q.device.type] // (q.shape[0] * q.shape[1] * d.shape[1]))
    parts = [
        einsum(q, d[start : start + size], None if padding is None else padding[start : start + size])
        for start in range(0, len(d), size)
    ]
    return torch.cat(parts, dim=1)


def gemm(q: Tensor, d: Tensor, _: Tensor | None) -> Tensor:
    """One matrix product with the queries first: the tokens of a document end side by side."""
    similarity = q.flatten(0, 1) @ d.flatten(0, 1).T
    return similarity.view(len(q), -1, *d.shape[:2]).amax(-1).float().sum(1)


def gemm_cast(q: Tensor, d: Tensor, padding: Tensor | None) -> Tensor:
    """The same in float32."""
    return gemm(q.float(), d.float(), padding)


def gemm_documents_first(q: Tensor, d: Tensor, _: Tensor | None) -> Tensor:
    """One matrix product, transposed: for few query tokens often the faster one."""
    similarity = d.flatten(0, 1) @ q.flatten(0, 1).T
    return similarity.view(*d.shape[:2], len(q), -1).amax(1).float().sum(-1).T


def segment_reduce(similarity: Tensor, lengths: Tensor, _: int) -> Tensor:
    """The maximum of each document's rows, by their number."""
    # Without unsafe, lengths are checked in every call.
    return torch.segment_reduce(similarity, "max", lengths=lengths, axis=0, unsafe=True)


def scatter_reduce(similarity: Tensor, owner: Tensor, nd: int) -> Tensor:
    """The maximum of each document's rows, by the document of each row."""
    best = similarity.new_full((nd, similarity.shape[1]), float("-inf"))
    return best.scatter_reduce_(0, owner[:, None].expand_as(similarity), similarity, "amax")


def owner(lengths: Tensor) -> Tensor:
    """The document of each row."""
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)
