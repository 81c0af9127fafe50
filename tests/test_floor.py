"""The lowest versions that the metadata claims are those that `make test-floor` tests with."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from colbert_fast._backends import triton_

ROOT = Path(__file__).parents[1]
# Packages that only these extras need are for developers. Two of them count, because the floor is tested with them.
# The libraries of the adapters and of the encoder's backends are tested in an environment of their own.
DEVELOPERS = {"test", "bench", "bench-search", "lint", "docs", "integrations", "onnx", "openvino"}
TOOLS = {"hypothesis", "pytest"}


def claimed() -> dict[str, Version]:
    """Return the lower bound of each package that users may get, and of the tools."""
    bounds = {}
    for line in importlib.metadata.requires("colbert-fast") or []:
        requirement = Requirement(line)
        extra = next((name for name in DEVELOPERS if f'extra == "{name}"' in line), None)
        if requirement.name == "colbert-fast" or (extra is not None and requirement.name not in TOOLS):
            continue
        (bound,) = [s.version for s in requirement.specifier if s.operator == ">="]
        bounds[requirement.name] = Version(bound)
    return bounds


def test_the_floor_is_what_the_metadata_claims() -> None:
    lines = (ROOT / "constraints-floor.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    floor = {name: Version(pin) for name, pin in pins.items()}
    bounds = claimed()
    assert bounds.pop("triton") == Version(triton_.OLDEST)
    assert floor == bounds


def test_the_oldest_python_is_what_the_metadata_claims() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (python,) = [line.split("?= python")[1] for line in makefile.splitlines() if line.startswith("FLOOR_PYTHON ?=")]
    assert importlib.metadata.metadata("colbert-fast")["Requires-Python"] == f">={python}"
