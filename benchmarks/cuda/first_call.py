"""The first call of a process: compiling, tuning, loading.

    python -m benchmarks.cuda.first_call WORKLOAD CONTENDER

prints its seconds. Importing the libraries and drawing the inputs come before.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import machine

LIMIT = 120.0
# Where Triton and torch.compile keep what they have compiled.
CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def caches(folder: Path) -> dict[str, str]:
    """Environment variables that let the compilers keep everything in ``folder``."""
    return {name: str(folder / name.lower()) for name in CACHES}


def measured_apart(workload: str, contender: str, cache: Path) -> float:
    """Run this module in a fresh process whose compilers keep their results in ``cache``.

    Raises
    ------
    RuntimeError
        The process failed; the message is the last line of what it said.
    """
    environment = {**os.environ, **caches(cache)}
    command = [sys.executable, "-m", "benchmarks.cuda.first_call", workload, contender]
    try:
        done = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        msg = f"took longer than {LIMIT:.0f} s"
        raise RuntimeError(msg) from None
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    return float(done.stdout.split()[-1])


def main() -> int:
    """Run the command; returns its exit status."""
    import torch

    from benchmarks.cuda.contenders import CONTENDERS

    with contextlib.suppress(ImportError):
        importlib.import_module("triton")

    workload = next(found for found in machine.gpu_workloads() if found.name == sys.argv[1])
    contender = next(found for found in CONTENDERS if found.name == sys.argv[2])
    prepared = contender.prepare(workload.inputs())
    torch.cuda.synchronize()
    start = time.perf_counter()
    prepared.score()
    torch.cuda.synchronize()
    print(time.perf_counter() - start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
