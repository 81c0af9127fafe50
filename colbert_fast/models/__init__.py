"""Late-interaction encoders, which need the extra ``models``: ``pip install 'colbert-fast[models]'``.

The names are imported on first use: transformers takes seconds to import, and scoring embeddings does not
need it. What is missing, or too old, is told at once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import TYPE_CHECKING, Any

from colbert_fast._environment import release

if TYPE_CHECKING:
    from colbert_fast.models.colbert import ColBERT

__all__ = ["ColBERT"]

# What the extra `models` of pyproject.toml asks for: package, and the first release that will do.
_NEEDED = {"huggingface-hub": "1.3", "sentence-transformers": "6", "tqdm": "4.64", "transformers": "5.1"}


def __getattr__(name: str) -> Any:
    if name == "ColBERT":
        from colbert_fast.models.colbert import ColBERT

        return ColBERT
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _check_needed() -> None:
    """Raise ImportError unless everything is there. Imports none of it."""
    problems = []
    for package, first in _NEEDED.items():
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            problems.append(f"{package}>={first} (not installed)")
            continue
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # importable without being installed: its owner knows
            continue
        if release(version) < release(first):
            problems.append(f"{package}>={first} ({version} is installed)")
    if problems:
        msg = f"colbert_fast.models needs {', '.join(problems)}: pip install 'colbert-fast[models]'"
        raise ImportError(msg)


_check_needed()
