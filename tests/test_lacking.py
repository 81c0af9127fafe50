"""What is not tested here, and why: one skip for each missing thing. The tests that need it are left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from backends import REQUIRED
from lacking import LACKING, here

import colbert_fast as cf


@pytest.mark.parametrize("name", LACKING)
def test_what_is_lacking(name: str) -> None:
    (pytest.fail if name in REQUIRED else pytest.skip)(f"{name} is not tested: {LACKING[name]}")


def collected(required: str) -> list[str]:
    options = ["--collect-only", "-q", "-p", "no:cacheprovider", "tests/test_parts.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "COLBERT_FAST_REQUIRE": required},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_what_is_required_is_not_left_out() -> None:
    lacking = [name for name in LACKING if name.startswith("cpu:")]
    for name in lacking[:1]:
        assert not [line for line in collected("") if name in line]
        assert [line for line in collected(name) if name in line]


def test_the_others_are_not_left_out() -> None:
    for backend in cf.backends():
        assert (backend.name in here([backend.name])) == (backend.unsupported is None or backend.name in REQUIRED)
