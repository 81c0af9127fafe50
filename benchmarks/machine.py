"""This machine: its threads, name, caches and noise, the commit on it, and the workloads meant for its GPU."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colbert_fast.bench import Workload

ROOT = Path(__file__).parents[1]
# Other processes that want a core, above which timings are not to be believed.
MAX_LOAD = 0.5
# The share of noisy results that says the same.
MAX_NOISY = 1 / 3


def limit_threads() -> int:
    """Give every library the same number of threads, through the variables they read when they are imported."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS") or available)
    for name in ("OMP", "MKL", "OPENBLAS", "RAYON", "COLBERT_FAST"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)
    return threads


def gpu_workloads() -> tuple[Workload, ...]:
    """The workloads for CUDA devices. A function, because threads are limited before torch is imported."""
    import torch

    from colbert_fast.bench import Workload

    def gpu(name: str, nq: int, nd: int, lq: int, ld: int, source: str, **also: Any) -> Workload:
        return Workload(f"gpu-{name}", nq, lq, nd, ld, torch.bfloat16, source, device="cuda", **also)

    peers = "late-interaction-kernels' and flash-maxsim's own benchmarks"
    # A run that is out of time has done the first ones.
    return (
        gpu("rerank-1k-bfloat16", 1, 1000, 32, 300, f"ColBERT reranking; {peers}"),
        gpu("rerank-10k-bfloat16", 1, 10000, 32, 300, f"ColBERT reranking, bound by memory; {peers}"),
        gpu("inbatch-128-bfloat16", 128, 128, 32, 300, f"in-batch negatives, scores only; {peers}"),
        gpu("pages-bfloat16", 1, 1000, 1024, 1024, f"ColPali: page against pages; {peers}"),
        gpu("ragged-10k-bfloat16", 1, 10000, 32, 300, "passages, packed once", layout="packed", lognormal=True),
        gpu("dense-10k-bfloat16", 1, 10000, 32, 73, "as many tokens as the ragged passages, equally long"),
        gpu("train-256-bfloat16", 256, 256, 32, 300, f"in-batch negatives; {peers}", backward=True),
        gpu("inbatch-32-bfloat16", 32, 32, 32, 300, f"in-batch negatives of a small batch; {peers}"),
        gpu("rerank-10k-int8", 1, 10000, 32, 300, "ColBERT reranking, compressed", quantized=True),
    )


def describe(threads: int) -> dict[str, Any]:
    """Return what the results say of the machine."""
    import torch

    from colbert_fast import bench

    cpu = bench.cpu_name()
    cores = os.cpu_count() or 1
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "name": _file_name(f"{cpu} {cores}c {gpu or ''}"),
        "cpu": cpu,
        "cores": cores,
        "threads": threads,
        "last_level_cache": bench.last_level_cache(),
        "gpu": gpu,
        "noisy": is_loaded(),
    }


def _file_name(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", words.lower())).strip("-")


def describe_gpu(threads: int) -> dict[str, Any]:
    """Return what the results say of a machine whose GPU is measured, which gives it its name."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        **describe(threads),
        "name": _file_name(properties.name),
        # The GPU does not wait for the processor's cores.
        "noisy": False,
        "cuda": {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_cache": properties.L2_cache_size,
            "memory": properties.total_memory,
            "runtime": torch.version.cuda,
            "state": gpu_state(),
        },
    }


def gpu_state() -> dict[str, str]:
    """The driver, clocks, power and temperature, as far as nvidia-smi says."""
    names = ("driver_version", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, (value.strip() for value in done.stdout.split(",")), strict=False))


def is_loaded() -> bool:
    """Whether other processes wanted a core during the last minute. Our own share is the CPU time of this process."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] - time.process_time() / 60 > MAX_LOAD


def commit() -> tuple[str | None, bool | None]:
    """Return the commit of the working tree and whether it differs from it, or None where git does not say."""
    found = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain")
    return (found or None, None if changed is None else bool(changed))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def version(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_cold(workload: Workload, size: int) -> bool:
    """Whether documents of so many bytes come from memory in every round."""
    from colbert_fast import bench

    # On a GPU every round begins with a flush.
    return workload.flush or workload.device == "cuda" or size > 2 * (bench.last_level_cache() or 0)
