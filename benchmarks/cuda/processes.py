"""Processes beside this one, which end in time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any

from benchmarks import machine

# Processes that compile at the same time. Each holds some gigabytes of inputs.
MOST = 12


def start(*arguments: str, **how: Any) -> subprocess.Popen[bytes]:
    """Start Python with these arguments; ``how`` is what ``subprocess.Popen`` takes."""
    return subprocess.Popen([sys.executable, *arguments], start_new_session=True, **{"cwd": machine.ROOT, **how})


def start_shares(*arguments: str, environment: dict[str, str] | None = None) -> list[subprocess.Popen[bytes]]:
    """Start silent processes on almost all cores. The last arguments of each are its number and their count."""
    count = max(1, min(MOST, (os.cpu_count() or 1) - 2))
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    return [start(*arguments, str(share), str(count), **silent) for share in range(count)]


def wait(process: subprocess.Popen[bytes], seconds: float | None = None, patience: float = 0.0) -> int | None:
    """Wait for a process and return its exit status, or None if it was stopped.

    A process that takes longer than ``seconds``, and one that is left over when this function is interrupted, is
    stopped together with everything that it has started. It gets ``patience`` seconds to end by itself.
    """
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        for number, limit in ((signal.SIGINT, patience), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                if process.poll() is None:
                    os.killpg(process.pid, number)
                    process.wait(limit)
