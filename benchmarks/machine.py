"""This machine: its threads, name, caches and noise, the commit on it, and the workloads meant for its GPU."""

from __future__ import annotations

import functools
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
        return Workload(f"gpu-{name}-bfloat16", nq, lq, nd, ld, torch.bfloat16, source, device="cuda", **also)

    return (
        gpu("rerank-1k", 1, 1000, 32, 300, "ColBERT reranking"),
        gpu("rerank-10k", 1, 10000, 32, 300, "ColBERT reranking, bound by memory"),
        gpu("pages", 1, 1000, 1024, 1024, "ColPali: page against pages"),
        gpu("inbatch-128", 128, 128, 32, 300, "in-batch negatives, scores only"),
        gpu("inbatch-32", 32, 32, 32, 300, "in-batch negatives of a small batch, scores only"),
        gpu("ragged-10k", 1, 10000, 32, 300, "passages, packed once", layout="packed", lognormal=True),
        gpu("train-256", 256, 256, 32, 300, "in-batch negatives", backward=True),
    )


def describe(threads: int) -> dict[str, Any]:
    """Return what the results say of the machine."""
    import torch

    from colbert_fast import bench

    cpu = bench.cpu_name()
    cores = os.cpu_count() or 1
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    words = f"{cpu} {cores}c {gpu or ''}".lower()
    return {
        "name": re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", words)).strip("-"),
        "cpu": cpu,
        "cores": cores,
        "threads": threads,
        "last_level_cache": bench.last_level_cache(),
        "gpu": gpu,
        "noisy": is_loaded(),
    }


def is_loaded() -> bool:
    """Whether others wanted a core during the last minute; our own share is the CPU time of this process."""
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
    """Of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_cold(workload: Workload, size: int) -> bool:
    """Whether documents of so many bytes come from memory in every round."""
    from colbert_fast import bench

    return workload.flush or size > 2 * (bench.last_level_cache() or 0)


def flush_caches() -> None:
    """Read so much else that no document stays in a cache."""
    _other_memory().sum()


@functools.cache
def _other_memory() -> Any:
    import torch

    from colbert_fast import bench

    return torch.ones(4 * (bench.last_level_cache() or 2**26) // 4)
