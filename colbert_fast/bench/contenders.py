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


def einsum(q: Tensor, d: Tensor, padding: Tensor | None = None) -> Tensor:
    """Score as the papers' code does: all similarities at once. ``padding`` is True where a row is no token."""
    similarity = torch.einsum("qid,njd->qnij", q, d)
    if padding is not None:
        similarity = similarity.masked_fill(padding[:, None, :], float("-inf"))
    return similarity.amax(-1).float().sum(-1)


def gemm(q: Tensor, d: Tensor) -> Tensor:
    """Score documents of one length with one matrix product, the documents' tokens first."""
    similarity = d.flatten(0, 1) @ q.flatten(0, 1).T
    return similarity.view(*d.shape[:2], len(q), -1).amax(1).float().sum(-1).T


def gemm_of_rows(q: Tensor, rows: Tensor, owner: Tensor, nd: int) -> Tensor:
    """Score documents of different lengths with one matrix product. ``owner`` is the document of each row."""
    similarity = rows @ q.flatten(0, 1).T
    best = similarity.new_full((nd, similarity.shape[1]), float("-inf"))
    best = best.scatter_reduce_(0, owner[:, None].expand_as(similarity), similarity, "amax")
    return best.view(nd, len(q), -1).float().sum(-1).T


def contenders(inputs: Inputs) -> dict[str, Callable[[], Tensor]]:
    """Return, by name, calls that score the inputs; with the backward pass where the workload has one."""
    workload = inputs.workload
    documents: Any = inputs.packed.quantize("int8") if workload.quantized else inputs.documents
    queries = inputs.queries
    if workload.backward:
        queries, documents = queries.clone().requires_grad_(), documents.clone().requires_grad_()

    def call(score: Callable[[Tensor, Any], Tensor], d: Any) -> Tensor:
        scores = score(queries, d)
        if workload.backward:
            torch.autograd.grad(scores.sum(), [queries, d])
        return scores.detach()

    named: dict[str, tuple[Callable[[Tensor, Any], Tensor], Any]] = {
        b.name: (functools.partial(cf.maxsim, backend=b.name), documents)
        for b in cf.backends()
        if b.unsupported is None and b.device in (None, "cpu")
    }
    if not workload.quantized:
        padded = documents if workload.backward else inputs.padded
        named["torch einsum"] = functools.partial(einsum, padding=inputs.padding), padded
        named["torch GEMM"] = gemm, padded
        if workload.lognormal:
            owner = torch.repeat_interleave(inputs.lengths)
            named["torch GEMM"] = functools.partial(gemm_of_rows, owner=owner, nd=workload.nd), inputs.rows
        if importlib.util.find_spec("sentence_transformers") is not None:
            named[SENTENCE_TRANSFORMERS] = _sentence_transformers, inputs.items if workload.lognormal else padded
    return {name: functools.partial(call, score, d) for name, (score, d) in named.items()}


def _sentence_transformers(queries: Tensor, documents: Any) -> Tensor:
    # Imported at the first call, which is not timed: the import takes seconds, and fails before release 6.
    from sentence_transformers.util import maxsim

    return maxsim(queries, documents)
