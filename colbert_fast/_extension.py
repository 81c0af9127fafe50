"""Imports the C++ extension, or says why it is missing and what to do about it."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def why_missing(error: ImportError, package: Path = _PACKAGE) -> str:
    """Return in plain words why ``colbert_fast._C`` cannot be imported.

    Parameters
    ----------
    error
        The exception of the import.
    package
        The folder of colbert_fast.
    """
    files = sorted(file.name for file in package.glob("_C.*") if file.suffix in (".so", ".pyd"))
    if any(f"_C{suffix}" in files for suffix in EXTENSION_SUFFIXES):
        return f"the C++ extension in {package} does not load: {error}"
    if files:
        return f"the C++ extension is for another Python, {', '.join(files)}: install colbert-fast with this one"
    if not (package.parent / "csrc").is_dir():
        return (
            "the C++ extension was not built when colbert-fast was installed: the compiler failed, or "
            "COLBERT_FAST_NO_EXTENSION was 1; reinstall where a C++17 compiler works"
        )
    tree = f"the C++ extension is not in this source tree, {package.parent}"
    hidden = _installed_beside(package)
    if hidden is None:
        return f"{tree}: run `make dev` where a C++17 compiler works, or `pip install .` and start Python elsewhere"
    return f"{tree}, which hides the colbert-fast installed in {hidden}: start Python elsewhere, or run `make dev`"


def _installed_beside(package: Path) -> Path | None:
    """Return the first folder of ``sys.path`` with another colbert_fast."""
    for entry in map(Path, sys.path):
        if (entry / "colbert_fast" / "__init__.py").is_file() and (entry / "colbert_fast").resolve() != package:
            return entry
    return None


MISSING: str | None = None
"""None, or why there is no extension."""
try:
    from colbert_fast import _C as _C
except ImportError as error:
    _C = None  # type: ignore[assignment]
    MISSING = why_missing(error)
