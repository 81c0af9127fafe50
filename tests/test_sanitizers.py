"""tests/cpp/kernels.cpp under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [ROOT / "tests/cpp/kernels.cpp", *sorted(set(ROOT.glob("csrc/*.cpp")) - {ROOT / "csrc/bindings.cpp"})]
CXX = shlex.split(os.environ.get("CXX", "c++"))
FLAGS = ["-std=c++17", "-O1", "-g", "-pthread", "-fno-sanitize-recover=all"]


def output_of(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiled(sources: list[Path], sanitizer: str, folder: Path, *defines: str) -> list[Path]:
    def compile_one(source: Path) -> Path:
        to = folder / f"{source.stem}.o"
        output_of(*CXX, *FLAGS, f"-fsanitize={sanitizer}", *defines, "-c", source, "-o", to)
        return to

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        return list(executor.map(compile_one, sources))


def linked(objects: list[Path], sanitizer: str, program: Path) -> Path:
    output_of(*CXX, *FLAGS, f"-fsanitize={sanitizer}", *objects, "-o", program)
    return program


def built(sources: list[Path], sanitizer: str, folder: Path) -> Path:
    return linked(compiled(sources, sanitizer, folder), sanitizer, folder / "program")


def skip_without(sanitizer: str, folder: Path) -> None:
    if shutil.which(CXX[0]) is None:
        pytest.skip(f"there is no C++ compiler {CXX[0]!r}")
    trivial = folder / "trivial.cpp"
    trivial.write_text("int main() {}\n")
    try:
        output_of(built([trivial], sanitizer, folder))
    except (AssertionError, OSError) as error:
        pytest.skip(f"-fsanitize={sanitizer} does not work here: {error}")


@pytest.mark.parametrize(
    ("sanitizer", "arguments"),
    [("address,undefined", []), ("thread", ["threads"])],
    ids=["address", "thread"],
)
def test_kernels(sanitizer: str, arguments: list[str], tmp_path: Path) -> None:
    skip_without(sanitizer, tmp_path)
    assert " checks passed: " in output_of(built(SOURCES, sanitizer, tmp_path), *arguments)
