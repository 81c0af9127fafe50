"""The sizes of the Triton kernels' tiles: a table of measured configurations, and how one is fitted to a GPU.

`triton_` calls `config_for`, `fit` and `documents_in_turn` when it makes a plan. The table is triton_tuning.json, which
benchmarks/tune_triton.py writes. This file needs no Triton.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

TUNING = Path(__file__).with_name("triton_tuning.json")
# The time that a program takes to begin and to end, as a multiple of the time that it takes to score one document. This
# is an estimate for an H100.
_BEGINNING = 0.3


class Config(NamedTuple):
    """How a kernel's work is cut, for one kind of GPU and one kind of work: a line of triton_tuning.json."""

    block_q: int  # largest number of query tokens of a tile
    block_d: int  # number of document tokens of a tile
    warps: int  # number of warps of a program
    stages: int  # number of tiles that are being loaded or multiplied at the same time
    swap: bool = False  # whether the rows of the products are document tokens; with few query tokens they always are
    run: int = 1  # largest number of documents that a program scores one after another; at most 31
    registers: int | None = None  # largest number of registers of a thread; None: the compiler decides
    piece: int = 512  # largest number of dimensions that are multiplied at once
    resident: int = 2  # number of programs that a processor runs at once


@functools.cache
def table() -> dict[str, Config]:
    """Read the tuning table: a configuration for each "arch/kind/work"."""
    rows = json.loads(TUNING.read_text(encoding="utf-8"))["configs"]
    return {key: Config(**row) for key, row in rows.items()}


def config_for(arch: str, kind: str, work: str) -> Config:
    """Return the configuration in the package's table for an architecture, a kind of dtypes and a kind of work."""
    return config_in(table(), arch, kind, work)


def config_in(lines: dict[str, Config], arch: str, kind: str, work: str) -> Config:
    """Return the configuration of this architecture, or else of the newest older architecture that has one."""
    known = sorted({key.partition("/")[0] for key in lines if key.startswith("sm_")}, key=_arch_number)
    for name in [arch, *(a for a in reversed(known) if arch != "rocm" and _arch_number(a) <= _arch_number(arch))]:
        found = lines.get(f"{name}/{kind}/{work}")
        if found is not None:
            return found
    return lines[f"{known[0]}/{kind}/{work}"]


def _arch_number(arch: str) -> int:
    return int(arch.removeprefix("sm_"))


@functools.lru_cache(4096)
def documents_in_turn(most: int, at_once: int, tiles: int, nd: int) -> int:
    """Return how many documents each program should score one after another, so that the call takes the least time.

    With few documents for each program, the query tokens are loaded often. With many, there are few programs, and at
    the end a part of the GPU has no program to run.

    Parameters
    ----------
    most
        Largest number of documents for each program.
    at_once
        Number of programs that the GPU runs at once.
    tiles
        Number of tiles of query tokens. Each program has one tile.
    nd
        Number of all documents.
    """

    def time(run: int) -> float:
        return -(-(-(-nd // run) * tiles) // at_once) * (run + _BEGINNING)

    return min(range(1, most + 1), key=time)


def power_of_two(n: int, least: int) -> int:
    return max(least, 1 << max(0, n - 1).bit_length())


def k_split(dim: int, most: int) -> tuple[int, int]:
    """Cut ``dim`` dimensions into two powers of two, each at most ``most``: 96 = 64 + 32, 384 = 256 + 128.

    The second power is 0 if the first is enough, and also if two are not enough. In the latter case the kernel reads
    the dimensions in pieces of the first power.
    """
    if dim <= 16:
        return 16, 0
    first = min(most, power_of_two(dim // 2 + 1, 16))
    rest = dim - first
    second = power_of_two(rest, 16) if rest else 0
    if second >= first and 2 * first <= most:
        return 2 * first, 0
    if second <= most:
        return first, second
    return next((k for k in (64, 32) if k <= most and dim % k == 0), min(most, 64)), 0


def fit(config: Config, dim: int, q_bytes: int, d_bytes: int, shared: int) -> tuple[Config, int, int]:
    """Make the tiles fit into shared memory: with fewer stages, then smaller tiles, and at last pieces of dimensions.

    If a processor then has room for few programs, each program gets more warps, so that at least four warps run.

    Returns the configuration and the numbers of dimensions K1 and K2 of a tile. If K1 + K2 is less than ``dim``, the
    kernel reads the dimensions in pieces of K1.
    """
    room = shared - 4096  # the rest is for reductions and for loads of indices
    wanted = config._replace(block_q=min(config.block_q, 128))  # with more, a thread cannot hold the sums of two chains
    k1, k2 = k_split(dim, config.piece)
    while dim <= k1 + k2 and tile_bytes(config, k1 + k2, q_bytes, d_bytes) > room:
        if config.stages > 2:
            config = config._replace(stages=config.stages - 1)
        elif config.block_d > 64:
            config = config._replace(block_d=config.block_d // 2)
        elif config.block_q > 128:
            config = config._replace(block_q=config.block_q // 2, stages=wanted.stages)
        else:
            k1, k2 = k_split(dim, k1 // 2)
    if dim > k1 + k2:
        config = wanted
        while _piece_bytes(config, k1, q_bytes) > room and config.block_q > 16:
            if config.stages > 2:
                config = config._replace(stages=config.stages - 1)
            elif k1 > 32:
                k1 //= 2
            else:
                config = config._replace(block_q=config.block_q // 2, block_d=min(config.block_d, 64))
        size = _piece_bytes(config, k1, q_bytes)
    else:
        size = tile_bytes(config, k1 + k2, q_bytes, d_bytes)
        if k1 + k2 > 128:  # one such program fills a processor, so it may use all registers
            config = config._replace(registers=None)
    resident = max(1, min(config.resident, shared // size))
    while config.resident > resident and resident * config.warps < 4:
        config = config._replace(warps=2 * config.warps)
    return config._replace(resident=resident), k1, k2


def tile_bytes(config: Config, k: int, q_bytes: int, d_bytes: int) -> int:
    """Return an upper bound of the bytes of shared memory that a compiled program uses.

    float32 queries are kept in two parts. Documents with fewer bytes per element than the queries are kept twice: as
    they are, and converted to the dtype of the queries.
    """
    q = config.block_q * k * q_bytes * (2 if q_bytes == 4 else 1)
    return q + config.block_d * k * (config.stages * d_bytes + (q_bytes if d_bytes < q_bytes else 0))


def _piece_bytes(config: Config, k: int, q_bytes: int) -> int:
    """Return the same bound for a program that reads the dimensions of both sides in pieces of ``k``."""
    return config.stages * (config.block_q + config.block_d) * k * q_bytes
