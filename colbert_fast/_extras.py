"""What an extra of pyproject.toml brings: a clear error where a package is missing or too old."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

from colbert_fast._environment import release

# Packages whose module has another name than the package in lower case with underscores.
_MODULES = {
    "PyStemmer": "Stemmer",
    "haystack-ai": "haystack",
    "llama-index-core": "llama_index.core",
    "scikit-learn": "sklearn",
}


def need(feature: str, extra: str | None, packages: dict[str, str]) -> None:
    """Raise ImportError unless every package is installed and new enough. Imports none of them.

    Parameters
    ----------
    feature
        What needs the packages, such as ``"colbert_fast.models"``. The message begins with it.
    extra
        The extra that installs them. None: no extra does, and the message names the packages themselves.
    packages
        The name of each package, and the oldest release that works.
    """
    problems = []
    for package, first in packages.items():
        if not _is_there(_MODULES.get(package, package.replace("-", "_"))):
            problems.append(f"{package}>={first} (not installed)")
            continue
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # importable but not installed: its version cannot be known
            continue
        if release(version) < release(first):
            problems.append(f"{package}>={first} ({version} is installed)")
    if problems:
        wanted = [f"{package}>={first}" for package, first in packages.items()]
        install = " ".join(f"'{name}'" for name in ([f"colbert-fast[{extra}]"] if extra else wanted))
        msg = f"{feature} needs {', '.join(problems)}: pip install {install}"
        raise ImportError(msg)


def _is_there(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # the package around the module is missing
        return False
