"""An explanation as one HTML page. The page reads nothing from the network, and runs no code but its own script."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from colbert_fast._explain.look import SCRIPT, STYLE
from colbert_fast._explain.sides import Side
from colbert_fast._explain.words import formula, largest_share, level, readable, share_of, shortened

if TYPE_CHECKING:
    from colbert_fast._explain.explanation import Explanation, Row

# The number of different strengths of the colour, classes s1 to s9 of the style.
_STRENGTHS = 9
# The longest text in the title of the page.
_TITLE = 60
# Control characters, the signs that override the direction of the text after them, and halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# All texts of callers come into the page through `_text`, and all places in it are filled here.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; style-src {style_hash}; script-src {script_hash}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header>
<h1>Score <strong>{score}</strong></h1>
<p>{formula}. The stronger the colour, the larger the share of the score.</p>
</header>
<div>
<section class="query" aria-labelledby="query">
<h2 id="query">Query</h2>
<p class="text" dir="auto">{query}</p>
{query_added}<p id="said" role="status" data-hint="{hint}">{hint}</p>
</section>
<section class="answers" aria-labelledby="document">
<h2 id="document">Document</h2>
<p class="text" dir="auto">{document}</p>
{document_added}</section>
</div>
<details>
<summary>All numbers</summary>
<div class="wide"><table>
<thead><tr><th scope="col">Query</th><th scope="col">Answer</th><th scope="col">Row</th>\
<th scope="col">Similarity</th><th scope="col">Share</th></tr></thead>
<tbody>
{table}
</tbody>
</table></div>
</details>
</main>
<script>{script}</script>
</body>
</html>
"""
_HINT = "Point at a coloured word, tap it, or move to it with the Tab key."


class _Unit:
    """Tokens that share characters, such as the bytes of one emoji, or one token: what lights up together."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.rows: list[Row] = []


def page(explanation: Explanation) -> str:
    """Return the page."""
    rows = explanation.rows
    most = largest_share(rows)
    view = _View(explanation, rows)
    title = shortened(explanation.query.text, _TITLE)
    return _PAGE.format(
        style_hash=_hash(STYLE),
        script_hash=_hash(SCRIPT),
        title=_text(f"{explanation.score:.2f}: {title}"),
        style=STYLE,
        script=SCRIPT,
        score=f"{explanation.score:.4f}",
        formula=_text(formula(explanation).capitalize()),
        hint=_HINT,
        query=view.text("q", most),
        query_added=view.added("q", most, "The model adds"),
        document=view.text("d", most),
        document_added=view.added("d", most, "Answers outside the text"),
        table="\n".join(map(view.table_row, rows)),
    )


class _View:
    """Both sides of an explanation, and how their tokens belong together."""

    def __init__(self, explanation: Explanation, rows: tuple[Row, ...]) -> None:
        self.score = explanation.score
        answered: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            answered[row.document_index].append(row)
        self.sides: dict[str, Side] = {"q": explanation.query, "d": explanation.document}
        # A query token has one row. A document token has a row for each query token that it answers.
        rows_of_tokens = {"q": {row.query_index: [row] for row in rows}, "d": answered}
        self.units = {side: _units(self.sides[side], rows_of_tokens[side]) for side in "qd"}
        # The name of the element that shows each token.
        self.names: dict[str, dict[int, str]] = {"q": {}, "d": {}}
        for side, units in self.units.items():
            for number, unit in enumerate(units):
                for row in unit.rows:
                    index = row.query_index if side == "q" else row.document_index
                    self.names[side][index] = f"{side}{number}"

    def text(self, side: str, most: float) -> str:
        """Return the text of a side, with an element around each token that takes part in the score."""
        text, read = self.sides[side].text, self.sides[side].read
        parts, last = [], 0
        for number, unit in enumerate(self.units[side]):
            if unit.end > unit.start:
                parts.append(_text(text[last : unit.start]))
                parts.append(self._element(side, number, unit, text[unit.start : unit.end], most))
                last = unit.end
        parts.append(_text(text[last : max(last, read)]))
        rest = text[max(last, read) :]
        if rest.strip():
            parts.append(
                f'<span class="cut" title="The model did not read this: the text was cut.">{_text(rest)}</span>'
            )
        return "".join(parts)

    def added(self, side: str, most: float, label: str) -> str:
        """Return the tokens that take part in the score and are not in the text, or nothing."""
        parts = []
        for number, unit in enumerate(self.units[side]):
            if unit.end == unit.start:
                token = unit.rows[0].query_token if side == "q" else unit.rows[0].document_token
                parts.append(self._element(side, number, unit, readable(token), most))
        if not parts:
            return ""
        total = share_of(
            sum(row.share for unit in self.units[side] if unit.end == unit.start for row in unit.rows), self.score
        )
        return f'<p class="added">{label} ({total}): {" ".join(parts)}</p>\n'

    def table_row(self, row: Row) -> str:
        cells = [str(row.document_index), f"{row.similarity:.4f}", share_of(row.share, self.score)]
        tokens = (readable(row.query_token), readable(row.document_token))
        marked = "".join(f"<td><bdi>{_text(token)}</bdi></td>" for token in tokens)
        return f"<tr>{marked}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"

    def _element(self, side: str, number: int, unit: _Unit, shown: str, most: float) -> str:
        share = sum(row.share for row in unit.rows)
        other = "d" if side == "q" else "q"
        indices = [row.document_index if side == "q" else row.query_index for row in unit.rows]
        links = " ".join(dict.fromkeys(self.names[other][index] for index in indices))
        kind = f"s{level(share, most, _STRENGTHS)}" + (" minus" if share < 0 else "")
        said = _text(self._said(unit.rows))
        return (
            f'<span class="{kind}" id="{side}{number}" data-to="{links}" tabindex="0" role="button" '
            f'title="{said}">{_text(shown)}</span>'
        )

    def _said(self, rows: Iterable[Row]) -> str:
        return "; ".join(
            f"{readable(row.query_token)} \u2192 {readable(row.document_token)}: similarity {row.similarity:.3f}, "
            f"share {share_of(row.share, self.score)}"
            for row in rows
        )


def _units(side: Side, rows: dict[int, list[Row]]) -> list[_Unit]:
    """Group the tokens that take part in the score.

    First come the tokens of the text, in the order of the text. Then come the other tokens, each in a group of its own.
    """
    places = [(side.tokens[i].start, side.tokens[i].end, i) for i in rows if side.tokens[i].kind == "text"]
    units: list[_Unit] = []
    for start, end, index in sorted(places):
        if not units or start >= units[-1].end:
            units.append(_Unit(start, end))
        units[-1].end = max(units[-1].end, end)
        units[-1].rows += rows[index]
    for index in sorted(set(rows) - {place[2] for place in places}):
        units.append(_Unit(0, 0))
        units[-1].rows += rows[index]
    return units


def _text(string: str) -> str:
    """Escape a string for HTML, and show the characters that HTML cannot hold or that would reorder other text."""
    return escape(_UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), string), quote=True)


def _hash(code: str) -> str:
    """Return the hash by which the policy of the page allows one script or style and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
