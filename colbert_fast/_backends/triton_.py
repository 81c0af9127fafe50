"""The Triton backend: it makes a plan for the shapes and dtypes of a call, and launches the kernels.

`BACKEND` is at the end of this file, and `triton_best` adds to it. The kernels are in `triton_kernels` (scores) and
`triton_gradients`; `triton_tiles` chooses the sizes of their tiles. `triton_upper` and `triton_best` launch their
kernels from here, too.
Triton is imported on first use.

The host knows the shapes and never asks the device for a value. So no call waits for the device, and every call can be
captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import math
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colbert_fast._backends import triton_tiles
from colbert_fast._backends.problem import EMPTY_DOCUMENT_SCORE, Backend, Problem, Scored
from colbert_fast._backends.triton_tiles import Config
from colbert_fast._environment import release

# Triton's own switch. Triton reads it when the kernels are imported. If it is 1, the kernels run in Python on CPU
# tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The first release whose interpreter multiplies float64. With an older release no test could check the kernels.
# pyproject.toml has the same number.
OLDEST = "3.5"
# One program of rank_kernel sorts a chunk of 2 ** LOG_CHUNK query tokens. The place of a query token in its chunk takes
# LOG_CHUNK bits of a key.
LOG_CHUNK = 10


class _Gpu(NamedTuple):
    arch: str  # "sm_90", or "rocm"
    shared: int  # bytes of shared memory that one program may use
    processors: int  # number of multiprocessors


class _Plan(NamedTuple):
    """Everything about a launch on one device that does not depend on the number of documents."""

    constants: dict[str, Any]  # constexpr arguments, in the kernel's order
    values: tuple[Any, ...]  # the values of `constants`, without their names
    options: dict[str, Any]  # options of the compiler
    compiled: dict[Any, Any]  # compiled kernels, by the `key` of `_launch`
    blocks: int = 1  # number of tiles of one query; more than 1 if the query is longer than a tile
    per_tile: int = 1  # number of whole queries in a tile
    run: int = 1  # as in Config
    resident: int = 1  # as in Config


def _missing() -> str | None:
    """Return why there is no Triton that can run these kernels, or None if there is one."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; `pip install 'colbert-fast[triton]'` on Linux"
    try:
        found = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # a build under another name, for ROCm or Windows
        return None
    if release(found) < release(OLDEST):
        return f"needs Triton {OLDEST} or newer, which comes with torch 2.9; {found} is installed"
    return None


def _unsupported() -> str | None:
    if (reason := _missing()) is not None:
        return reason
    # Counting devices does not initialise CUDA. After CUDA is initialised, a process can no longer fork.
    if not INTERPRETED and torch.cuda.device_count() == 0:
        return "there is no CUDA device"
    return None


def _refused(device: torch.device) -> str | None:
    """Return why the kernels cannot run on this device, or None if they can.

    This initialises CUDA. The caller has tensors on the device, so CUDA is initialised already.
    """
    if INTERPRETED or torch.version.hip:
        return None
    properties: Any = torch.cuda.get_device_properties(device)
    if properties.major >= 8:
        return None
    return f"needs compute capability 8.0 or more; {properties.name} has {properties.major}.{properties.minor}"


def score(p: Problem) -> Scored:
    return _score(p, argmax=False)


def score_argmax(p: Problem) -> Scored:
    return _score(p, argmax=True)


def _score(p: Problem, *, argmax: bool) -> Scored:
    """Launch score_kernel. If a query is longer than a tile, add up the scores of its parts."""
    q, d = _readable(p.q_tokens), _readable(p.d_tokens)
    device = d.device
    nq, nd = p.nq, p.nd
    shape = (nq, nd) if p.pairs is None else (p.pairs.shape[0],)
    count = math.prod(shape)
    scores = torch.empty(shape, dtype=torch.float32, device=device)
    winners = torch.empty((count, p.max_lq), dtype=p.argmax_dtype, device=device) if argmax else None
    if count == 0:
        return Scored(scores, winners, False)
    plan = _score_plan(
        _device_index(device),
        p.q_tokens.dtype,
        p.d_tokens.dtype,
        q.shape[1],
        q.stride(0),
        d.stride(0),
        min(nq, 256),
        p.max_lq,
        p.pairs is not None,
        argmax,
        p.skip_zero_q,
        p.skip_zero_d,
        torch.get_float32_matmul_precision() if q.dtype == torch.float32 else "",
    )
    tiles = plan.blocks if p.pairs is not None else plan.blocks * -(-nq // plan.per_tile)
    at_once = plan.resident * _gpu(_device_index(device)).processors
    run = 1 if p.pairs is not None else triton_tiles.documents_in_turn(plan.run, at_once, tiles, nd)
    shares = count if p.pairs is not None else -(-nd // run)
    programs = shares * tiles
    order = p.d_order if p.pairs is None else None
    if order is not None and not _order_matters(programs, _device_index(device)):
        order = None
    out = scores if plan.blocks == 1 else torch.empty((plan.blocks, count), dtype=torch.float64, device=device)
    _launch(
        "score_kernel",
        programs,
        (q, p.q_starts, p.q_lengths, d, p.d_starts, p.d_lengths, p.d_scales, p.pairs, order, out, winners),
        (nq, nd, count, p.max_lq, p.max_ld, tiles, shares, d.shape[0]),
        plan,
        (
            None if winners is None else winners.dtype,
            q.data_ptr() % 16 == 0,
            d.data_ptr() % 16 == 0,
            order is None,
            p.q_starts is None,
            p.d_starts is None,
        ),
    )
    if plan.blocks > 1:
        scores = out.sum(0).to(torch.float32).view(shape)
    return Scored(scores, winners, INTERPRETED and bool((scores == EMPTY_DOCUMENT_SCORE).any()))


def _order_matters(programs: int, index: int) -> bool:
    """Return whether the order in which documents are scored can save much time.

    With at most one program for each processor, all programs start at once, so the order changes nothing.

    With many programs the order changes little. In any order, a processor is idle at the end for at most the time of
    the longest program, which for passages is about 4 times the mean time of a program. A processor that has 256
    programs and runs 10 of them at once works for 256 / 10 mean times. So it is idle for at most 4 * 10 / 256 = 16 % of
    the time, and for less if the programs wait for memory. The order itself costs one more load for each document.
    """
    processors = _gpu(index).processors
    return processors < programs <= 256 * processors


def backward(
    p: Problem, grad_scores: Tensor, argmax: Tensor, for_q: bool, for_d: bool
) -> tuple[Tensor | None, Tensor | None]:
    grad_scores, argmax = grad_scores.to(torch.float32).contiguous(), argmax.contiguous()
    grad_q = _grad(p, grad_scores, argmax, for_q=True) if for_q else None
    grad_d = _grad(p, grad_scores, argmax, for_q=False) if for_d else None
    return grad_q, grad_d


def _grad(p: Problem, grad_scores: Tensor, argmax: Tensor, *, for_q: bool) -> Tensor:
    """Launch grad_kernel for the queries (for_q) or for the documents, and return the gradient of their token rows."""
    if for_q:
        own, starts, lengths = p.q_tokens, p.q_starts, p.q_lengths
        other, other_starts = _readable(p.d_tokens), p.d_starts
    else:
        own, starts, lengths = p.d_tokens, p.d_starts, p.d_lengths
        other, other_starts = _readable(p.q_tokens), p.q_starts
    if p.num_pairs == 0 or p.max_lq == 0 or own.numel() == 0:
        return torch.zeros_like(own, memory_format=torch.contiguous_format)
    grad = torch.empty(own.shape, dtype=torch.float32 if INTERPRETED else own.dtype, device=own.device)
    order = bounds = None
    if p.pairs is not None:
        owners, order = p.pairs[:, 0 if for_q else 1].contiguous().sort(stable=True)
        bounds = torch.searchsorted(owners, torch.arange(len(starts) + 1, device=own.device))
    scales = p.d_scales if for_q else None
    plan = _grad_plan(
        _device_index(own.device),
        (p.d_tokens if for_q else p.q_tokens).dtype,
        p.q_tokens.dtype,
        own.shape[1],
        other.stride(0),
        p.pairs is not None,
        for_q,
        scales is not None,
        torch.get_float32_matmul_precision(),
    )
    programs = -(-own.shape[0] // plan.constants["BLOCK_R"]) * -(-own.shape[1] // plan.constants["BLOCK_K"])
    log_chunk = plan.constants["LOG_CHUNK"]
    token_bits = min(log_chunk, (p.max_lq - 1).bit_length())
    ranked = None if for_q else _ranked(p, argmax, order, log_chunk, token_bits)
    _launch(
        "grad_kernel",
        programs,
        (
            starts,
            lengths,
            other,
            other_starts,
            scales,
            p.pairs,
            order,
            bounds,
            grad_scores,
            argmax,
            ranked,
            grad,
        ),
        (own.shape[0], len(starts), len(other_starts), len(p.d_starts), p.max_lq, token_bits),
        plan,
        (
            grad.dtype,  # the gradient of documents may have another dtype than the queries
            argmax.dtype,
            None if ranked is None else ranked.dtype,
            other.data_ptr() % 16 == 0,
            grad.data_ptr() % 16 == 0,
        ),
    )
    return grad


def _ranked(p: Problem, argmax: Tensor, order: Tensor | None, log_chunk: int, token_bits: int) -> Tensor:
    """Sort the query tokens of every chunk of pairs by the document row that won them.

    Returns the keys that rank_kernel writes, ``[chunks * 2**log_chunk]``, int32 or int64.
    """
    chunks = -(-p.num_pairs // (1 << (log_chunk - token_bits))) * -(-p.max_lq // (1 << log_chunk))
    # grad_kernel compares keys with the end of its tile. The last tile ends less than 1024 rows after the last row.
    dtype = torch.int32 if (p.d_tokens.shape[0] + 1024) << log_chunk < 2**31 else torch.int64
    ranked = torch.empty(chunks << log_chunk, dtype=dtype, device=argmax.device)
    _launch(
        "rank_kernel",
        chunks,
        (p.d_starts, p.pairs, order, argmax, ranked),
        (p.num_pairs, p.nq, p.nd, p.max_lq, token_bits),
        _rank_plan(_device_index(argmax.device), log_chunk, p.pairs is not None),
        (argmax.dtype, dtype),
    )
    return ranked


def _readable(tokens: Tensor) -> Tensor:
    """Return the tokens such that the elements of a row lie side by side. Copy them only if this is needed."""
    # The interpreter cannot multiply bfloat16, and truncates to bfloat16 where a GPU rounds.
    if INTERPRETED and tokens.dtype == torch.bfloat16:
        tokens = tokens.float()
    if tokens.is_neg():
        tokens = tokens.resolve_neg()
    return tokens if tokens.stride(1) == 1 or tokens.shape[1] <= 1 else tokens.contiguous()


def _launch(
    name: str,
    programs: int,
    tensors: tuple[Tensor | None, ...],
    sizes: tuple[int, ...],
    plan: _Plan,
    key: tuple[torch.dtype | bool | None, ...],
) -> None:
    """Launch a kernel on the device of the tensors. From the second launch on, skip Triton's look-up of the code.

    Triton's look-up goes through all arguments at every call. Here the plan and ``key`` together hold everything that
    the compiled code depends on. ``key`` holds the dtypes that the plan does not know, whether each of the two matrices
    of token rows is aligned to 16 bytes, and which tensors are None.
    """
    if programs >= 2**31:
        msg = (
            f"one call may launch at most {2**31 - 1} Triton programs; this call needs {programs}: "
            "score fewer documents in one call"
        )
        raise NotImplementedError(msg)
    if INTERPRETED:
        _kernel(name)[(programs,)](*tensors, *sizes, **plan.constants)
        return
    assert tensors[0] is not None
    index = tensors[0].device.index
    if index != torch.cuda.current_device():
        with torch.cuda.device(index):
            _launch(name, programs, tensors, sizes, plan, key)
        return
    compiled = plan.compiled.get(key)
    if compiled is None or max(sizes) >= 2**31:
        compiled = _kernel(name)[(programs,)](*tensors, *sizes, **plan.constants, **plan.options)
        if _direct_launches() and max(sizes) < 2**31:
            plan.compiled[key] = compiled
        return
    stream = _driver().get_current_stream(index)
    nothing = (compiled.function, compiled.packed_metadata, None, None, None)
    compiled.run(programs, 1, 1, stream, *nothing, *tensors, *sizes, *plan.values)


@functools.cache
def _direct_launches() -> bool:
    """Return whether the compiled kernels of this Triton take the arguments that ``_launch`` gives them."""
    import triton

    return (3, 6) <= tuple(int(part) for part in triton.__version__.split(".")[:2]) <= (3, 9)


@functools.cache
def _driver() -> Any:
    from triton.runtime import driver

    return driver.active


@functools.cache
def _kernel(name: str) -> Any:
    from colbert_fast._backends import triton_best_kernel, triton_gradients, triton_kernels, triton_upper_kernel

    return {
        "score_kernel": triton_kernels.score_kernel,
        "rank_kernel": triton_gradients.rank_kernel,
        "grad_kernel": triton_gradients.grad_kernel,
        "upper_kernel": triton_upper_kernel.upper_kernel,
        "best_kernel": triton_best_kernel.best_kernel,
    }[name]


def _device_index(device: torch.device) -> int:
    return -1 if device.index is None else device.index


@functools.cache
def _gpu(index: int) -> _Gpu:
    if INTERPRETED:
        return _Gpu("sm_90", 232448, 1)
    properties: Any = torch.cuda.get_device_properties(index)
    arch = "rocm" if torch.version.hip else f"sm_{properties.major}{properties.minor}"
    shared = 65536 if arch == "rocm" else getattr(properties, "shared_memory_per_block_optin", 101376)
    return _Gpu(arch, shared, properties.multi_processor_count)


def _kind(q_dtype: torch.dtype, d_dtype: torch.dtype) -> str:
    """Return the kind of dtypes, as in the keys of triton_tuning.json."""
    if q_dtype == torch.float32:
        return "float"
    return "int8" if d_dtype == torch.int8 else "half"


def _precision(dtype: torch.dtype, precision: str) -> str:
    """Return how float32 is multiplied.

    "tf32x3" adds three products of parts of 11 bits each, with an error of about 2^-22. "tf32" is one product of the
    first parts; it is used only if the user allows it.
    """
    if dtype != torch.float32:
        return "ieee"
    return "tf32x3" if precision == "highest" else "tf32"


@functools.lru_cache(4096)
def _score_plan(
    index: int,
    q_dtype: torch.dtype,
    d_dtype: torch.dtype,
    dim: int,
    q_stride: int,
    d_stride: int,
    nq: int,
    max_lq: int,
    pairs: bool,
    argmax: bool,
    skip_zero_q: bool,
    skip_zero_d: bool,
    precision: str,
) -> _Plan:
    gpu = _gpu(index)
    width = max(1, max_lq)
    rows = width if pairs else width * nq
    few = rows <= 64
    work = ("short" if few else "wide") + ("_argmax" if argmax else "")
    config = triton_tiles.config_for(gpu.arch, _kind(q_dtype, d_dtype), work)
    block_q = min(triton_tiles.power_of_two(rows, 16), config.block_q)
    config, k1, k2 = triton_tiles.fit(
        config._replace(block_q=block_q), dim, q_dtype.itemsize, d_dtype.itemsize, gpu.shared
    )
    per_tile = max(1, config.block_q // width)
    constants = {
        "Q_STRIDE": q_stride,
        "D_STRIDE": d_stride,
        "DIM": dim,
        "K1": k1,
        "K2": k2,
        "BLOCK_Q": config.block_q,
        "BLOCK_D": config.block_d,
        "QUERIES": 1 if pairs or per_tile == 1 or nq == 1 else triton_tiles.power_of_two(min(per_tile, nq), 1),
        "SWAP": few or config.swap,
        "STAGES": config.stages,
        "PAIRS": pairs,
        "ARGMAX": argmax,
        "SCALED": d_dtype == torch.int8,
        "SKIP_ZERO_Q": skip_zero_q,
        "SKIP_ZERO_D": skip_zero_d,
        "PRECISION": _precision(q_dtype, precision),
        "INTERPRETED": INTERPRETED,
    }
    blocks = -(-width // config.block_q)
    values = tuple(constants.values())
    per_tile = 1 if pairs else min(per_tile, nq)
    return _Plan(constants, values, _options(gpu, config), {}, blocks, per_tile, config.run, config.resident)


def _options(gpu: _Gpu, config: Config) -> dict[str, Any]:
    options = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
    if config.registers is not None and gpu.arch != "rocm":
        options["maxnreg"] = config.registers
    return options


@functools.lru_cache(4096)
def _grad_plan(
    index: int,
    other_dtype: torch.dtype,
    q_dtype: torch.dtype,
    dim: int,
    stride: int,
    pairs: bool,
    for_q: bool,
    scaled: bool,
    precision: str,
) -> _Plan:
    gpu = _gpu(index)
    if for_q:
        config = triton_tiles.config_for(gpu.arch, _kind(q_dtype, other_dtype), "grad_q")
    else:  # a weight may not fit into float16, so float16 is multiplied as float32
        wide = torch.float32 if q_dtype == torch.float16 else q_dtype
        config = triton_tiles.config_for(gpu.arch, _kind(wide, other_dtype), "grad_d")
    constants = {
        "STRIDE": stride,
        "DIM": dim,
        "BLOCK_R": config.block_q if for_q else config.block_d,
        "BLOCK_T": config.block_q,
        "BLOCK_K": min(triton_tiles.power_of_two(dim, 16), config.piece),
        "ITEMS": 1024,
        "LOG_CHUNK": LOG_CHUNK,
        # Triton 3.9 cannot pipeline loads that depend on one another across iterations.
        "STAGES": 1 if pairs and for_q else config.stages,
        "FOR_Q": for_q,
        "PAIRS": pairs,
        "SCALED": scaled,
        "PRECISION": "tf32x3" if q_dtype == torch.float16 else _precision(q_dtype, precision),
    }
    return _Plan(constants, tuple(constants.values()), _options(gpu, config), {})


@functools.cache
def _rank_plan(index: int, log_chunk: int, pairs: bool) -> _Plan:
    constants = {"LOG_CHUNK": log_chunk, "PAIRS": pairs}
    return _Plan(constants, tuple(constants.values()), {"num_warps": 1, "enable_fp_fusion": True}, {})


BACKEND = Backend(
    name="triton",
    unsupported=_unsupported(),
    device="cpu" if INTERPRETED else "cuda",
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    score=score,
    score_argmax=score_argmax,
    backward=backward,
    int8=True,
    uniform=True,
    refused=_refused,
)
