"""Fewer tokens for a document: the means of tokens that are alike."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from colbert_fast._extras import need
from colbert_fast._integers import positive_int
from colbert_fast.packed import PackedTokens


def checked_factor(pool: int) -> int:
    """Return the factor of pooling. Raise ImportError if its library is missing."""
    pool = positive_int(pool, "pool")
    if pool > 1:
        need("pool", "collection", {"scipy": "1.10"})
    return pool


def pooled(pieces: Iterator[PackedTokens], pool: int) -> Iterator[PackedTokens]:
    """Pool the tokens of every document: see :meth:`Collection.add`."""
    for piece in pieces:
        yield PackedTokens.from_list([_pooled(document, pool) for document in piece]) if pool > 1 else piece


def _pooled(tokens: Tensor, pool: int) -> Tensor:
    """Return ``max(1, length // pool)`` means of tokens, in the order of the first token of each."""
    length = len(tokens)
    if length < 2:
        return tokens
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    points = tokens.detach().double()
    if not bool(points.isfinite().all()):
        return tokens  # what encodes them says which token it is
    # Distances, because linkage warns of points that look like distances, such as a square of zeros.
    tree = linkage(pdist(points.numpy()), method="ward")
    clusters = torch.from_numpy(fcluster(tree, max(1, length // pool), criterion="maxclust")).to(torch.int64)
    _, cluster, counts = torch.unique(clusters, return_inverse=True, return_counts=True)
    sums = torch.zeros((len(counts), points.shape[1]), dtype=torch.float64, device="cpu").index_add_(0, cluster, points)
    first = torch.full((len(counts),), length, device="cpu").scatter_reduce_(
        0, cluster, torch.arange(length, device="cpu"), "amin"
    )
    means: Tensor = (sums / counts.unsqueeze(1))[first.argsort()].to(tokens.dtype)
    return means
