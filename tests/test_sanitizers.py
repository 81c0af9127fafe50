"""tests/cpp/kernels.cpp under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernels import SOURCES, built, output_of, sanitized


@pytest.mark.parametrize(
    ("sanitizer", "arguments"),
    [("address,undefined", []), ("thread", ["threads"])],
    ids=["address", "thread"],
)
def test_kernels(sanitizer: str, arguments: list[str], tmp_path: Path) -> None:
    assert " checks passed: " in output_of(built(SOURCES, sanitized(sanitizer, tmp_path), tmp_path), *arguments)
