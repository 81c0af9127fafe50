"""What the table, the page and the figures of an explanation say alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colbert_fast._explain.explanation import Explanation, Row

# A joiner holds the parts of an emoji together. It is the only invisible character that `readable` keeps as it is.
JOINER = "\u200d"


def formula(explanation: Explanation) -> str:
    """Say in words what the score is."""
    kind = "mean" if explanation.mean else "sum"
    count = len(explanation.query.tokens)
    return f"the {kind} of the best similarities of {count} query token{'s' if count != 1 else ''}"


def share_of(share: float, score: float) -> str:
    """Return a share as a percentage of the score. If the score is not positive, return the share itself."""
    if math.isfinite(share) and math.isfinite(score) and score > 0:
        return f"{100 * share / score:.1f} %"
    return f"{share:.3f}"


def largest_share(rows: Iterable[Row]) -> float:
    """Return the largest finite share, or 0 if there is none."""
    return max((row.share for row in rows if math.isfinite(row.share)), default=0.0)


def level(share: float, largest: float, levels: int) -> int:
    """Return how large a share is, from 1 to ``levels`` for the largest share. A share that is not positive has 0."""
    if not (math.isfinite(share) and share > 0 and largest > 0):
        return 0
    return min(levels, max(1, round(levels * share / largest)))


def readable(string: str) -> str:
    """Return a string with escapes in the place of characters that are invisible or move the cursor."""
    return "".join(
        char if char.isprintable() or char == JOINER else char.encode("unicode_escape").decode() for char in string
    )


def shortened(string: str, longest: int) -> str:
    """Return a string of at most ``longest`` characters. An ellipsis stands for the rest."""
    return string if len(string) <= longest else string[: longest - 1] + "\u2026"
