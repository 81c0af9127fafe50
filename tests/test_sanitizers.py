"""The C++ programs of tests/cpp under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from kernels import CHECKS, ROOT, SOURCES, built, compiled, linked, output_of, sanitized

MODEL = ROOT / "tests/cpp/amx_model"


def test_addresses(tmp_path: Path) -> None:
    """Every tier that can run; on Linux and x86-64 the amx tier can, because a model takes the place of the tiles."""
    flags, sources, programs = sanitized("address,undefined", tmp_path), set(SOURCES), ["kernels"]
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        flags.append(f'-DCF_AMX_MODEL="{MODEL / "amx_tiles.h"}"')
        sources -= {ROOT / "csrc/host/amx_permission.cpp"}
        sources |= {MODEL / "model.cpp", ROOT / "tests/cpp/amx_tier.cpp"}
        programs.append("amx_tier")
    # What checks the kernels is not what is examined. Its memory is on the heap, where the sanitizer guards it anyway.
    objects = compiled(CHECKS, ["-O2"], tmp_path) + compiled(sorted(sources - set(CHECKS)), flags, tmp_path)
    for name in programs:
        others = [o for o in objects if o.stem == name or o.stem not in programs]
        said = output_of(linked(others, flags, tmp_path / name))
        if "cannot run: " in said:
            pytest.skip(f"the kernels have passed, and the amx tier is AVX-512 for the rest: {said}")
        assert " checks passed" in said
        assert len(programs) == 1 or "amx" in said.splitlines()[-1] or "kernels: no amx" in said


def test_threads(tmp_path: Path) -> None:
    program = built(SOURCES, sanitized("thread", tmp_path), tmp_path)
    assert " checks passed: " in output_of(program, "threads")
