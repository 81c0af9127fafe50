"""What this machine is, and the limits of its hardware."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import colbert_fast as cf
from colbert_fast._backends import cpu
from colbert_fast.bench.workloads import Inputs


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


def flush_caches() -> None:
    """Read so much else that no document stays in a cache."""
    _other_memory().sum()


@functools.cache
def _other_memory() -> torch.Tensor:
    return torch.ones(4 * (last_level_cache() or 2**26) // 4)


def rated_peaks(backend: str, dtype: str | None) -> tuple[str, str, str]:
    """Names of peaks. The highest of them bounds a CPU backend, for it screens documents of any dtype in int8."""
    return backend, f"{backend} {dtype}", f"{backend} int8"


class Limits:
    """The least time in which this machine can read the documents of a workload, and multiply them.

    Each is the best so far of many short measurements beside the rounds of the contenders: others that share the
    machine slow down one moment and not the next, and a long measurement more surely than a short round.
    """

    # Seconds of multiply-adds for one number, and how often each is measured at a time.
    SECONDS = 0.002
    REPEATS = 15

    def __init__(self, inputs: Inputs, threads: int) -> None:
        self._inputs = inputs
        self._threads = threads
        workload = inputs.workload
        self._dtype = "int8" if workload.quantized else str(workload.dtype).removeprefix("torch.")
        self._tiers = [b.name for b in cf.backends() if b.name.startswith("cpu:") and b.unsupported is None]
        self.read_bytes_per_s = 0.0
        """Of the documents themselves, from the cache or the memory where the contenders find them."""
        self.flops_per_s: dict[str, float] = {}
        """By tier, and with a space and a dtype behind it of the narrower products that can score the workload."""

    def measure(self, contender: str) -> None:
        """Measure what bounds a tier of ours; of other contenders nothing, which the fastest tier bounds."""
        if contender not in self._tiers:
            return
        tier = contender.removeprefix("cpu:")
        tokens = self._inputs.quantized.tokens if self._inputs.workload.quantized else self._inputs.rows
        documents = tokens.flatten().view(torch.float32)
        # The first pass brings the documents into the cache, if they fit.
        for _ in range(4):
            if self._inputs.workload.flush:
                flush_caches()
            rate = cpu.measure_read(tier, self._threads, documents)
            self.read_bytes_per_s = max(self.read_bytes_per_s, rate)
        for dtype in cpu.products(tier):
            if dtype not in ("float32", "int8", self._dtype):
                continue
            key = contender if dtype == "float32" else f"{contender} {dtype}"
            rates = [cpu.measure_flops(tier, dtype, self._threads, self.SECONDS) for _ in range(self.REPEATS)]
            self.flops_per_s[key] = max(self.flops_per_s.get(key, 0.0), *rates)

    def bound(self, contender: str) -> tuple[str, float] | None:
        """Return "reading" or "computing", and the seconds that it takes at least; None before it was measured.

        A tier of ours is bounded by its own instructions, every other contender by the fastest of this machine.
        """
        tiers = [contender] if contender in self._tiers else self._tiers
        names = [name for tier in tiers for name in rated_peaks(tier, self._dtype)]
        peak = max((self.flops_per_s.get(name, 0.0) for name in names), default=0.0)
        if not peak:
            return None
        reading = ("reading", self._inputs.bytes / self.read_bytes_per_s)
        return max(reading, ("computing", self._inputs.flops / peak), key=lambda bound: bound[1])


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
