"""Our Triton kernels as a backend: what fits which work, and the launches. Triton is imported on first use.

The host knows shapes and never asks the device for anything: no call waits, and all can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colbert_fast._backends.problem import EMPTY_DOCUMENT_SCORE, Backend, Problem, Scored

# Triton's own switch, which it reads when the kernels are imported: they then run in Python, on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TUNING = Path(__file__).with_name("triton_tuning.json")


class Config(NamedTuple):
    """How a kernel's work is cut for one kind of GPU and of work; a line of triton_tuning.json."""

    block_q: int  # query tokens of a tile; the most, where queries are short
    block_d: int  # document tokens of a tile
    warps: int
    stages: int  # tiles on their way from memory
    delay: bool = False  # reduce a tile beside the next one's product
    run: int = 1  # documents that a program takes in turn, at most
    registers: int | None = None  # of a thread, at most


class _Gpu(NamedTuple):
    arch: str  # "sm_90", or "rocm"
    shared: int  # bytes that one program may use
    processors: int


class _Plan(NamedTuple):
    """Everything about a launch that does not depend on the number of documents."""

    constants: dict[str, Any]  # constexpr arguments and compiler options
    blocks: int  # tiles of one query, if longer than a tile
    per_tile: int  # whole queries in a tile
    run: int


def _unsupported() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; `pip install 'colbert-fast[triton]'` on Linux"
    # Counting devices does not initialise CUDA, after which a process could not fork.
    if not INTERPRETED and torch.cuda.device_count() == 0:
        return "there is no CUDA device"
    return None


def score(p: Problem) -> Scored:
    return _score(p, argmax=False)


def score_argmax(p: Problem) -> Scored:
    return _score(p, argmax=True)


def _score(p: Problem, *, argmax: bool) -> Scored:
    q, d = _readable(p.q_tokens), _readable(p.d_tokens)
    device = d.device
    scores = torch.empty(p.shape, dtype=torch.float32, device=device)
    winners = torch.empty((p.num_pairs, p.max_lq), dtype=p.argmax_dtype, device=device) if argmax else None
    nq, nd, count = len(p.q_starts), len(p.d_starts), p.num_pairs
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
        torch.get_float32_matmul_precision(),
    )
    tiles = plan.blocks if p.pairs is not None else plan.blocks * -(-nq // plan.per_tile)
    run = 1
    if plan.run > 1 and p.pairs is None:
        run = max(1, min(plan.run, tiles * nd // (8 * _gpu(_device_index(device)).processors)))
    programs = (count if p.pairs is not None else -(-nd // run)) * tiles
    out = scores if plan.blocks == 1 else torch.empty((plan.blocks, count), dtype=torch.float64, device=device)
    _launch(
        "score_kernel",
        programs,
        (q, p.q_starts, p.q_lengths, d, p.d_starts, p.d_lengths, p.d_scales, p.pairs, out, winners),
        (nq, nd, count, p.max_lq, tiles, run),
        plan.constants,
    )
    if plan.blocks > 1:
        scores = out.sum(0).to(torch.float32).view(p.shape)
    return Scored(scores, winners, INTERPRETED and bool((scores == EMPTY_DOCUMENT_SCORE).any()))


def backward(
    p: Problem, grad_scores: Tensor, argmax: Tensor, for_q: bool, for_d: bool
) -> tuple[Tensor | None, Tensor | None]:
    grad_scores, argmax = grad_scores.to(torch.float32).contiguous(), argmax.contiguous()
    grad_q = _grad(p, grad_scores, argmax, for_q=True) if for_q else None
    grad_d = _grad(p, grad_scores, argmax, for_q=False) if for_d else None
    return grad_q, grad_d


def _grad(p: Problem, grad_scores: Tensor, argmax: Tensor, *, for_q: bool) -> Tensor:
    if for_q:
        own, starts, lengths = p.q_tokens, p.q_starts, p.q_lengths
        other, other_starts, other_lengths = _readable(p.d_tokens), p.d_starts, p.d_lengths
    else:
        own, starts, lengths = p.d_tokens, p.d_starts, p.d_lengths
        other, other_starts, other_lengths = _readable(p.q_tokens), p.q_starts, p.q_lengths
    if p.num_pairs == 0 or own.numel() == 0:
        return torch.zeros_like(own, memory_format=torch.contiguous_format)
    grad = torch.empty(own.shape, dtype=torch.float32 if INTERPRETED else own.dtype, device=own.device)
    order = bounds = None
    if p.pairs is not None:
        owners, order = p.pairs[:, 0 if for_q else 1].contiguous().sort(stable=True)
        bounds = torch.searchsorted(owners, torch.arange(len(starts) + 1, device=own.device))
    scales = p.d_scales if for_q else None
    constants = _grad_plan(
        _device_index(own.device),
        other.dtype,
        own.shape[1],
        other.stride(0),
        p.max_lq,
        p.pairs is not None,
        for_q,
        scales is not None,
        torch.get_float32_matmul_precision(),
    )
    programs = -(-own.shape[0] // constants["BLOCK_R"]) * -(-own.shape[1] // constants["BLOCK_K"])
    _launch(
        "grad_kernel",
        programs,
        (starts, lengths, other, other_starts, other_lengths, scales, p.pairs, order, bounds, grad_scores, argmax, grad),
        (own.shape[0], len(starts), len(other_starts), len(p.d_starts), p.max_lq),
        constants,
    )
    return grad


def _readable(tokens: Tensor) -> Tensor:
    """Return tokens with adjacent elements in a row; a copy only if need be."""
    if INTERPRETED and tokens.dtype == torch.bfloat16:  # which it does not multiply, and cuts where a GPU rounds
        tokens = tokens.float()
    if tokens.is_neg():
        tokens = tokens.resolve_neg()
    return tokens if tokens.stride(1) == 1 or tokens.shape[1] <= 1 else tokens.contiguous()


def _launch(
    name: str, programs: int, tensors: tuple[Tensor | None, ...], sizes: tuple[int, ...], constants: dict[str, Any]
) -> None:
    if programs >= 2**31:
        msg = f"one call may launch {2**31 - 1} Triton programs; this one needs {programs}: score fewer documents a call"
        raise NotImplementedError(msg)
    _kernel(name)[(programs,)](*tensors, *sizes, **constants)


@functools.cache
def _kernel(name: str) -> Any:
    from colbert_fast._backends import triton_kernels

    return getattr(triton_kernels, name)


def _device_index(device: torch.device) -> int:
    return -1 if device.index is None else device.index


@functools.cache
def _gpu(index: int) -> _Gpu:
    if INTERPRETED:
        return _Gpu("sm_90", 232448, 1)
    properties: Any = torch.cuda.get_device_properties(index)
    arch = "rocm" if torch.version.hip else f"sm_{properties.major}{properties.minor}"
    if arch != "rocm" and properties.major < 8:
        msg = f"the triton backend needs compute capability 8.0 or more; {properties.name} has {arch}: backend='torch'"
        raise NotImplementedError(msg)
    shared = 65536 if arch == "rocm" else getattr(properties, "shared_memory_per_block_optin", 101376)
    return _Gpu(arch, shared, properties.multi_processor_count)


@functools.cache
def _table() -> dict[str, Config]:
    """Read the tuning table: "arch/kind/work" to a configuration."""
    rows = json.loads(TUNING.read_text(encoding="utf-8"))["configs"]
    return {key: Config(**row) for key, row in rows.items()}


def _config(arch: str, kind: str, work: str) -> Config:
    """Return the line of this architecture, or of the newest older one that has any."""
    table = _table()
    known = sorted({key.partition("/")[0] for key in table if key.startswith("sm_")}, key=_arch_number)
    for name in [arch, *(a for a in reversed(known) if arch != "rocm" and _arch_number(a) <= _arch_number(arch))]:
        found = table.get(f"{name}/{kind}/{work}")
        if found is not None:
            return found
    return table[f"{known[0]}/{kind}/{work}"]


def _arch_number(arch: str) -> int:
    return int(arch.removeprefix("sm_"))


def _kind(q_dtype: torch.dtype, d_dtype: torch.dtype) -> str:
    if d_dtype == torch.int8:
        return "int8"
    return "float" if q_dtype == torch.float32 else "half"


def _precision(dtype: torch.dtype, precision: str) -> str:
    """Return how float32 is multiplied: in three passes of 11 bits each, about 2^-22, or in one if the user allows."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32x3" if precision == "highest" else "tf32"


def _power_of_two(n: int, least: int) -> int:
    return max(least, 1 << max(0, n - 1).bit_length())


def _k_split(dim: int) -> tuple[int, int]:
    """Cut dimensions into two powers of two: 96 = 64 + 32, 384 = 256 + 128. Few are lost in any dim."""
    if dim <= 16:
        return 16, 0
    first = _power_of_two(dim // 2 + 1, 16)
    rest = dim - first
    second = _power_of_two(rest, 16) if rest else 0
    return (2 * first, 0) if second >= first else (first, second)


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
    swap = rows <= 64
    work = ("short" if swap else "wide") + ("_argmax" if argmax else "")
    config = _config(gpu.arch, _kind(q_dtype, d_dtype), work)
    block_q = _power_of_two(rows, 16) if swap else config.block_q
    config, k1, k2 = _fit(config._replace(block_q=block_q), dim, q_dtype.itemsize, d_dtype.itemsize, gpu.shared)
    per_tile = max(1, config.block_q // width)
    constants = {
        "Q_STRIDE": q_stride,
        "D_STRIDE": d_stride,
        "DIM": dim,
        "K1": k1,
        "K2": k2,
        "BLOCK_Q": config.block_q,
        "BLOCK_D": config.block_d,
        "QUERIES": 1 if pairs or per_tile == 1 or nq == 1 else _power_of_two(min(per_tile, nq), 1),
        "SWAP": swap,
        "DELAY": config.delay and not swap and not argmax,
        "STAGES": config.stages,
        "PAIRS": pairs,
        "ARGMAX": argmax,
        "SCALED": d_dtype == torch.int8,
        "SKIP_ZERO_Q": skip_zero_q,
        "SKIP_ZERO_D": skip_zero_d,
        "PRECISION": _precision(q_dtype, precision),
        "INTERPRETED": INTERPRETED,
        **_options(gpu, config.warps, config.stages, config.registers),
    }
    return _Plan(constants, -(-width // config.block_q), 1 if pairs else min(per_tile, nq), config.run)


def _options(gpu: _Gpu, warps: int, stages: int, registers: int | None) -> dict[str, Any]:
    if INTERPRETED:
        return {}
    options = {"num_warps": warps, "num_stages": stages}
    return options if registers is None or gpu.arch == "rocm" else {**options, "maxnreg": registers}


def _fit(config: Config, dim: int, q_bytes: int, d_bytes: int, shared: int) -> tuple[Config, int, int]:
    """Make the tiles fit into shared memory: fewer stages, smaller tiles, at last pieces of the dimensions.

    Returns the configuration and the dimensions K1 and K2 of a tile; in pieces if they are fewer than ``dim``.
    """
    room = shared - 4096  # for reductions and index loads
    k1, k2 = _k_split(dim)
    while config.block_q * (k1 + k2) * q_bytes + config.stages * config.block_d * (k1 + k2) * d_bytes > room:
        if config.stages > 2:
            config = config._replace(stages=config.stages - 1)
        elif config.block_d > 64:
            config = config._replace(block_d=config.block_d // 2)
        else:
            k1 = next((k for k in (64, 32) if dim % k == 0), 64)
            stages = 3 if 3 * (config.block_q + config.block_d) * k1 * q_bytes <= room else 2
            return config._replace(stages=stages), k1, 0
    return config, k1, k2


@functools.lru_cache(4096)
def _grad_plan(
    index: int,
    dtype: torch.dtype,
    dim: int,
    stride: int,
    max_lq: int,
    pairs: bool,
    for_q: bool,
    scaled: bool,
    precision: str,
) -> dict[str, Any]:
    gpu = _gpu(index)
    config = _config(gpu.arch, _kind(dtype, dtype), "grad_q" if for_q else "grad_d")
    return {
        "STRIDE": stride,
        "DIM": dim,
        "BLOCK_R": config.block_q if for_q else config.block_d,
        "BLOCK_T": 16 if for_q else min(_power_of_two(max_lq, 16), config.block_q),
        "BLOCK_K": min(_power_of_two(dim, 16), 128 if dtype.itemsize <= 2 else 64),
        "ITEMS": 1024,
        "STAGES": config.stages,
        "FOR_Q": for_q,
        "PAIRS": pairs,
        "SCALED": scaled,
        "PRECISION": _precision(dtype, precision),
        "INTERPRETED": INTERPRETED,
        **_options(gpu, config.warps, config.stages, config.registers),
    }


BACKEND = Backend(
    name="triton",
    unsupported=_unsupported(),
    device="cpu" if INTERPRETED else "cuda",
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    score=score,
    score_argmax=score_argmax,
    backward=backward,
)
