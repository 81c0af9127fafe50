"""The k best documents of every query on a GPU: all scores, and launches of a kernel that sort keys of them.

One launch sorts up to 1,024 documents. Of more, each launch keeps the best of every chunk for the next launch. A stable
sort of torch takes more launches, and ``torch.topk`` leaves the order of equal scores open.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from colbert_fast._backends import triton_, triton_tiles
from colbert_fast._backends.problem import Problem

# A program sorts so many places. The interpreter takes a second for 1024.
_CHUNK = 64 if triton_.INTERPRETED else 1024
# Of each chunk at most so many keys are kept, so that one launch leaves a quarter of them at most.
_MOST_KEPT = _CHUNK // 4


def best(p: Problem, k: int) -> tuple[Tensor, Tensor, bool]:
    """Return the k best scores and document numbers of every query; see ``Backend.best``."""
    scores, _, empty_document = triton_.score(p)
    nq, nd = scores.shape
    if (k > _MOST_KEPT and nd > _CHUNK) or nd >= 2**31 - _CHUNK:
        values, order = scores.sort(dim=1, descending=True, stable=True)
        return values[:, :k], order[:, :k], empty_document
    values = torch.empty((nq, k), dtype=torch.float32, device=scores.device)
    numbers = torch.empty((nq, k), dtype=torch.int64, device=scores.device)
    if nq:
        _fill(scores, values, numbers)
    return values, numbers, empty_document


def _fill(scores: Tensor, values: Tensor, numbers: Tensor) -> None:
    """Write the best of the scores ``[nq, nd]`` to ``values`` and their documents to ``numbers``, both ``[nq, k]``."""
    (nq, nd), k = scores.shape, values.shape[1]
    plan = _plan(triton_._device_index(scores.device), _CHUNK, triton_tiles.power_of_two(k, 4))
    keys, width = None, nd
    while True:
        chunks = -(-width // _CHUNK)
        kept = None
        if chunks > 1:
            left = chunks * plan.constants["KEPT"]
            kept = torch.empty((nq, left), dtype=torch.int64, device=scores.device)
        tensors = (scores, keys, kept, *((None, None) if chunks > 1 else (values, numbers)))
        triton_._launch("best_kernel", nq * chunks, tensors, (nd, width, chunks, k), plan, (keys is None, kept is None))
        if kept is None:
            return
        keys, width = kept, left


@functools.lru_cache(256)
def _plan(_device: int, chunk: int, kept: int) -> triton_._Plan:
    # A plan holds the kernels that were compiled for one device.
    constants = {"CHUNK": chunk, "KEPT": kept}
    return triton_._Plan(constants, tuple(constants.values()), {"num_warps": 4, "enable_fp_fusion": True}, {})


BACKEND = triton_.BACKEND._replace(best=best)
