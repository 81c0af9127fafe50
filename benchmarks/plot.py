"""The plot of one machine: time relative to ours on a log axis, as a hand-made SVG without dependencies.

One row per workload. Marks differ in shape as well as in colour, and every library carries its name. All colours have
a middle tone, so that the same file can be read on GitHub's light and dark pages. Nothing depends on the clock, a
font or a library's version: the same figures give the same bytes.
"""

from __future__ import annotations

import math
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, LEFT, TOP, LANE = 1000, 256, 92, 19
_INSET = 8  # from the ends of the axis to the edges of its area
_LABEL_LEFT, _LABEL_RIGHT = 156, 156  # kept free of marks, so that labels at both ends have room
_CHARACTER = 6.3  # average advance of the 11 px label font, on the generous side
_COLOURS = {"ours": "#d9570b", "torch": "#8f62cf", "peer": "#2f7fc4", "limit": "#2b9659", "text": "#757c86"}
_FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Mark:
    """One contender of a workload: its median, and its p20 and p80, in units of our median."""

    kind: str
    label: str
    ratio: float
    low: float
    high: float
    wrong: bool = False
    minor: bool = False
    """A slower path of a library that has another mark: small, and named in a tooltip only."""


@dataclass(frozen=True)
class Row:
    """One workload. Without a correct result of ours it has no marks, and `note` says so."""

    name: str
    shape: str
    marks: tuple[Mark, ...]
    limit: tuple[str, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float

    def __call__(self, ratio: float) -> float:
        first, last = LEFT + _LABEL_LEFT, WIDTH - _LABEL_RIGHT
        return first + (last - first) * math.log(ratio / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times the powers of ten, or only these where they would stand too close."""
        steps = (1, 2, 5) if self(10) - self(1) > 130 else (1,)
        ticks = [step * 10.0**power for power in range(-3, 6) for step in steps]
        return [tick for tick in ticks if LEFT + _INSET + 12 <= self(tick) <= WIDTH - _INSET - 12]


def draw(title: str, subtitle: str, rows: Sequence[Row]) -> bytes:
    """The SVG document of one machine, as UTF-8."""
    ratios = [value for row in rows for mark in row.marks for value in (mark.low, mark.high)]
    ratios += [row.limit[1] for row in rows if row.limit is not None]
    axis = _Axis(min([0.7, *ratios]), max([2.0, *ratios]))
    svg = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    svg.set("font-family", _FONT)
    svg.set("font-size", "11")
    svg.set("fill", _COLOURS["text"])
    ET.SubElement(svg, "title").text = title
    _text(svg, 16, 24, title, size=17, weight=600)
    _text(svg, 16, 43, subtitle)
    _legend(svg)
    grid = ET.SubElement(svg, "g")
    y = TOP
    for row in rows:
        y = _row(svg, axis, row, y)
    _grid(grid, axis, y)
    svg.set("width", str(WIDTH))
    svg.set("height", str(y + 30))
    svg.set("viewBox", f"0 0 {WIDTH} {y + 30}")
    ET.indent(svg)
    return bytes(ET.tostring(svg, encoding="utf-8", xml_declaration=True)) + b"\n"


def _row(svg: ET.Element, axis: _Axis, row: Row, top: int) -> int:
    """Draw one workload below `top` and return where the next begins."""
    line = ET.SubElement(svg, "path", d=f"M16 {top}H{WIDTH - 16}", stroke=_COLOURS["text"])
    line.set("stroke-opacity", "0.35")
    shape = textwrap.wrap(row.shape, 42)
    _text(svg, 16, top + 19, row.name, size=13, weight=600)
    for number, text in enumerate(shape):
        _text(svg, 16, top + 35 + 13 * number, text, size=10)
    group = ET.SubElement(svg, "g")
    first = top + 15
    taken: list[list[tuple[float, float]]] = []
    if row.note:
        _text(group, LEFT + _LABEL_LEFT, first + 4, row.note)
    if row.limit is not None:
        end = _limit(group, axis, row.limit, first)
        _place(taken, end - _width(row.limit[0]), end)
    for mark in sorted(row.marks, key=lambda mark: (mark.wrong or mark.kind != "ours", mark.ratio, mark.label)):
        if not mark.minor:
            _mark(group, axis, taken, mark, first)
    bottom = first + LANE * len(taken)
    minor = [mark for mark in row.marks if mark.minor]
    for mark in minor:
        _shape(group, mark.kind, axis(mark.ratio), bottom - 3, small=True).text = mark.label
    bottom = max(bottom + (9 if minor else 0), top + 38 + 13 * len(shape))
    if row.limit is not None:
        _headroom(group, axis, row.limit[1], top + 3, bottom - top - 6)
    return bottom


def _place(taken: list[list[tuple[float, float]]], start: float, end: float) -> int:
    """The first lane in which nothing overlaps [start, end], which is then taken."""
    for number, lane in enumerate(taken):
        if all(end < other_start or other_end < start for other_start, other_end in lane):
            lane.append((start, end))
            return number
    taken.append([(start, end)])
    return len(taken) - 1


def _mark(group: ET.Element, axis: _Axis, taken: list[list[tuple[float, float]]], mark: Mark, first: float) -> None:
    """A contender's mark, spread and label in the first free lane.

    The label stands to the right, unless it would run over the edge or, from a mark faster than ours, over our line.
    """
    x, colour = axis(mark.ratio), _COLOURS["text" if mark.wrong else mark.kind]
    low, high = min(x - 10, axis(mark.low) - 4), max(x + 10, axis(mark.high) + 4)
    weight = 600 if mark.kind == "ours" else 400
    width = _width(mark.label, weight)
    left = (mark.ratio < 0.995 and low - width > LEFT) or high + width > WIDTH - _INSET
    y = first + LANE * _place(taken, low - width if left else low, high if left else high + width)
    if high - low > 24:
        spread = ET.SubElement(group, "path", d=f"M{axis(mark.low):.1f} {y:.1f}H{axis(mark.high):.1f}", stroke=colour)
        spread.set("stroke-opacity", "0.55")
        spread.set("stroke-width", "1.5")
    _shape(group, mark.kind, x, y, mark.wrong)
    _text(group, low if left else high, y + 4, mark.label, weight=weight, colour=colour, end=left)


def _shape(parent: ET.Element, kind: str, x: float, y: float, wrong: bool = False, small: bool = False) -> ET.Element:
    """A diamond for ours, a circle for torch, a square for a peer; hollow and crossed out if wrong.

    Returns the element of the tooltip.
    """
    colour = _COLOURS["text" if wrong else kind]
    group = ET.SubElement(parent, "g", {"fill": "none" if wrong else colour, "stroke": colour, "stroke-width": "1.5"})
    group.set("transform", f"translate({x:.1f} {y:.1f})" + (" scale(0.6)" if small else ""))
    tooltip = ET.SubElement(group, "title")
    if kind == "ours":
        ET.SubElement(group, "path", d="M0 -6.5l6.5 6.5l-6.5 6.5l-6.5 -6.5z")
    elif kind == "torch":
        ET.SubElement(group, "circle", r="4.5")
    else:
        ET.SubElement(group, "rect", x="-4", y="-4", width="8", height="8")
    if wrong:
        ET.SubElement(group, "path", d="M-6 -6l12 12m0 -12l-12 12")
    return tooltip


def _limit(group: ET.Element, axis: _Axis, limit: tuple[str, float], y: float) -> float:
    """Write the limit's label, clear of its bar and of our mark, and return where the label ends."""
    end = min(axis(limit[1]) - 7, axis(1) - 13)
    _text(group, end, y + 4, limit[0], colour=_COLOURS["limit"], end=True)
    return end


def _headroom(group: ET.Element, axis: _Axis, limit: float, y: float, height: float) -> None:
    """A bar across the row at the hardware limit and, shaded, what lies between it and ours; behind all marks."""
    x, one = axis(limit), axis(1)
    size = {"x": f"{min(x, one):.1f}", "y": f"{y}", "width": f"{abs(one - x):.1f}", "height": f"{height}"}
    band = ET.Element("rect", {**size, "fill": _COLOURS["limit"], "fill-opacity": "0.16"})
    bar = ET.Element("path", {"d": f"M{x:.1f} {y}v{height}", "stroke": _COLOURS["limit"], "stroke-width": "2.5"})
    group[:0] = [band, bar]


def _grid(grid: ET.Element, axis: _Axis, bottom: int) -> None:
    for tick in axis.ticks():
        line = ET.SubElement(grid, "path", d=f"M{axis(tick):.1f} {TOP}V{bottom}", stroke=_COLOURS["text"])
        line.set("stroke-opacity", "0.2")
        for y in (TOP - 7, bottom + 17):
            _text(grid, axis(tick), y, f"{tick:g}x", middle=True)
    line = ET.SubElement(grid, "path", d=f"M{axis(1):.1f} {TOP}V{bottom}", stroke=_COLOURS["ours"])
    line.set("stroke-width", "1.5")
    line.set("stroke-opacity", "0.7")


def _legend(svg: ET.Element) -> None:
    x = 21.0
    names = {"ours": "colbert_fast, its best backend", "torch": "torch", "peer": "other libraries"}
    for kind, name in names.items():
        _shape(svg, kind, x, 61).text = name
        _text(svg, x + 11, 65, name)
        x += 30 + _width(name)
    for name in ("slower paths of a library", "wrong result"):
        _shape(svg, "peer", x, 61, wrong=name.startswith("wrong"), small=name.startswith("slower")).text = name
        _text(svg, x + 11, 65, name)
        x += 30 + _width(name)
    bar = ET.SubElement(svg, "path", d=f"M{x:.1f} 54v14", stroke=_COLOURS["limit"])
    bar.set("stroke-width", "2.5")
    _text(svg, x + 8, 65, "hardware limit, and our share of it")


def _width(text: str, weight: int = 400) -> float:
    return _CHARACTER * len(text) * (1.1 if weight > 400 else 1)


def _text(
    parent: ET.Element,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 11,
    weight: int = 400,
    colour: str = "",
    end: bool = False,
    middle: bool = False,
) -> None:
    element = ET.SubElement(parent, "text", x=f"{x:.1f}", y=f"{y:.1f}")
    if size != 11:
        element.set("font-size", f"{size:g}")
    if weight != 400:
        element.set("font-weight", str(weight))
    if colour:
        element.set("fill", colour)
    if end or middle:
        element.set("text-anchor", "end" if end else "middle")
    element.text = text
