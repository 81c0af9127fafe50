"""What a command shows on standard error while it works: warnings as lines, and progress bars."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from colbert_fast.cli.output import tell

# What the encoder says about the texts of one call. A command makes many calls, so their numbers are added up.
_CUTS = re.compile(
    r"(?P<cut>\d+) of \d+ (?P<which>\w+ were cut to \d+ tokens.*): the longest has (?P<longest>\d+)(?P<more>.*)"
)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print each warning in this context as one line.

    How many texts were cut is said at the end, once for all queries and once for all documents.
    """
    cuts: dict[tuple[str, str], list[int]] = {}
    said: set[str] = set()

    def show(message: Warning | str, *arguments: Any, **named: Any) -> None:
        text = str(message)
        if found := _CUTS.fullmatch(text):
            total = cuts.setdefault((found["which"], found["more"]), [0, 0])
            total[:] = total[0] + int(found["cut"]), max(total[1], int(found["longest"]))
        elif text not in said:
            said.add(text)
            tell(f"warning: {text}")

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=r"\d+ of \d+ \w+ were cut to ")
        warnings.showwarning = show
        yield
    # Not after an error, which is one line alone.
    for (which, more), (cut, longest) in cuts.items():
        tell(f"warning: {cut} {which}: the longest has {longest}{more}")


def progress(total: int, what: str) -> Any:
    """Return a progress bar on standard error, which shows nothing where standard error is no terminal."""
    from tqdm import tqdm

    # A terminal may not know its own size, and tqdm would draw nothing there.
    return tqdm(total=total, desc=what, unit="text", file=sys.stderr, disable=None, ncols=80, nrows=24, leave=False)
