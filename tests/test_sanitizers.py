"""tests/cpp/kernels.cpp under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kernels import CXX, SOURCES, built, output_of


@pytest.mark.parametrize(
    ("sanitizer", "arguments"),
    [("address,undefined", []), ("thread", ["threads"])],
    ids=["address", "thread"],
)
def test_kernels(sanitizer: str, arguments: list[str], tmp_path: Path) -> None:
    if shutil.which(CXX[0]) is None:
        pytest.skip(f"there is no C++ compiler {CXX[0]!r}")
    flags = ["-O1", "-g", "-fno-sanitize-recover=all", f"-fsanitize={sanitizer}"]
    trivial = tmp_path / "trivial.cpp"
    trivial.write_text("int main() {}\n")
    try:
        output_of(built([trivial], flags, tmp_path))
    except (AssertionError, OSError) as error:
        pytest.skip(f"-fsanitize={sanitizer} does not work here: {error}")
    assert " checks passed: " in output_of(built(SOURCES, flags, tmp_path), *arguments)
