"""What is timed on a CUDA device: ours, torch's formulations, and the best functions of two kernel libraries.

The sources of late-interaction-kernels 0.4.5 and flash-maxsim 0.3.0 say which functions there are for a layout, and
what a function converts in every call. A conversion that needs only the documents is done once, before the calls.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import colbert_fast as cf
from benchmarks.contender import (
    Contender,
    Prepared,
    equal_lengths_only,
    exact_only,
    forced,
    no_gradients,
    quantized_only,
    ragged_only,
    unless,
)
from benchmarks.contenders import COMPILED, SHARED, compiled, compiler, dense, ours, peer, torch_contender
from benchmarks.layouts import bind, on_padded, padded, since
from benchmarks.torch_paths import einsum_chunked, gemm_documents_first
from colbert_fast.bench import Inputs

_one_query = unless("takes one query", lambda workload: workload.nq == 1)
_gradients_only = unless("meant for a backward pass", lambda workload: workload.backward)
_long_queries = unless("meant for long queries", lambda workload: workload.lq >= 512)


def _ours_packed(backend: str, inputs: Inputs) -> Prepared:
    """Pack both sides once. Gradients flow to their rows."""
    start = time.perf_counter()
    queries = cf.PackedTokens.from_padded(inputs.queries)
    documents = cf.PackedTokens(inputs.rows, inputs.packed.starts, inputs.packed.lengths)
    packing = since(start, inputs)
    if not inputs.workload.backward:
        return Prepared(lambda: cf.maxsim(queries, documents, backend=backend), (), packing)

    def score(q: Tensor, d: Tensor) -> Tensor:
        return cf.maxsim(queries.with_tokens(q.flatten(0, 1)), documents.with_tokens(d), backend=backend)

    return bind(score, inputs, inputs.rows, packing)


def _gemm_tf32(inputs: Inputs) -> Prepared:
    """Multiply float32 copies, made once, as TF32. TF32 holds half precision exactly, so the kernels are no better."""
    start = time.perf_counter()
    wide = Inputs(inputs.workload, inputs.queries.float(), inputs.rows.float(), inputs.lengths)
    packing = since(start, inputs)

    def score(q: Tensor, d: Tensor) -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return gemm_documents_first(q, d, None)
        finally:
            torch.set_float32_matmul_precision(before)

    return bind(score, wide, wide.padded, packing)


def _offsets(lengths: Tensor, device: torch.device) -> Tensor:
    """Return where every item begins, and where the last one ends: ``[n + 1]`` int32."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)


def lik(backward: str | None, inputs: Inputs) -> Prepared:
    """Its dense function. A mask that is true for tokens tells documents of different lengths from their padding."""
    from late_interaction_kernels import maxsim

    if not inputs.workload.lognormal:
        return bind(lambda q, d: maxsim(q, d, None, None, backward=backward), inputs, inputs.padded)
    start = time.perf_counter()
    documents, padding = padded(inputs.items, inputs.lengths)
    keep = ~padding
    packing = since(start, inputs)
    return bind(lambda q, d: maxsim(q, d, None, keep, backward=backward), inputs, documents, packing)


def lik_varlen(inputs: Inputs) -> Prepared:
    """Its packed function. It gets the longest lengths, so that it need not wait for the device to know them."""
    from late_interaction_kernels import maxsim_varlen

    workload, device = inputs.workload, inputs.rows.device
    start = time.perf_counter()
    q_offsets = _offsets(torch.full((workload.nq,), workload.lq), device)
    d_offsets = _offsets(inputs.lengths, device)
    longest = int(inputs.lengths.max())
    packing = since(start, inputs)

    def score(q: Tensor, d: Tensor) -> Tensor:
        return maxsim_varlen(q.flatten(0, 1), d, q_offsets, d_offsets, workload.lq, longest)  # type: ignore[no-any-return]

    return bind(score, inputs, inputs.rows, packing)


def lik_fp8(inputs: Inputs) -> Prepared:
    """Its only 8-bit format, which needs a Hopper GPU. Each token has a scale. The queries are rounded before too."""
    from late_interaction_kernels.fp8 import maxsim_inference_fp8, quantize_fp8_per_token

    start = time.perf_counter()
    documents, scales = quantize_fp8_per_token(inputs.padded)
    queries, q_scales = quantize_fp8_per_token(inputs.queries)
    packing = since(start, inputs)
    return Prepared(lambda: maxsim_inference_fp8(queries, documents, scale_Q=q_scales, scale_D=scales), (), packing)


def _fm_padded(score: Callable[..., Tensor], inputs: Inputs, **also: Any) -> Prepared:
    """Bind one of its dense functions. Of documents of different lengths it takes the padded ones and the lengths."""
    ragged = inputs.workload.lognormal
    lengths = inputs.lengths.to(inputs.rows.device, torch.int32) if ragged else None
    return on_padded(lambda q, d, _: score(q, d, doc_lengths=lengths, **also), inputs)


def fm(inputs: Inputs) -> Prepared:
    """Its dense functions: for one query, for many, and for training."""
    import flash_maxsim

    if inputs.workload.backward:
        return _fm_padded(flash_maxsim.flash_maxsim_batched_train, inputs, shared_docs=True)
    if inputs.workload.nq == 1:
        return _fm_padded(lambda q, d, **named: flash_maxsim.flash_maxsim(q[0], d, **named), inputs)
    return _fm_padded(flash_maxsim.flash_maxsim_batched, inputs, shared_docs=True)


def fm_inverse_grid(inputs: Inputs) -> Prepared:
    """Its backward pass without atomics. Only an environment variable asks for it."""
    prepared = fm(inputs)

    def score() -> Tensor:
        os.environ["FLASH_BWD_PATH"] = "invgrid"
        try:
            return prepared.score()
        finally:
            del os.environ["FLASH_BWD_PATH"]

    return prepared._replace(score=score)


def fm_packed(inputs: Inputs) -> Prepared:
    """Its packed function. It casts all documents to float16 in every call, so they are cast once, before."""
    import flash_maxsim

    start = time.perf_counter()
    query, documents = inputs.queries[0].half(), inputs.rows.half()
    offsets = _offsets(inputs.lengths, documents.device)
    packing = since(start, inputs)
    return Prepared(lambda: flash_maxsim.flash_maxsim_packed(query, documents, offsets), (), packing)


def fm_persistent(inputs: Inputs) -> Prepared:
    """Its kernel that loops over documents, meant for many short ones."""
    import flash_maxsim

    return _fm_padded(flash_maxsim.flash_maxsim_persistent, inputs)


def fm_query_reuse(inputs: Inputs) -> Prepared:
    """Its kernel that scores several documents with each tile of a long query. It multiplies in float16."""
    import flash_maxsim

    query, documents = inputs.queries[0].half(), inputs.padded.half()
    return Prepared(lambda: flash_maxsim.flash_maxsim_qreuse(query, documents))


def fm_int8(inputs: Inputs) -> Prepared:
    """Its products of 8-bit integers. The query is rounded before too."""
    import flash_maxsim

    start = time.perf_counter()
    # It divides in the dtype of the documents, and bfloat16 would round once more.
    documents, scales = flash_maxsim.quantize_int8_symmetric(inputs.padded.float())
    query, q_scales = flash_maxsim.quantize_query_int8(inputs.queries[0])
    packing = since(start, inputs)
    scales = scales.squeeze(-1).contiguous()
    return Prepared(
        lambda: flash_maxsim.flash_maxsim_int8x8(inputs.queries[0], documents, scales, query, q_scales), (), packing
    )


def _ours(backend: Any) -> tuple[Contender, ...]:
    def contender(how: str, build: Callable[..., Prepared], *refusals: Any) -> Contender:
        made = functools.partial(build, backend.name)
        name = f"colbert_fast {backend.name}{how}"
        return Contender(name, "ours", made, "colbert-fast", (*refusals, forced(backend)), backend.name)

    return (
        contender("", ours, exact_only),
        contender(", packed", _ours_packed, exact_only, equal_lengths_only),
        contender(", int8", ours, quantized_only),
    )


CONTENDERS = (
    *(ours for backend in cf.backends() if backend.device in (None, "cuda") for ours in _ours(backend)),
    *SHARED,
    torch_contender("einsum, chunked", dense(einsum_chunked), no_gradients),
    torch_contender("GEMM, float32 copies as TF32", _gemm_tf32, equal_lengths_only, no_gradients),
    peer("late-interaction-kernels", functools.partial(lik, None), exact_only),
    peer("late-interaction-kernels unified", functools.partial(lik, "unified"), exact_only, _gradients_only),
    peer("late-interaction-kernels varlen", lik_varlen, exact_only, ragged_only),
    peer("late-interaction-kernels fp8", lik_fp8, quantized_only),
    peer("flash-maxsim", fm, exact_only),
    peer("flash-maxsim inverse grid", fm_inverse_grid, exact_only, _gradients_only),
    peer("flash-maxsim packed", fm_packed, exact_only, ragged_only, _one_query),
    peer("flash-maxsim persistent", fm_persistent, exact_only, ragged_only),
    peer("flash-maxsim int8x8", fm_int8, quantized_only, _one_query),
    # Compiling these takes longer than timing everything else, so they come last.
    COMPILED,
    peer("flash-maxsim query reuse", fm_query_reuse, exact_only, no_gradients, _one_query, _long_queries, main=False),
    torch_contender(
        "einsum, compiled max-autotune", functools.partial(compiled, "max-autotune-no-cudagraphs"), compiler, main=False
    ),
)
