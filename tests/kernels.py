"""Builds tests/cpp/kernels.cpp, the program that checks the C++ tiers without Python."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [ROOT / "tests/cpp/kernels.cpp", *sorted(set(ROOT.glob("csrc/*.cpp")) - {ROOT / "csrc/bindings.cpp"})]
CXX = shlex.split(os.environ.get("CXX", "c++"))


def output_of(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def built(sources: Sequence[Path], flags: Sequence[str], folder: Path, compiler: Sequence[str] = CXX) -> Path:
    """Return the program that the sources make, in ``folder``."""
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compiled(source: Path, to: Path) -> str:
        return output_of(*compiler, "-std=c++17", "-pthread", *flags, "-c", source, "-o", to)

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        list(executor.map(compiled, sources, objects))
    output_of(*compiler, "-pthread", *flags, *objects, "-o", folder / "program")
    return folder / "program"
