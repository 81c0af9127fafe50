"""What this machine is, and the limits of its hardware."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
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
        the size of the caches; ``flops_per_s`` by backend and number of threads: of float32 and, with a space and
        the dtype behind the backend's name, of the narrower products that it has. A CUDA device adds the key
        ``"cuda"``: see :func:`cuda_limits`.
    """
    found = _cpu_limits(threads, seconds)
    if torch.cuda.is_available():
        on_device = cuda_limits()
        for name, entries in found.items():
            entries.update(on_device[name])
    return found


def cuda_limits(size: int = 8192, copied: int = 2**31, repetitions: int = 10) -> dict[str, Any]:
    """Measure the current CUDA device, the best of ``repetitions`` each.

    Parameters
    ----------
    size
        Rows and columns of the matrices that are multiplied.
    copied
        Bytes of the buffer that is copied.

    Returns
    -------
    dict
        ``read_bytes_per_s["cuda"]``, bytes read and written by a device-to-device copy; ``flops_per_s`` by element
        type, each ``{"cuda": rate}`` of a square matrix product of random numbers. ``tf32`` is float32 with its
        products rounded to 10 bits of mantissa.
    """

    def best(call: Callable[[], Any]) -> float:
        call()
        seconds = []
        for _ in range(repetitions):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            seconds.append(float(start.elapsed_time(end)) / 1e3)
        return min(seconds)

    source = torch.randn(copied // 4, device="cuda")
    bandwidth = 2 * copied / best(partial(torch.empty_like(source).copy_, source))
    rates = {}
    before = torch.get_float32_matmul_precision()
    try:
        for name, dtype, precision in (
            ("bfloat16", torch.bfloat16, before),
            ("float16", torch.float16, before),
            ("tf32", torch.float32, "high"),
            ("float32", torch.float32, "highest"),
        ):
            torch.set_float32_matmul_precision(precision)
            a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
            product = torch.empty_like(a)
            rates[name] = {"cuda": 2.0 * size**3 / best(partial(torch.mm, a, b, out=product))}
    finally:
        torch.set_float32_matmul_precision(before)
    return {"read_bytes_per_s": {"cuda": bandwidth}, "flops_per_s": rates}


def _cpu_limits(threads: tuple[int, ...], seconds: float) -> dict[str, Any]:
    tiers = [b.name for b in cf.backends() if b.name.startswith("cpu:") and b.unsupported is None]
    if not tiers:
        return {"read_bytes_per_s": {}, "flops_per_s": {}}
    memory = torch.ones(max(2**25, 2 * (last_level_cache() or 0) // 4 * 4))
    best = tiers[0].removeprefix("cpu:")

    def read(n: int) -> float:
        return max(cpu.measure_read(best, n, memory) for _ in range(5))

    def flops(tier: str, dtype: str, n: int) -> float:
        return max(cpu.measure_flops(tier, dtype, n, seconds) for _ in range(5))

    rates = {}
    for tier in tiers:
        name = tier.removeprefix("cpu:")
        for dtype in cpu.products(name):
            key = tier if dtype == "float32" else f"{tier} {dtype}"
            rates[key] = {str(n): flops(name, dtype, n) for n in threads}
    return {"read_bytes_per_s": {str(n): read(n) for n in threads}, "flops_per_s": rates}
