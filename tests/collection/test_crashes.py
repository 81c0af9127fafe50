"""Processes that are killed, and processes beside each other. `make test-crashes` does more of the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

HERE = Path(__file__).parent


def run(script: str, *arguments: int) -> str:
    # In memory, where there is such a folder: what a kill leaves does not depend on the disk.
    place = {"TMPDIR": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {}
    command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    done = subprocess.run(
        [*command, str(HERE / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
        env={**os.environ, **place},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_killed_process_leaves_every_change_whole() -> None:
    lines = run("crashes.py", 6, 5, 1).splitlines()
    assert len(lines) == 7
    assert int(lines[0].removeprefix("steps ")) > 20


def test_readers_beside_writers() -> None:
    assert "documents" in run("races.py", 3, 2, 12)
