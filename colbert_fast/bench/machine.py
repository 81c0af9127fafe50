"""What this machine is, and the limits of its hardware."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

import colbert_fast as cf
from colbert_fast._backends import cpu


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def last_level_cache() -> int | None:
    """Bytes of the largest cache of the first core, or None where the system does not say."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes, default=None)


def limits(threads: tuple[int, ...], seconds: float = 0.1) -> dict[str, Any]:
    """Measure read bandwidth and the rate of multiply-adds, the best of five each.

    Returns
    -------
    dict
        ``read_bytes_per_s`` by number of threads, read with the prefetch of the kernels from memory several times
        the size of the caches; ``flops_per_s`` by backend and number of threads.
    """
    tiers = [b.name for b in cf.backends() if b.name.startswith("cpu:") and b.unsupported is None]
    if not tiers:
        return {"read_bytes_per_s": {}, "flops_per_s": {}}
    memory = torch.ones(max(2**25, 2 * (last_level_cache() or 0) // 4 * 4))
    best = tiers[0].removeprefix("cpu:")

    def read(n: int) -> float:
        return max(cpu.measure_read(best, n, memory) for _ in range(5))

    def flops(tier: str, n: int) -> float:
        return max(cpu.measure_flops(tier.removeprefix("cpu:"), n, seconds) for _ in range(5))

    return {
        "read_bytes_per_s": {str(n): read(n) for n in threads},
        "flops_per_s": {tier: {str(n): flops(tier, n) for n in threads} for tier in tiers},
    }
