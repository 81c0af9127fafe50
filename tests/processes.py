"""Scripts in processes of their own, for tests of threads, forks and signals."""

from __future__ import annotations

import os
import subprocess
import sys

# `score` is a call whose work all threads share, on a backend. `tasks` are the threads of the whole process.
PRELUDE = r"""
import os, signal, sys, threading, time
import torch
import colbert_fast as cf
from colbert_fast._backends import cpu

# A shell starts background processes with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
backend = sys.argv[1]
torch.manual_seed(0)
queries, documents = torch.randn(16, 32, 64), torch.randn(40, 30, 64)

def score(a=queries, b=documents):
    return cf.maxsim(a, b, backend=backend)

def tasks():
    return set(os.listdir("/proc/self/task"))

def wait_for(child):
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, status

def in_child(expected):
    # The alarm ends a child that hangs: it would outlive the test.
    signal.alarm(3600)
    code = 1
    try:
        assert cpu._C.pool_size() == 0
        assert torch.equal(score(), expected)
        assert cpu._C.pool_size() == 2
        code = 0
    finally:
        os._exit(code)
"""


def python(script: str, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh process; one that hangs fails the test.

    Since Python 3.12 a fork beside other threads warns. That fork is what these tests are about.
    """
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", PRELUDE + script, *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
        env={**os.environ, "COLBERT_FAST_NUM_THREADS": "3", **(environment or {})},
    )


def assert_clean(done: subprocess.CompletedProcess[str], *, code: int = 0) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr == ""
