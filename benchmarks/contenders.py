"""What ``make bench`` times: ours, torch's formulations and every CPU library, each as one small adapter."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import colbert_fast as cf
from benchmarks.contender import (
    Contender,
    Prepared,
    check,
    equal_lengths_only,
    exact_only,
    float32_only,
    forced,
    half_only,
    missing,
    no_gradients,
    quantized_only,
    ragged_only,
)
from benchmarks.layouts import bind, gemm_dequantized, on_padded, on_rows, since
from benchmarks.torch_paths import (
    einsum,
    einsum_cast,
    einsum_chunked,
    gemm,
    gemm_cast,
    gemm_documents_first,
    owner,
    scatter_reduce,
    segment_reduce,
)
from colbert_fast.bench import Inputs, Workload

__all__ = ["CONTENDERS", "Contender", "Prepared", "check", "compiled", "compiler", "ours", "sentence_transformers"]


def _maxsim_cpu_query(workload: Workload) -> str | None:
    # libxsmm compiles kernels up to 64 x 64 x 64 and asks a BLAS for larger ones; documents come 64 tokens at a time.
    if workload.lq * workload.dim <= 64 * 64:
        return None
    return f"its wheel has no BLAS, which it needs beyond {64 * 64 // workload.dim} query tokens: it crashes"


def compiler(workload: Workload) -> str | None:
    """Refuse where torch.compile has nothing to compile with."""
    name = "triton" if workload.device == "cuda" else os.environ.get("CXX") or "g++"
    found = missing("triton") is None if name == "triton" else shutil.which(name) is not None
    return None if found else f"torch.compile needs {name}, which is not installed"


def ours(backend: str | None, inputs: Inputs) -> Prepared:
    """Score the documents in the workload's own layout with one of our backends, or the one that a call chooses."""
    documents, packing = inputs.documents, None
    if inputs.workload.quantized:
        start = time.perf_counter()
        documents = inputs.packed.quantize("int8")
        packing = since(start, inputs)
    return bind(lambda q, d: cf.maxsim(q, d, backend=backend), inputs, documents, packing)


def compiled(mode: str, inputs: Inputs) -> Prepared:
    """Let torch.compile fuse what it can of the einsum."""
    torch.compiler.reset()
    return on_padded(torch.compile(einsum, dynamic=False, mode=mode), inputs)


def sentence_transformers(inputs: Inputs) -> Prepared:
    """Score with the function whose arguments ours has."""
    from sentence_transformers.util import maxsim

    return bind(maxsim, inputs, inputs.items if inputs.workload.lognormal else inputs.padded)


def _numpy(inputs: Inputs) -> Prepared:
    workload = inputs.workload
    queries = inputs.queries.flatten(0, 1).numpy()
    rows = inputs.rows.numpy()
    items = [item.numpy() for item in inputs.items] if workload.layout == "list" else None
    starts = inputs.packed.starts.numpy()

    def score() -> Tensor:
        similarity = queries @ (rows if items is None else np.concatenate(items)).T
        if workload.lognormal:
            best = np.maximum.reduceat(similarity, starts, axis=1)
        else:
            best = similarity.reshape(len(queries), workload.nd, -1).max(2)
        return torch.from_numpy(best.reshape(workload.nq, -1, workload.nd).sum(1))

    return Prepared(score)


def _maxsim_cpu(inputs: Inputs) -> Prepared:
    import maxsim_cpu

    queries = [query.numpy() for query in inputs.queries]
    ragged = inputs.workload.lognormal
    function = maxsim_cpu.maxsim_scores_variable if ragged else maxsim_cpu.maxsim_scores
    documents: Any = [item.numpy() for item in inputs.items] if ragged else inputs.padded.numpy()
    return Prepared(lambda: torch.from_numpy(np.stack([function(query, documents) for query in queries])))


def _numkong(inputs: Inputs) -> Prepared:
    import numkong

    start = time.perf_counter()
    documents = [numkong.maxsim_pack(numkong.from_dlpack(item)) for item in inputs.items]
    packing = time.perf_counter() - start
    queries = inputs.queries
    lq = queries.shape[1]

    def score() -> Tensor:
        # It returns a sum of angular distances, 1 - cosine.
        packed = [numkong.maxsim_pack(numkong.from_dlpack(query)) for query in queries]
        return torch.tensor([[lq - float(numkong.maxsim_packed(q, d)) for d in documents] for q in packed])

    return Prepared(score, (), packing)


def _contenders() -> tuple[Contender, ...]:
    auto = Contender("colbert_fast", "ours", functools.partial(ours, None), "colbert-fast")
    backends = [
        replace(
            auto,
            name=f"colbert_fast {b.name}",
            build=functools.partial(ours, b.name),
            refusals=(forced(b),),
            backend=b.name,
        )
        for b in cf.backends()
    ]
    padded = functools.partial(functools.partial, on_padded)
    segments = functools.partial(on_rows, segment_reduce, lambda lengths: lengths)
    scattered = functools.partial(on_rows, scatter_reduce, owner)
    return (
        auto,
        *backends,
        _torch("torch einsum", padded(einsum), exact_only),
        _torch("torch einsum, chunked", padded(einsum_chunked), exact_only),
        _torch("torch einsum, cast to float32", padded(einsum_cast), half_only, exact_only, main=False),
        _torch("torch einsum, compiled", functools.partial(compiled, "default"), compiler, exact_only, main=False),
        _torch("torch GEMM", padded(gemm), equal_lengths_only, exact_only),
        _torch("torch GEMM, documents first", padded(gemm_documents_first), equal_lengths_only, exact_only),
        _torch("torch GEMM, cast to float32", padded(gemm_cast), half_only, equal_lengths_only, exact_only, main=False),
        _torch("torch GEMM, dequantized", gemm_dequantized, quantized_only),
        _torch("torch GEMM + segment_reduce", segments, ragged_only, exact_only),
        _torch("torch GEMM + scatter_reduce", scattered, ragged_only, exact_only),
        Contender(
            "sentence-transformers maxsim", "peer", sentence_transformers, "sentence-transformers", (exact_only,)
        ),
        Contender("numpy", "peer", _numpy, "numpy", (exact_only, no_gradients, float32_only)),
        Contender(
            "maxsim-cpu", "peer", _maxsim_cpu, "maxsim-cpu", (exact_only, no_gradients, float32_only, _maxsim_cpu_query)
        ),
        Contender(
            "numkong",
            "peer",
            _numkong,
            "numkong",
            (
                exact_only,
                no_gradients,
            ),
        ),
    )


def _torch(name: str, build: Callable[[Inputs], Prepared], *refusals: Any, main: bool = True) -> Contender:
    return Contender(name, "torch", build, refusals=refusals, main=main)


CONTENDERS = _contenders()
