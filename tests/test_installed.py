"""What is tested is what users install: the wheel, whole, and not the source tree."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import distribution
from pathlib import Path

import pytest
from source import SOURCE, is_editable, package

import colbert_fast as cf

HERE = Path(cf.__file__).resolve().parent


def test_the_package_under_test_is_installed() -> None:
    in_the_tree = HERE == SOURCE / "colbert_fast"
    assert in_the_tree == is_editable(), f"{HERE} is tested: run `make test`, or `make dev` and .venv-dev/bin/pytest"


def test_a_process_that_a_test_starts_imports_the_same() -> None:
    code = "import colbert_fast; print(colbert_fast.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).resolve().parent == HERE


@pytest.mark.skipif(is_editable(), reason="an editable installation has no files of its own")
def test_the_wheel_has_what_git_has_and_the_extension() -> None:
    files = {file.as_posix() for file in distribution("colbert-fast").files or [] if "__pycache__" not in file.parts}
    names = {name for name in files if not name.startswith(("colbert_fast-", ".."))}
    assert names - package() <= {f"colbert_fast/_C{suffix}" for suffix in EXTENSION_SUFFIXES}
    assert len(names - package()) == 1
    assert package() <= names
    # Without these two a type checker would know nothing of the package, or of its extension.
    assert {"colbert_fast/py.typed", "colbert_fast/_C.pyi"} <= names
