"""Builds tests/cpp/kernels.cpp, the program that checks the C++ tiers without Python."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# These files are the Python module; no other file uses Python.
MODULE = {ROOT / "csrc/host/bindings.cpp", ROOT / "csrc/host/tensors.cpp"}
CHECKS = [ROOT / f"tests/cpp/{name}.cpp" for name in ("kernels", "encode_checks", "upper_checks", "checks")]
SOURCES = [*CHECKS, *sorted(set(ROOT.glob("csrc/*/*.cpp")) - MODULE)]
CXX = shlex.split(os.environ.get("CXX", "c++"))


def output_of(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def compiled(sources: Sequence[Path], flags: Sequence[str], folder: Path, compiler: Sequence[str] = CXX) -> list[Path]:
    """Return the objects of the sources, in ``folder``."""

    def compile_one(source: Path) -> Path:
        to = folder / f"{source.stem}.o"
        output_of(*compiler, "-std=c++17", "-pthread", f"-I{ROOT / 'csrc'}", *flags, "-c", source, "-o", to)
        return to

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        return list(executor.map(compile_one, sources))


def linked(objects: Sequence[Path], flags: Sequence[str], program: Path, compiler: Sequence[str] = CXX) -> Path:
    output_of(*compiler, "-pthread", *flags, *objects, "-o", program)
    return program


def built(sources: Sequence[Path], flags: Sequence[str], folder: Path, compiler: Sequence[str] = CXX) -> Path:
    """Return the program that the sources make, in ``folder``."""
    return linked(compiled(sources, flags, folder, compiler), flags, folder / "program", compiler)


def sanitized(sanitizer: str, folder: Path) -> list[str]:
    """Return the flags of a sanitizer, or skip where there is no compiler or the sanitizer does not work.

    -g1 is what a report shows: functions and lines. With -g the compiler takes up to twice as long.
    """
    if shutil.which(CXX[0]) is None:
        pytest.skip(f"there is no C++ compiler {CXX[0]!r}")
    flags = ["-O1", "-g1", "-fno-sanitize-recover=all", f"-fsanitize={sanitizer}"]
    trivial = folder / "trivial.cpp"
    trivial.write_text("int main() {}\n")
    try:
        output_of(built([trivial], flags, folder))
    except (AssertionError, OSError) as error:
        pytest.skip(f"-fsanitize={sanitizer} does not work here: {error}")
    return flags
