"""What a contender offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from benchmarks.search.data import Array, Data

# For a query [tokens, dim] and k: the numbers of the k best documents, and how many documents were scored by their own
# tokens, or None where the library does not say.
Search: TypeAlias = Callable[[Array, int], tuple[list[int], int | None]]


class Index:
    """An index of a library, and the settings with which it is searched."""

    def __init__(
        self,
        name: str,
        package: str,
        build: Callable[[Data, Path], None] | None,
        settings: Mapping[str, Callable[[Data, Path], Search]],
        *,
        module: str = "",
    ) -> None:
        self.name = name
        self.package = package
        """The distribution that it needs, and whose version stands in the results."""
        self.module = module or package.replace("-", "_")
        """What is imported."""
        self.build = build
        """Writes the index into an empty folder. None: it lives in memory, and is made anew before each search."""
        self.settings = settings
        """By name, what opens the index. The first takes the library's defaults."""
