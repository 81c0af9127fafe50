"""How a scoring function gets the inputs of a workload: padded, as one matrix of rows, with or without gradients.

Work that a caller does once, such as packing, is reported apart. Where a workload holds its documents as a list,
joining or padding them is part of every call, for every contender.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.contender import Prepared
from benchmarks.torch_paths import Score
from colbert_fast.bench import Inputs


def bind(
    score: Callable[[Tensor, Any], Tensor], inputs: Inputs, documents: Any, packing: float | None = None
) -> Prepared:
    """Bind the inputs to a scoring function; with the backward pass where the workload has one."""
    queries = inputs.queries
    if not inputs.workload.backward:
        return Prepared(lambda: score(queries, documents), (), packing)
    q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()

    def step() -> Tensor:
        scores = score(q, d)
        scores.sum().backward()
        return scores.detach()

    return Prepared(step, (q, d), packing)


def since(start: float, inputs: Inputs) -> float:
    """Seconds since ``start``, once the device of the inputs is done."""
    if inputs.rows.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def padded(items: list[Tensor], lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return documents ``[nd, ld, dim]``, and ``[nd, ld]``: True where a row is padding."""
    tokens = pad_sequence(items, batch_first=True)
    return tokens, (torch.arange(tokens.shape[1]) >= lengths[:, None]).to(tokens.device)


def on_padded(score: Score, inputs: Inputs) -> Prepared:
    """Bind a function of queries, padded documents and their padding."""
    if not inputs.workload.lognormal:
        return bind(lambda q, d: score(q, d, None), inputs, inputs.padded)
    items, lengths = inputs.items, inputs.lengths
    if inputs.workload.layout == "list":
        return bind(lambda q, d: score(q, *padded(d, lengths)), inputs, items)
    start = time.perf_counter()
    documents, padding = padded(items, lengths)
    return bind(lambda q, d: score(q, d, padding), inputs, documents, since(start, inputs))


def on_rows(
    score: Callable[[Tensor, Tensor, Tensor, int], Tensor], index: Callable[[Tensor], Tensor], inputs: Inputs
) -> Prepared:
    """Bind a function of queries, rows, which rows are whose, as ``index`` says, and the number of documents."""
    lengths = inputs.lengths
    nd = len(lengths)
    if inputs.workload.layout == "list":
        return bind(lambda q, d: score(q, torch.cat(d), index(lengths).to(q.device), nd), inputs, inputs.items)
    start = time.perf_counter()
    which = index(lengths).to(inputs.rows.device)
    return bind(lambda q, d: score(q, d, which, nd), inputs, inputs.rows, since(start, inputs))


def gemm_dequantized(inputs: Inputs) -> Prepared:
    """Hold documents as int8 with a scale for each token, and give them the dtype of the queries in every call."""
    start = time.perf_counter()
    wide = inputs.padded.abs().amax(-1, keepdim=True).float() / 127
    documents = (inputs.padded / wide).round().to(torch.int8)
    scales = wide.flatten(0, 1).to(inputs.rows.dtype)
    packing = since(start, inputs)

    def score(q: Tensor, d: Tensor) -> Tensor:
        similarity = d.flatten(0, 1).to(q.dtype) @ q.flatten(0, 1).T * scales
        return similarity.view(*d.shape[:2], len(q), -1).amax(1).float().sum(-1).T

    return bind(score, inputs, documents, packing)
