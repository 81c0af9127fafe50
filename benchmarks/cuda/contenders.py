"""What is timed on a CUDA device: ours, torch's formulations, and the two kernel libraries at their best path.

Read off the sources of late-interaction-kernels 0.4.5 and flash-maxsim 0.3.0: which functions they offer for a layout,
and what those convert in every call. Where such a conversion depends on the documents only, it is done once, before.
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
from benchmarks.layouts import bind, padded, since
from benchmarks.torch_paths import einsum_chunked, gemm_documents_first
from colbert_fast.bench import Inputs

_one_query = unless("takes one query", lambda workload: workload.nq == 1)
_gradients_only = unless("meant for a backward pass", lambda workload: workload.backward)
_long_queries = unless("meant for long queries", lambda workload: workload.lq >= 512)


def _ours_packed(backend: str, inputs: Inputs) -> Prepared:
    """Both sides lowered once; gradients flow to their rows."""
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
    """Float32 copies, made once, multiplied as TF32, which holds half precision exactly: as precise as the kernels."""
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


def _masked(score: Callable[[Tensor, Tensor, Tensor | None], Tensor], inputs: Inputs) -> Prepared:
    """Bind a function of queries, padded documents and a mask that is true where a row is a token."""
    if not inputs.workload.lognormal:
        return bind(lambda q, d: score(q, d, None), inputs, inputs.padded)
    start = time.perf_counter()
    documents, padding = padded(inputs.items, inputs.lengths)
    keep = ~padding
    return bind(lambda q, d: score(q, d, keep), inputs, documents, since(start, inputs))


def _offsets(lengths: Tensor, device: torch.device) -> Tensor:
    """Return where every item begins, and the last one ends: ``[n + 1]`` int32."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)


def lik(backward: str | None, inputs: Inputs) -> Prepared:
    """Its dense function; of ragged documents, padded ones with a mask."""
    from late_interaction_kernels import maxsim

    return _masked(lambda q, d, keep: maxsim(q, d, None, keep, backward=backward), inputs)


def lik_varlen(inputs: Inputs) -> Prepared:
    """Its packed function. The longest lengths are given, which spares it a wait for the device."""
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
    """Its only 8-bit format, which needs a Hopper GPU; one scale for each token, of the queries made before too."""
    from late_interaction_kernels.fp8 import maxsim_inference_fp8, quantize_fp8_per_token

    start = time.perf_counter()
    documents, scales = quantize_fp8_per_token(inputs.padded)
    queries, q_scales = quantize_fp8_per_token(inputs.queries)
    packing = since(start, inputs)
    return Prepared(lambda: maxsim_inference_fp8(queries, documents, scale_Q=q_scales, scale_D=scales), (), packing)


def fm(inputs: Inputs) -> Prepared:
    """Its dense functions: for one query, for many, and for training; of ragged documents, padded ones and lengths."""
    import flash_maxsim

    workload = inputs.workload
    lengths = inputs.lengths.to(inputs.rows.device, torch.int32) if workload.lognormal else None
    if workload.backward:
        train = flash_maxsim.flash_maxsim_batched_train
        return _masked(lambda q, d, _: train(q, d, shared_docs=True, doc_lengths=lengths), inputs)
    if workload.nq == 1:
        return _masked(lambda q, d, _: flash_maxsim.flash_maxsim(q[0], d, doc_lengths=lengths), inputs)
    batched = flash_maxsim.flash_maxsim_batched
    return _masked(lambda q, d, _: batched(q, d, doc_lengths=lengths, shared_docs=True), inputs)


def fm_inverse_grid(inputs: Inputs) -> Prepared:
    """Its backward pass without atomics, which only an environment variable asks for."""
    prepared = fm(inputs)

    def score() -> Tensor:
        os.environ["FLASH_BWD_PATH"] = "invgrid"
        try:
            return prepared.score()
        finally:
            del os.environ["FLASH_BWD_PATH"]

    return prepared._replace(score=score)


def fm_packed(inputs: Inputs) -> Prepared:
    """Its packed function, which casts all documents to float16 in every call: here they are, once."""
    import flash_maxsim

    start = time.perf_counter()
    query, documents = inputs.queries[0].half(), inputs.rows.half()
    offsets = _offsets(inputs.lengths, documents.device)
    packing = since(start, inputs)
    return Prepared(lambda: flash_maxsim.flash_maxsim_packed(query, documents, offsets), (), packing)


def fm_persistent(inputs: Inputs) -> Prepared:
    """Its kernel that loops over documents, meant for many short ones."""
    import flash_maxsim

    lengths = inputs.lengths.to(inputs.rows.device, torch.int32)
    return _masked(lambda q, d, _: flash_maxsim.flash_maxsim_persistent(q, d, doc_lengths=lengths), inputs)


def fm_query_reuse(inputs: Inputs) -> Prepared:
    """Its kernel that scores several documents with each tile of a long query. It multiplies in float16."""
    import flash_maxsim

    query, documents = inputs.queries[0].half(), inputs.padded.half()
    return Prepared(lambda: flash_maxsim.flash_maxsim_qreuse(query, documents))


def fm_int8(inputs: Inputs) -> Prepared:
    """Its products of 8-bit integers, the query rounded before too."""
    import flash_maxsim

    start = time.perf_counter()
    # It divides in the type it is given, and bfloat16 would round once more.
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
    # Compiling these takes longer than timing everything else: they come last, as far as there is time.
    COMPILED,
    peer("flash-maxsim query reuse", fm_query_reuse, exact_only, no_gradients, _one_query, _long_queries, main=False),
    torch_contender(
        "einsum, compiled max-autotune", functools.partial(compiled, "max-autotune-no-cudagraphs"), compiler, main=False
    ),
)
