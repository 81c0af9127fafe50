"""The limits of this machine: how fast memory is read, and how fast each kind of instruction multiplies.

The loops for CPUs stand in ``peaks.cpp``, which is compiled here, at first use, once for each backend.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import colbert_fast as cf
from benchmarks.machine import ROOT
from colbert_fast import bench

SOURCE = Path(__file__).with_name("peaks.cpp")
COMPILER = shlex.split(os.environ.get("CXX") or "c++")
DTYPES = ("float32", "bfloat16", "int8")
_AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma"
# What the compiler needs to hear for the instructions of each backend.
FLAGS = {
    "cpu:amx": f"{_AVX512} -DPEAKS_AMX",
    "cpu:avx512_bf16": f"{_AVX512} -mavx512vnni -mavx512bf16",
    "cpu:avx512_vnni": f"{_AVX512} -mavx512vnni",
    "cpu:avx512": _AVX512,
    "cpu:avx_vnni": "-mavx2 -mfma -mavxvnni",
    "cpu:avx2": "-mavx2 -mfma",
    "cpu:neon_i8mm": "-march=armv8.2-a+dotprod+bf16+i8mm",
    "cpu:neon_dotprod": "-march=armv8.2-a+dotprod",
    "cpu:neon": "",
    "cpu:portable": "-DPEAKS_PORTABLE",
}


@functools.cache
def library(backend: str) -> ctypes.CDLL:
    """Return ``peaks.cpp``, compiled for a backend.

    Raises
    ------
    subprocess.CalledProcessError
        The compiler failed.
    """
    command = [*COMPILER, "-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", *FLAGS[backend].split(), str(SOURCE)]
    version = hashlib.sha256(SOURCE.read_bytes() + shlex.join(command).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "peaks"
    path = folder / f"{backend.removeprefix('cpu:')}-{version}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            # Renamed when it is complete, for another process may look for it at the same time.
            made = Path(scratch) / path.name
            subprocess.run([*command, "-o", str(made)], check=True, capture_output=True)
            made.replace(path)
    found = ctypes.CDLL(str(path))
    found.peak_flops.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_double)
    found.peak_read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
    found.peak_flops.restype = found.peak_read.restype = ctypes.c_double
    return found


def cpu_limits(threads: tuple[int, ...], seconds: float = 0.1) -> dict[str, Any]:
    """Measure the read bandwidth and the rates of multiply-adds, the best of five each.

    Returns
    -------
    dict
        ``read_bytes_per_s`` by number of threads, read with the prefetch of the kernels from memory several times
        the size of the caches; ``flops_per_s`` by backend and number of threads, for float32. The name of a narrower
        type follows the name of the backend and a space. Where there is no compiler, ``skipped`` says so.
    """
    found: dict[str, Any] = {"read_bytes_per_s": {}, "flops_per_s": {}}
    backends = [b.name for b in cf.backends() if b.name in FLAGS and b.unsupported is None]
    if backends and shutil.which(COMPILER[0]) is None:
        return {**found, "skipped": f"the C++ compiler {COMPILER[0]} is not installed"}
    if not backends:
        return found
    for backend in backends:
        for dtype in DTYPES:
            measure = partial(library(backend).peak_flops, dtype.encode())
            rates = {str(n): max(measure(n, seconds) for _ in range(5)) for n in threads}
            if any(rates.values()):
                found["flops_per_s"][backend if dtype == "float32" else f"{backend} {dtype}"] = rates
    memory = torch.ones(max(2**25, 2 * (bench.last_level_cache() or 0) // 4 * 4))
    for n in threads:
        read = partial(library(backends[0]).peak_read, n, memory.data_ptr(), memory.nbytes)
        found["read_bytes_per_s"][str(n)] = max(read() for _ in range(5))
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
