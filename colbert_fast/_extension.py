"""Imports the C++ extension, or says why it is missing, or not used, and what to do about it."""

from __future__ import annotations

import sys
import zlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent
# pip keeps a wheel that it has built, also without the extension, and would install that one again.
_AGAIN = "`pip install --force-reinstall --no-deps --no-cache-dir colbert-fast`"


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
        other = f"the C++ extension is for another Python or another system, {', '.join(files)}"
        return f"{other}: install colbert-fast with this one"
    if not (package.parent / "csrc").is_dir():
        return (
            "the C++ extension was not built when colbert-fast was installed: the compiler failed, or "
            f"COLBERT_FAST_NO_EXTENSION was 1; where a C++17 compiler works, {_AGAIN}"
        )
    tree = f"the C++ extension is not in this source tree, {package.parent}"
    hidden = _installed_beside(package)
    if hidden is None:
        return f"{tree}: run `make dev` where a C++17 compiler works, or `pip install .` and start Python elsewhere"
    return f"{tree}, which hides the colbert-fast installed in {hidden}: start Python elsewhere, or run `make dev`"


def why_unfit(extension: ModuleType, package: Path = _PACKAGE) -> str | None:
    """Return in plain words that an extension was built for another release of the files beside it, or None.

    That is so where sources are updated and not built, and where one release is copied over another.
    """
    try:
        stub = (package / "_C.pyi").read_bytes()
    except OSError:  # a program that makes one file of a package may leave out what is not run
        return None
    if getattr(extension, "stub", None) == zlib.crc32(stub.replace(b"\r\n", b"\n")):
        return None
    tree = (package.parent / "csrc").is_dir()
    again = "run `make dev` again" if tree else _AGAIN
    return f"the C++ extension in {package} was built for another version of the Python files beside it: {again}"


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
else:
    MISSING = why_unfit(_C)
    if MISSING is not None:
        _C = None  # type: ignore[assignment]
