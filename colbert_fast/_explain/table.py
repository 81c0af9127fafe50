"""An explanation as a table of plain text."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from colbert_fast._explain.words import JOINER, formula, largest_share, level, readable, share_of

if TYPE_CHECKING:
    from colbert_fast._explain.explanation import Explanation, Row

# The largest width of a token and of a bar, in columns of the terminal.
_TOKEN, _BAR = 24, 20
# The most different tokens that a summary names.
_NAMED = 6


def table(explanation: Explanation, encoding: str) -> str:
    """Return the table, with only such characters as the encoding has.

    One line for each token of the query's text. The tokens that the model adds to the query are summarised below.
    """
    signs = _Signs(encoding)
    rows = explanation.rows
    shown = [row for row in rows if row.query_kind == "text"]
    most = largest_share(shown)
    tokens = explanation.query.tokens
    lines: list[tuple[str, ...]] = [("query", "answer", "at", "similarity", "share", "")]
    for row in shown:
        name = ("##" if tokens[row.query_index].continues else "") + row.query_token
        answer = explanation.document.tokens[row.document_index]
        lines.append(
            (
                signs.shortened(name),
                signs.shortened(("##" if answer.continues else "") + row.document_token),
                str(row.document_index),
                f"{row.similarity:.3f}",
                share_of(row.share, explanation.score),
                signs.bar(row.share, most),
            )
        )
    parts = [_title(explanation), "", *_aligned(lines)]
    for kind, words in (("marker", "that the model adds"), ("expansion", "of query expansion")):
        if chosen := [row for row in rows if row.query_kind == kind]:
            share = share_of(sum(row.share for row in chosen), explanation.score)
            count = f"{len(chosen)} token{'s' if len(chosen) != 1 else ''}"
            parts.append(f"{share} from {count} {words}: {signs.readable(summary(chosen))}")
    return "\n".join(parts)


def summary(rows: Sequence[Row]) -> str:
    """Name the query tokens of some rows: "[CLS] [SEP]" or "[MASK] x 20"."""
    counts = Counter(row.query_token for row in rows)
    names = [f"{name} x {count}" if count > 1 else name for name, count in counts.items()]
    return " ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")


def _title(explanation: Explanation) -> str:
    return f"score {explanation.score:.4f}: {formula(explanation)}"


class _Signs:
    """What a terminal with some encoding can show."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding
        self.block = self._or("\u2588", "#")
        self.ellipsis = self._or("\u2026", "...")

    def _or(self, sign: str, plain: str) -> str:
        return sign if self.readable(sign) == sign else plain

    def readable(self, string: str) -> str:
        string = readable(string)
        try:
            return string.encode(self.encoding, "backslashreplace").decode(self.encoding)
        except (LookupError, UnicodeError):  # an encoding that Python does not know
            return string.encode("ascii", "backslashreplace").decode()

    def shortened(self, string: str) -> str:
        # The beginning is enough: an escape makes a string longer, never shorter.
        string = self.readable(string[: 4 * _TOKEN])
        if _width(string) <= _TOKEN:
            return string
        room = _TOKEN - len(self.ellipsis)
        while _width(string) > room:
            string = string[:-1]
        return string + self.ellipsis

    def bar(self, share: float, most: float) -> str:
        return self.block * level(share, most, _BAR)


def _width(string: str) -> int:
    """Return the number of columns that a string takes in a terminal."""
    return sum(
        0 if unicodedata.combining(char) or char == JOINER else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in string
    )


def _aligned(lines: list[tuple[str, ...]]) -> list[str]:
    """Pad all columns: words to the left, numbers to the right."""
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    padded = []
    for line in lines:
        cells = []
        for number, (cell, width) in enumerate(zip(line, widths, strict=True)):
            space = " " * (width - _width(cell))
            cells.append(cell + space if number in (0, 1, 5) else space + cell)
        padded.append("  ".join(cells).rstrip())
    return padded
