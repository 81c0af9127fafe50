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


def built(sources: list[Path], sanitizer: str, folder: Path) -> Path:
    objects = [folder / f"{source.stem}.o" for source in sources]
    flags = [*FLAGS, f"-fsanitize={sanitizer}"]

    def compiled(source: Path, to: Path) -> str:
        return output_of(*CXX, *flags, "-c", source, "-o", to)

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        list(executor.map(compiled, sources, objects))
    output_of(*CXX, *flags, *objects, "-o", folder / "program")
    return folder / "program"


@pytest.mark.parametrize(
    ("sanitizer", "arguments"),
    [("address,undefined", []), ("thread", ["threads"])],
    ids=["address", "thread"],
)
def test_kernels(sanitizer: str, arguments: list[str], tmp_path: Path) -> None:
    if shutil.which(CXX[0]) is None:
        pytest.skip(f"there is no C++ compiler {CXX[0]!r}")
    trivial = tmp_path / "trivial.cpp"
    trivial.write_text("int main() {}\n")
    try:
        output_of(built([trivial], sanitizer, tmp_path))
    except (AssertionError, OSError) as error:
        pytest.skip(f"-fsanitize={sanitizer} does not work here: {error}")
    assert " checks passed: " in output_of(built(SOURCES, sanitizer, tmp_path), *arguments)
