"""Compile what is to be measured, in several processes at once.

    python -m benchmarks.cuda.ahead SHARE OF

calls every contender whose kernels are compiled on every workload, one of ``OF`` shares of these calls. Compilers keep
the code on disk, so that the measurement, which is one process, need not wait for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import machine

# A process holds some gigabytes of inputs.
MOST = 12
# Those whose kernels Triton compiles: all but torch's own, and of these the one that torch.compile compiles by default.
COMPILED_TORCH = "torch einsum, compiled"


def start(environment: dict[str, str]) -> list[subprocess.Popen[bytes]]:
    """Start the processes."""
    count = max(1, min(MOST, (os.cpu_count() or 1) - 2))
    command = [sys.executable, "-m", "benchmarks.cuda.ahead"]
    nowhere = subprocess.DEVNULL
    return [
        subprocess.Popen(
            [*command, str(share), str(count)],
            cwd=machine.ROOT,
            env=environment,
            stdout=nowhere,
            stderr=nowhere,
            start_new_session=True,
        )
        for share in range(count)
    ]


def wait(processes: list[subprocess.Popen[bytes]], end: float) -> int:
    """Wait for processes until ``end`` of the monotonic clock, and kill who is left; return how many came through."""
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        if process.poll() is None:
            # With what torch.compile has started.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return sum(process.returncode == 0 for process in processes)


def forget_tuning(folder: Path) -> None:
    """Take away what contenders found to be the fastest while others were running; they measure again, alone."""
    for found in folder.rglob("*.autotune.json"):
        found.unlink()


def main() -> int:
    """Run the command; returns its exit status."""
    share, of = int(sys.argv[1]), int(sys.argv[2])
    import torch

    from benchmarks.cuda.contenders import CONTENDERS

    pairs = [
        (contender, workload)
        for contender in CONTENDERS
        for workload in machine.gpu_workloads()
        if (contender.kind != "torch" and contender.backend != "torch") or contender.name == COMPILED_TORCH
        if contender.why_not(workload) is None
    ]
    for contender, workload in pairs[share::of]:
        # Who fails will fail again, and say why, when it is measured.
        with contextlib.suppress(Exception):
            prepared = contender.prepare(workload.inputs())
            prepared.score()
            torch.cuda.synchronize()
            del prepared
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
