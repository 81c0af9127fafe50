"""Upper bounds of scores from codes, in Triton: the queries in int8, the plan, and the launch.

torch_upper.py defines the bound and proves it. Here y_i is scale * q8, with int8 numbers q8. Sums of products are exact
then. They are rounded once as they become float32, and that is one of the roundings of `torch_upper.margin`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from colbert_fast._backends import triton_, triton_tiles
from colbert_fast._backends.problem import CHUNK_ELEMENTS, EMPTY_DOCUMENT_SCORE
from colbert_fast._backends.torch_upper import distance, rotated, rounded_up
from colbert_fast._codecs import BITS, Codes
from colbert_fast.packed import PackedTokens

# So many numbers of a row are multiplied at once, at most. More are multiplied in pieces of half as many.
_AT_ONCE = 256


def upper_bounds(queries: PackedTokens, codes: Codes) -> Tensor:
    """Return the bounds ``[A, n]``, float32, on the device of the codes. Waits only to move what is elsewhere."""
    device = codes.device
    nq, nd = len(queries), len(codes)
    if nq == 0 or nd == 0 or not queries.max_length:
        nothing = torch.zeros((nq, nd), dtype=torch.float32, device=device)
        return nothing.masked_fill_(codes.lengths == 0, EMPTY_DOCUMENT_SCORE)
    tokens = _quantised(queries, codes)
    at_once = max(1, CHUNK_ELEMENTS // nd)
    parts = []
    for first in range(0, nq, at_once):
        some = slice(first, first + at_once)
        places = (queries.starts[some].to(device), queries.lengths[some].to(device))
        parts.append(_launched(tokens, places, queries.max_length, codes))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _quantised(queries: PackedTokens, codes: Codes) -> tuple[Tensor, ...]:
    """Return for all query tokens: int8 ``[rows, numbers]``, and sums, norms, scales and distances ``[rows]``."""
    with torch.no_grad():
        q = rotated(queries.tokens, codes)
        scales = q.scales / 127
        rows = (q.rows / scales.unsqueeze(1)).round_()
        distances = distance(q, rows * scales.unsqueeze(1))
        tokens = _in_order(rows.to(torch.int8), codes)
        sums = rows.sum(1).mul_(BITS[codes.bits][1]).to(torch.int32)
        norms = (q.norms / scales).to(torch.float32)
    return tuple(part.to(codes.device) for part in (tokens, sums, norms, scales, distances))


def _in_order(numbers: Tensor, codes: Codes) -> Tensor:
    """Return numbers ``[rows, dim]`` in the order in which the kernel unpacks levels, with zeros for the others.

    Number i * BYTES + j of a row comes to place j * per + i, beside the other numbers of byte j.
    """
    sizes = _sizes(codes.dim, codes.bits, codes.low is not None)
    used, per = sizes["BYTES"], sizes["NUMBERS"] // sizes["K"]
    if per > 1:
        numbers = torch.nn.functional.pad(numbers, (0, used * per - codes.dim))
        numbers = numbers.view(-1, per, used).transpose(1, 2).flatten(1)
    missing = sizes["NUMBERS"] * sizes["PIECES"] - numbers.shape[1]
    return torch.nn.functional.pad(numbers, (0, missing)) if missing else numbers


def _launched(tokens: tuple[Tensor, ...], places: tuple[Tensor, Tensor], max_lq: int, codes: Codes) -> Tensor:
    """Launch upper_kernel, and return the bounds ``[A, n]``."""
    q8, *others = tokens
    nq, nd = len(places[0]), len(codes)
    index = triton_._device_index(codes.device)
    plan = _plan(index, codes.dim, codes.bits, codes.low is not None, min(nq, 256), max_lq)
    tiles = plan.blocks * -(-nq // plan.per_tile)
    at_once = plan.resident * triton_._gpu(index).processors
    run = triton_tiles.documents_in_turn(plan.run, at_once, tiles, nd)
    shares = -(-nd // run)
    # The parts of a long query are added before they are rounded.
    whole = plan.blocks == 1
    shape = (nq, nd) if whole else (plan.blocks, nq, nd)
    bounds = torch.empty(shape, dtype=torch.float32 if whole else torch.float64, device=codes.device)
    levels, low = codes.levels.contiguous(), None if codes.low is None else codes.low.contiguous()
    triton_._launch(
        "upper_kernel",
        shares * tiles,
        (
            *(q8, *places, *others, levels, low, codes.multipliers.contiguous(), codes.slack.contiguous()),
            *(codes.norms.contiguous(), codes.starts.contiguous(), codes.lengths.contiguous(), bounds),
        ),
        (nq, nd, max_lq, tiles, shares),
        plan,
        (q8.data_ptr() % 16 == 0, levels.data_ptr() % 16 == 0, low is None or low.data_ptr() % 16 == 0),
    )
    return bounds if whole else rounded_up(bounds.sum(0), codes.norms, codes.lengths)


@functools.lru_cache(4096)
def _sizes(dim: int, bits: int, planes: bool) -> dict[str, int]:
    """Return how a row is cut: BYTES of a row; PIECES of K bytes; and NUMBERS, which are the numbers of a piece."""
    per = 2 if planes else 8 // bits
    whole = triton_tiles.power_of_two(dim, 32)
    numbers = whole if whole <= _AT_ONCE else _AT_ONCE // 2
    used = -(-dim // per)
    k = max(1, numbers // per)
    return {"BYTES": used, "K": k, "PIECES": -(-used // k), "NUMBERS": numbers}


@functools.lru_cache(4096)
def _plan(index: int, dim: int, bits: int, planes: bool, nq: int, max_lq: int) -> triton_._Plan:
    """Return the plan of a launch. The lines of the tuning table are those of int8 documents."""
    gpu = triton_._gpu(index)
    sizes = _sizes(dim, bits, planes)
    few = max_lq * nq <= 64
    config = triton_tiles.config_for(gpu.arch, "int8", "short" if few else "wide")
    config = config._replace(block_q=min(triton_tiles.power_of_two(max_lq * nq, 16), config.block_q))
    # The bytes of a row are in shared memory as they are loaded, and the numbers as they are multiplied.
    config, _, _ = triton_tiles.fit(config, sizes["NUMBERS"], 2, 1, gpu.shared)
    if sizes["PIECES"] > 1:  # the queries take registers, too, as they are loaded
        config = config._replace(registers=None)
    per_tile = max(1, config.block_q // max_lq)
    constants = {
        **sizes,
        "BITS": bits,
        "BLOCK_Q": config.block_q,
        "BLOCK_D": config.block_d,
        "QUERIES": 1 if per_tile == 1 or nq == 1 else triton_tiles.power_of_two(min(per_tile, nq), 1),
        "SWAP": few or config.swap,
        "STAGES": config.stages,
        "INTERPRETED": triton_.INTERPRETED,
    }
    options = triton_._options(gpu, config)
    blocks = -(-max_lq // config.block_q)
    per_tile = min(per_tile, nq)
    return triton_._Plan(
        constants, tuple(constants.values()), options, {}, blocks, per_tile, config.run, config.resident
    )
