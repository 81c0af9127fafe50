"""What ``colbert-fast bench`` compares: our backends, what torch users write, and sentence-transformers."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import colbert_fast as cf
from colbert_fast.bench.workloads import Inputs

SENTENCE_TRANSFORMERS = "sentence-transformers"


def contenders(inputs: Inputs) -> dict[str, Callable[[], Tensor]]:
    """Return the contenders that can be tried here: calls that score the inputs, and derive where these say so."""
    workload = inputs.workload
    documents: Any = inputs.quantized if workload.quantized else inputs.documents
    queries = inputs.queries
    if workload.backward:
        queries, documents = queries.clone().requires_grad_(), documents.clone().requires_grad_()

    def scored(score: Callable[[Tensor, Any], Tensor], d: Any) -> Callable[[], Tensor]:
        def call() -> Tensor:
            scores = score(queries, d)
            if workload.backward:
                torch.autograd.grad(scores.sum(), [queries, d])
            return scores.detach()

        return call

    named = {
        b.name: scored(functools.partial(cf.maxsim, backend=b.name), documents)
        for b in cf.backends()
        if b.unsupported is None and b.device in (None, "cpu")
    }
    if workload.quantized:
        return named
    padded = documents if workload.backward else inputs.padded
    named["torch einsum"] = scored(functools.partial(_einsum, inputs.lengths if workload.lognormal else None), padded)
    if workload.lognormal:
        owner = torch.repeat_interleave(inputs.lengths)
        named["torch GEMM"] = scored(functools.partial(_gemm_of_rows, owner, workload.nd), inputs.rows)
    else:
        named["torch GEMM"] = scored(_gemm, padded)
    if importlib.util.find_spec("sentence_transformers") is not None:
        named[SENTENCE_TRANSFORMERS] = scored(_peer, inputs.items if workload.lognormal else padded)
    return named


def _einsum(lengths: Tensor | None, queries: Tensor, padded: Tensor) -> Tensor:
    similarity = torch.einsum("qid,njd->qnij", queries, padded)
    if lengths is not None:
        padding = torch.arange(padded.shape[1]) >= lengths[:, None]
        similarity = similarity.masked_fill_(padding[:, None, :], float("-inf"))
    return similarity.amax(-1).float().sum(-1)


def _gemm(queries: Tensor, padded: Tensor) -> Tensor:
    similarity = padded.flatten(0, 1) @ queries.flatten(0, 1).T
    best = similarity.view(*padded.shape[:2], -1).amax(1)
    return best.view(len(padded), len(queries), -1).float().sum(-1).T


def _gemm_of_rows(owner: Tensor, nd: int, queries: Tensor, rows: Tensor) -> Tensor:
    similarity = rows @ queries.flatten(0, 1).T
    best = similarity.new_full((nd, similarity.shape[1]), float("-inf"))
    best.scatter_reduce_(0, owner[:, None].expand_as(similarity), similarity, "amax")
    return best.view(nd, len(queries), -1).float().sum(-1).T


def _peer(queries: Tensor, documents: Any) -> Tensor:
    return _maxsim_of_sentence_transformers()(queries, documents)


@functools.cache
def _maxsim_of_sentence_transformers() -> Callable[[Tensor, Any], Tensor]:
    """Import it at the first call, which is not timed: that takes seconds, and fails before release 6."""
    from sentence_transformers.util import maxsim

    return maxsim
