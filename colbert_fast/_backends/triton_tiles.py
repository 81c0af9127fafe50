"""Which tiles the Triton kernels work with: a table of what was measured, and what of it fits a dimension and a GPU."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

TUNING = Path(__file__).with_name("triton_tuning.json")
# How long a program takes to begin and to end, compared with scoring one document. About right for an H100.
_BEGINNING = 0.3


class Config(NamedTuple):
    """How a kernel's work is cut for one kind of GPU and of work; a line of triton_tuning.json."""

    block_q: int  # query tokens of a tile, at most
    block_d: int  # document tokens of a tile
    warps: int
    stages: int  # tiles on their way from memory
    swap: bool = False  # rows of the products are document tokens, as they always are for few query tokens
    run: int = 1  # documents that a program takes in turn, at most; up to 31
    registers: int | None = None  # of a thread, at most
    piece: int = 512  # dimensions multiplied at once, at most
    resident: int = 2  # programs that a processor holds at once


@functools.cache
def table() -> dict[str, Config]:
    """Read the tuning table: "arch/kind/work" to a configuration."""
    rows = json.loads(TUNING.read_text(encoding="utf-8"))["configs"]
    return {key: Config(**row) for key, row in rows.items()}


def config_for(arch: str, kind: str, work: str) -> Config:
    """Return the line of the package's table for a kind of dtypes and of work."""
    return config_in(table(), arch, kind, work)


def config_in(lines: dict[str, Config], arch: str, kind: str, work: str) -> Config:
    """Return the line of this architecture, or of the newest older one that has any."""
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
    """Return how many documents a program takes in turn, for the least time of all.

    With few documents in turn queries are loaded often; with many, the last programs to start leave the GPU half empty.

    Parameters
    ----------
    most
        Documents.
    at_once
        Programs that the GPU runs at once.
    tiles
        Of query tokens; a program has one.
    nd
        Documents there are.
    """

    def time(run: int) -> float:
        return -(-(-(-nd // run) * tiles) // at_once) * (run + _BEGINNING)

    return min(range(1, most + 1), key=time)


def power_of_two(n: int, least: int) -> int:
    return max(least, 1 << max(0, n - 1).bit_length())


def k_split(dim: int, most: int) -> tuple[int, int]:
    """Cut dimensions into two powers of two of at most ``most``: 96 = 64 + 32, 384 = 256 + 128.

    Where two are not enough, the kernel repeats the first.
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
    """Make the tiles fit into shared memory: fewer stages, smaller tiles, at last pieces of the dimensions.

    Where a processor then has room for few programs, these get more warps, so that at least four warps are at work.

    Returns the configuration and the dimensions K1 and K2 of a tile; in pieces if they are fewer than ``dim``.
    """
    room = shared - 4096  # for reductions and index loads
    wanted = config._replace(block_q=min(config.block_q, 128))  # of more, a thread cannot hold the sums of two chains
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
        if k1 + k2 > 128:  # one such program fills a processor, and may have its registers
            config = config._replace(registers=None)
    resident = max(1, min(config.resident, shared // size))
    while config.resident > resident and resident * config.warps < 4:
        config = config._replace(warps=2 * config.warps)
    return config._replace(resident=resident), k1, k2


def tile_bytes(config: Config, k: int, q_bytes: int, d_bytes: int) -> int:
    """Bound the shared memory of a program, as compiled.

    float32 queries are kept in two parts, and documents of fewer bytes also as what they are converted to.
    """
    q = config.block_q * k * q_bytes * (2 if q_bytes == 4 else 1)
    return q + config.block_d * k * (config.stages * d_bytes + (q_bytes if d_bytes < q_bytes else 0))


def _piece_bytes(config: Config, k: int, q_bytes: int) -> int:
    """Bound the shared memory of a program that reads the dimensions of both sides in pieces."""
    return config.stages * (config.block_q + config.block_d) * k * q_bytes
