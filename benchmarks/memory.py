"""Peak memory of one contender on one workload, in a process of its own.

    python -m benchmarks.memory WORKLOAD CONTENDER

prints the bytes that the scoring call held at its worst, beyond the inputs as the contender wants them laid out.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import machine


def measured_apart(workload: str, contender: str) -> int | None:
    """Run this module in a fresh process; None where the system does not report peaks, or the contender failed."""
    command = [sys.executable, "-m", "benchmarks.memory", workload, contender]
    done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 and done.stdout.strip() else None


def peak_memory(workload: str, contender: str) -> int:
    """Return the bytes by which one call raises the peak of this process.

    Raises
    ------
    ValueError
        A name is unknown, or the contender cannot run.
    NotImplementedError
        The system does not report a process's peak memory.
    """
    from benchmarks.contenders import CONTENDERS
    from colbert_fast import bench

    workloads = {found.name: found for found in bench.WORKLOADS}
    contenders = {found.name: found for found in CONTENDERS}
    for name, known in ((workload, workloads), (contender, contenders)):
        if name not in known:
            msg = f"must be one of {', '.join(known)}; got {name!r}"
            raise ValueError(msg)
    chosen, shape = contenders[contender], workloads[workload]
    if reason := chosen.why_not(shape):
        msg = f"{contender} cannot run {workload}: {reason}"
        raise ValueError(msg)
    # What libraries allocate once, thread pools above all, is not the call's.
    chosen.prepare(replace(shape, nd=6).inputs()).score()
    inputs = shape.inputs()
    prepared = chosen.prepare(inputs)
    _forget_peak()
    before = _peak()
    prepared.score()
    return _peak() - before


def _forget_peak() -> None:
    """Give freed memory back, and let the peak be what is in use now, where the system can do it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        msg = "the peak memory of a process is known on Linux and macOS; this system reports none"
        raise NotImplementedError(msg) from None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    machine.limit_threads()
    print(peak_memory(*sys.argv[1:]))
