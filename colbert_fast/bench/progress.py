"""How far a run is, on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any


class Progress:
    """A bar on a terminal, where tqdm is installed; elsewhere one line for each workload.

    Nothing is lost because nobody can read it.
    """

    def __init__(self, workloads: int) -> None:
        self._workloads = workloads
        self._begun = 0
        self._bar = _bar(workloads) if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()

    def begin(self, workload: str) -> None:
        """Go to the next workload."""
        self._workload = workload
        self._begun += 1
        self.step("inputs", 0.0)
        if self._bar is None:
            with contextlib.suppress(OSError):
                print(f"{workload}: measuring, {self._begun} of {self._workloads}", file=sys.stderr, flush=True)

    def step(self, what: str, share: float) -> None:
        """Say what comes next, and which share of the workload is done."""
        if self._bar is not None:
            self._bar.set_description_str(f"{self._workload}, {what}", refresh=False)
            self._bar.n = self._begun - 1 + share
            with contextlib.suppress(OSError):
                self._bar.refresh()


def _bar(total: int) -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return None
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    # tqdm draws nothing on a terminal that does not know its own size.
    known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    size = {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}
    return tqdm(total=total, bar_format=form, leave=False, file=sys.stderr, **size)
