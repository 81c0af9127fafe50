"""What ``make bench`` times: ours, torch's formulations and every CPU library, each as one small adapter."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import colbert_fast as cf
from benchmarks import torch_paths as paths
from benchmarks.contender import (
    Contender,
    Prepared,
    Refusal,
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
from benchmarks.torch_paths import in_float32
from colbert_fast import bench
from colbert_fast.bench import Inputs, Workload


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
    return on_padded(torch.compile(bench.einsum, dynamic=False, mode=mode), inputs)


def sentence_transformers(inputs: Inputs) -> Prepared:
    """Score with the function whose arguments ours has."""
    from sentence_transformers.util import maxsim

    return bind(maxsim, inputs, inputs.items if inputs.workload.lognormal else inputs.padded)


def _joined(inputs: Inputs) -> Callable[[], Any]:
    """All rows as one array, joined in every call where the workload holds a list."""
    if inputs.workload.layout != "list":
        rows = inputs.rows.numpy()
        return lambda: rows
    items = [item.numpy() for item in inputs.items]
    return lambda: np.concatenate(items)


def _numpy(inputs: Inputs) -> Prepared:
    workload = inputs.workload
    queries, rows, starts = inputs.queries.flatten(0, 1).numpy(), _joined(inputs), inputs.packed.starts.numpy()

    def score() -> Tensor:
        similarity = queries @ rows().T
        if workload.lognormal:
            best = np.maximum.reduceat(similarity, starts, axis=1)
        else:
            best = similarity.reshape(len(queries), workload.nd, -1).max(2)
        return torch.from_numpy(best.reshape(workload.nq, -1, workload.nd).sum(1))

    return Prepared(score)


def _each_query(inputs: Inputs, score: Callable[[Any], Any]) -> Callable[[], Tensor]:
    """A call of a function that takes one query."""
    queries = [query.numpy() for query in inputs.queries]
    return lambda: torch.from_numpy(np.stack([score(query) for query in queries]))


def _maxsim_cpu(inputs: Inputs) -> Prepared:
    import maxsim_cpu

    ragged = inputs.workload.lognormal
    function = maxsim_cpu.maxsim_scores_variable if ragged else maxsim_cpu.maxsim_scores
    documents: Any = [item.numpy() for item in inputs.items] if ragged else inputs.padded.numpy()
    return Prepared(_each_query(inputs, lambda query: function(query, documents)))


def _lateweave(inputs: Inputs) -> Prepared:
    from lateweave._native import maxsim_scores_packed

    rows, lengths, threads = _joined(inputs), inputs.lengths.numpy(), cf.get_num_threads()
    return Prepared(_each_query(inputs, lambda query: maxsim_scores_packed(query, rows(), lengths, threads=threads)))


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


def _ours(name: str, backend: str | None, *refusals: Refusal) -> Contender:
    return Contender(name, "ours", functools.partial(ours, backend), "colbert-fast", refusals, backend)


def torch_contender(name: str, build: Callable[[Inputs], Prepared], *refusals: Refusal, main: bool = True) -> Contender:
    """A formulation in torch, of tokens as they are."""
    return Contender(f"torch {name}", "torch", build, refusals=(exact_only, *refusals), main=main)


def peer(name: str, build: Callable[[Inputs], Prepared], *refusals: Refusal, main: bool = True) -> Contender:
    """A path of another library."""
    return Contender(name, "peer", build, name.split()[0], refusals, main=main)


dense = functools.partial(functools.partial, on_padded)
_segments = functools.partial(on_rows, paths.segment_reduce, lambda lengths: lengths)
_scattered = functools.partial(on_rows, bench.gemm_of_rows, torch.repeat_interleave)
# What the CUDA suite times too.
SHARED = (
    torch_contender("einsum", dense(bench.einsum)),
    torch_contender("GEMM", dense(paths.gemm), equal_lengths_only),
    torch_contender("GEMM, documents first", dense(paths.gemm_documents_first), equal_lengths_only),
    torch_contender("GEMM + segment_reduce", _segments, ragged_only),
    torch_contender("GEMM + scatter_reduce", _scattered, ragged_only),
    Contender("torch GEMM, dequantized", "torch", gemm_dequantized, refusals=(quantized_only,)),
    peer("sentence-transformers maxsim", sentence_transformers, exact_only),
)
COMPILED = torch_contender("einsum, compiled", functools.partial(compiled, "default"), compiler, main=False)
CONTENDERS = (
    _ours("colbert_fast", None),
    *(_ours(f"colbert_fast {b.name}", b.name, forced(b)) for b in cf.backends()),
    *SHARED,
    torch_contender("einsum, chunked", dense(paths.einsum_chunked)),
    torch_contender("einsum, cast to float32", dense(in_float32(bench.einsum)), half_only, main=False),
    torch_contender("GEMM, cast to float32", dense(in_float32(paths.gemm)), half_only, equal_lengths_only, main=False),
    COMPILED,
    peer("numpy", _numpy, exact_only, no_gradients, float32_only),
    peer("maxsim-cpu", _maxsim_cpu, exact_only, no_gradients, float32_only, _maxsim_cpu_query),
    peer("lateweave", _lateweave, exact_only, no_gradients, float32_only),
    peer("numkong", _numkong, exact_only, no_gradients),
)
