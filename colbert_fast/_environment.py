"""What surrounds the package: environment variables, and the releases of other packages."""

from __future__ import annotations

import importlib.metadata
import os


def environment_variable(name: str) -> str | None:
    """Return the value of an environment variable, or None if it is not set or blank."""
    # os.environ raises and catches a KeyError where a variable is not set. That takes 20 us with cold caches, and each
    # call asks. Its dict is private: where there is none, os.environ is asked.
    values = getattr(os.environ, "_data", None)
    if type(values) is dict and name.encode() not in values and name not in values:  # bytes, or str on Windows
        return None
    return (os.environ.get(name) or "").strip() or None


def release(version: str) -> list[int]:
    """Return the numbers that a version begins with: [6, 2] for 6.2.0rc1."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return numbers


def own_version() -> str:
    """Return the version of colbert_fast, or "unknown" where the package was copied without its metadata."""
    try:
        return importlib.metadata.version("colbert-fast")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
