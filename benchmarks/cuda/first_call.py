"""First calls of a process: they compile, tune and load.

    python -m benchmarks.cuda.first_call WORKLOAD CONTENDER    prints the seconds of one first call
    python -m benchmarks.cuda.first_call SHARE OF              makes one of OF shares of all first calls that compile

The compilers keep the code on disk. The measurement, which is one process, then finds what the shares have compiled.
Importing the libraries and drawing the inputs come before the call.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import machine

if TYPE_CHECKING:
    from benchmarks.contender import Contender
    from colbert_fast.bench import Workload

MODULE = ("-m", "benchmarks.cuda.first_call")
LIMIT = 120.0
# Of torch's formulations only this one is compiled ahead: compiling the others takes too long.
COMPILED_TORCH = "torch einsum, compiled"


def caches(folder: Path) -> dict[str, str]:
    """Environment variables that let Triton and torch.compile keep everything in ``folder``."""
    return {name: str(folder / name.lower()) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}


def measured_apart(workload: str, contender: str, cache: Path) -> float:
    """Time one first call in a new process whose compilers use ``cache``. RuntimeError says why the process failed."""
    command = [sys.executable, *MODULE, workload, contender]
    environment = {**os.environ, **caches(cache)}
    try:
        done = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        msg = f"took longer than {LIMIT:.0f} s"
        raise RuntimeError(msg) from None
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    return float(done.stdout.split()[-1])


def _seconds(workload: Workload, contender: Contender) -> float:
    import torch

    torch.cuda.empty_cache()
    prepared = contender.prepare(workload.inputs())
    torch.cuda.synchronize()
    start = time.perf_counter()
    prepared.score()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main(first: str, second: str) -> None:
    """Run the command."""
    from benchmarks.cuda.contenders import CONTENDERS

    with contextlib.suppress(ImportError):
        importlib.import_module("triton")
    pairs = [(workload, contender) for contender in CONTENDERS for workload in machine.gpu_workloads()]
    if not first.isdigit():
        (pair,) = [(w, c) for w, c in pairs if (w.name, c.name) == (first, second)]
        print(_seconds(*pair))
        return
    compiling = [
        (w, c)
        for w, c in pairs
        if c.name == COMPILED_TORCH or "torch" not in (c.kind, c.backend)
        if c.why_not(w) is None
    ]
    os.nice(10)  # the tests of the device run beside this
    for pair in compiling[int(first) :: int(second)]:
        # A contender that fails here fails again, and says why, when it is measured.
        with contextlib.suppress(Exception):
            _seconds(*pair)


if __name__ == "__main__":
    main(*sys.argv[1:])
