"""The plot of one machine: time relative to ours on a log axis, as SVG without dependencies.

One row per workload. Marks differ in shape as well as in colour, and every library carries its name. All colours have
a middle tone, so that the same file can be read on light and dark pages. Nothing depends on the clock, a font or a
library's version: the same figures give the same bytes.
"""

from __future__ import annotations

import math
import textwrap
from html import escape

from benchmarks.model import Result, Run, Workload

WIDTH, LEFT, TOP, LANE = 1000, 256, 92, 16
_INSET = 8  # from the ends of the axis to the edges of its area
_MARGIN = 156  # kept free of marks at both ends of the axis, so that labels have room
_CHARACTER = 6.3  # average advance of the 11 px label font, on the generous side
_COLOURS = {"ours": "#d9570b", "torch": "#8f62cf", "peer": "#2f7fc4", "limit": "#2b9659", "text": "#757c86"}
_FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
_SHAPES = {
    "ours": '<path d="M0 -6.5l6.5 6.5l-6.5 6.5l-6.5 -6.5z"/>',
    "torch": '<circle r="4.5"/>',
    "peer": '<rect x="-4" y="-4" width="8" height="8"/>',
}
_CROSS = '<path d="M-6 -6l12 12m0 -12l-12 12"/>'


class _Axis:
    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, ratio: float) -> float:
        length = WIDTH - LEFT - 2 * _MARGIN
        return LEFT + _MARGIN + length * math.log(ratio / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times the powers of ten, or only the powers where the others would stand too close."""
        steps = (1, 2, 5) if self(10) - self(1) > 130 else (1,)
        ticks = [step * 10.0**power for power in range(-3, 6) for step in steps]
        return [tick for tick in ticks if LEFT + _INSET + 12 <= self(tick) <= WIDTH - _INSET - 12]


def svg(run: Run) -> bytes:
    """The SVG document of one run, as UTF-8."""
    ratios = [0.7, 2.0]
    for workload in run.ran():
        if ours := workload.best("ours"):
            shown = [r for r in workload.results if r is ours or not r.ours or r.wrong]
            ratios += [r.seconds[edge] / ours.p50 for r in shown for edge in ("p20", "p80")]
            ratios += [bound[1] / ours.p50] if (bound := run.limit(workload, workload.tiers)) else []
    axis, rows, y = _Axis(min(ratios), max(ratios)), list[str](), TOP
    for workload in run.ran():
        drawn, y = _row(run, workload, axis, y)
        rows += drawn
    machine = run.machine
    title = f"Time relative to colbert_fast on {machine['name']}: further right is slower"
    parts = [machine["cpu"], machine.get("gpu"), f"{machine['threads']} threads", f"{run.profile} profile"]
    parts += ["noisy machine" if machine.get("noisy") else None, run.revision, run.date[:10]]
    subtitle = ", ".join(filter(None, parts)) + ". Medians, log axis. ~ marks a noisy figure."
    size = f'width="{WIDTH}" height="{y + 30}" viewBox="0 0 {WIDTH} {y + 30}"'
    style = f'font-family="{_FONT}" font-size="11" fill="{_COLOURS["text"]}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {style} {size}>',
        f"<title>{escape(title)}</title>",
        _text(16, 24, title, "font-size='17' font-weight='600'"),
        _text(16, 43, subtitle),
        *_legend(),
        *_grid(axis, y),
        *rows,
        "</svg>",
    ]
    return ("\n".join(lines) + "\n").encode()


def _row(run: Run, workload: Workload, axis: _Axis, top: int) -> tuple[list[str], int]:
    """Draw one workload below `top`; return it, and where the next begins."""
    shape = textwrap.wrap(workload.setting, 42)
    drawn = [_path(f"M16 {top}H{WIDTH - 16}", "text", 0.35, 1)]
    drawn.append(_text(16, top + 19, workload.name, "font-size='13' font-weight='600'"))
    drawn += [_text(16, top + 35 + 13 * number, text, "font-size='10'") for number, text in enumerate(shape)]
    ours, y, bottom = workload.best("ours"), top + 15, top + 38 + 13 * len(shape)
    if ours is None:
        return [*drawn, _text(LEFT + _MARGIN, y + 4, "no correct result of ours")], bottom
    minor, families = list[Result](), set[str]()
    results = [result for result in workload.results if result is ours or result.wrong or not result.ours]
    for result in sorted(results, key=lambda r: (r is not ours, r.p50, r.contender)):
        if result.family in families and not result.wrong:
            minor.append(result)
            continue
        families |= set() if result.wrong else {result.family}
        drawn += _mark(axis, result, ours, y)
        y += LANE
    for result in minor:  # A slower path of a library that has another mark: small, and named in a tooltip only.
        tooltip = f"{result.contender} {result.ratio(ours)}"
        drawn.append(_shape(result.kind, axis(result.p50 / ours.p50), y - 3, tooltip, small=True))
    bottom = max(bottom, y + (9 if minor else 0))
    if bound := run.limit(workload, workload.tiers):
        # The label is clear of the bar of the limit and of our mark.
        label = f"{run.rate(workload, ours, workload.tiers)[2]} of {bound[0]} limit"
        end = min(axis(bound[1] / ours.p50) - 7, axis(1) - 13)
        drawn.append(_text(end, top + 19, label, f"fill='{_COLOURS['limit']}' text-anchor='end'"))
        drawn[:0] = _headroom(axis, bound[1] / ours.p50, top + 3, bottom - top - 6)
    return drawn, bottom


def _mark(axis: _Axis, result: Result, ours: Result, y: float) -> list[str]:
    """A contender's mark, spread and label.

    The label stands to the right, unless it would run over the edge or, from a mark faster than ours, over our line.
    """
    label = f"{ours.ms} ms, {ours.variant}" if result is ours else f"{result.contender} {result.ratio(ours)}"
    label += f", {result.error}" if result.wrong else ""
    p50, p20, p80 = (axis(result.seconds[edge] / ours.p50) for edge in ("p50", "p20", "p80"))
    low, high = min(p50 - 10, p20 - 4), max(p50 + 10, p80 + 4)
    weight, colour = 600 if result.ours else 400, "text" if result.wrong else result.kind
    width = _CHARACTER * len(label) * (1.1 if result.ours else 1)
    left = (p50 < axis(0.995) and low - width > LEFT) or high + width > WIDTH - _INSET
    drawn = [_path(f"M{p20:.1f} {y:.1f}H{p80:.1f}", colour, 0.55, 1.5)] if high - low > 24 else []
    style = f"font-weight='{weight}' fill='{_COLOURS[colour]}'" + (" text-anchor='end'" if left else "")
    return [*drawn, _shape(result.kind, p50, y, "", result.wrong), _text(low if left else high, y + 4, label, style)]


def _shape(kind: str, x: float, y: float, tooltip: str, wrong: bool = False, small: bool = False) -> str:
    """A diamond for ours, a circle for torch, a square for a peer; hollow and crossed out if wrong."""
    colour = _COLOURS["text" if wrong else kind]
    where = f"translate({x:.1f} {y:.1f}){' scale(0.6)' if small else ''}"
    title = f"<title>{escape(tooltip)}</title>" if tooltip else ""
    inside = title + _SHAPES[kind] + (_CROSS if wrong else "")
    fill = "none" if wrong else colour
    return f'<g fill="{fill}" stroke="{colour}" stroke-width="1.5" transform="{where}">{inside}</g>'


def _headroom(axis: _Axis, limit: float, y: float, height: float) -> list[str]:
    """A bar across the row at the hardware limit and, shaded, what lies between it and ours; behind all marks."""
    x, one, colour = axis(limit), axis(1), _COLOURS["limit"]
    size = f'x="{min(x, one):.1f}" y="{y}" width="{abs(one - x):.1f}" height="{height}"'
    return [f'<rect {size} fill="{colour}" fill-opacity="0.16"/>', _path(f"M{x:.1f} {y}v{height}", "limit", 1, 2.5)]


def _grid(axis: _Axis, bottom: int) -> list[str]:
    drawn = [_path(f"M{axis(tick):.1f} {TOP}V{bottom}", "text", 0.2, 1) for tick in axis.ticks()]
    for y in (TOP - 7, bottom + 17):
        drawn += [_text(axis(tick), y, f"{tick:g}x", "text-anchor='middle'") for tick in axis.ticks()]
    return [*drawn, _path(f"M{axis(1):.1f} {TOP}V{bottom}", "ours", 0.7, 1.5)]


def _legend() -> list[str]:
    drawn, x = list[str](), 21.0
    for kind, name in (
        ("ours", "colbert_fast"),
        ("torch", "torch"),
        ("peer", "other libraries"),
        ("peer", "slower paths of a library"),
        ("peer", "wrong result"),
    ):
        drawn.append(_shape(kind, x, 61, "", name.startswith("wrong"), name.startswith("slower")))
        drawn.append(_text(x + 11, 65, name))
        x += 30 + _CHARACTER * len(name)
    drawn.append(_path(f"M{x:.1f} 54v14", "limit", 1, 2.5))
    return [*drawn, _text(x + 8, 65, "hardware limit, and our share of it")]


def _path(line: str, colour: str, opacity: float, width: float) -> str:
    return f'<path d="{line}" stroke="{_COLOURS[colour]}" stroke-opacity="{opacity:g}" stroke-width="{width:g}"/>'


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{" " if style else ""}{style}>{escape(text, quote=False)}</text>'
