"""Refuses to be imported where numpy or torch is missing or too old, and says what is needed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from colbert_fast._environment import release

# The dependencies in pyproject.toml.
NEEDED = {"numpy": "1.24", "torch": "2.4"}


def require(needed: dict[str, str]) -> None:
    """Import the packages; raise ImportError with all that are missing or older than these releases.

    A package whose version is none, such as a mock, is taken as it is.
    """
    problems = {}
    for name, first in needed.items():
        try:
            package = import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            problems[f"{name}>={first}"] = "not installed"
        else:
            version = getattr(package, "__version__", None)
            if is_empty(package):
                problems[f"{name}>={first}"] = f"not installed: {', '.join(package.__path__)} has no such package"
            elif isinstance(version, str) and [] < release(version) < release(first):
                problems[f"{name}>={first}"] = f"{version} is installed"
    if problems:
        told = ", ".join(f"{wanted} ({found})" for wanted, found in problems.items())
        msg = f"colbert_fast needs {told}: pip install {' '.join(map(repr, problems))}"
        raise ImportError(msg)


def is_empty(package: ModuleType) -> bool:
    """Return whether this is a folder without a package, such as pip leaves behind where it cannot take away all."""
    return getattr(package, "__file__", None) is None and bool(getattr(package, "__path__", ()))


require(NEEDED)
