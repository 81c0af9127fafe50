"""Write the benchmark tables of the README, and one SVG plot per machine, from benchmarks/results/*.json.

A section stands in the README, or in benchmarks/results/README.md if that has the markers for it.

    python -m benchmarks.report            rewrites what stands between <!-- benchmark:NAME:begin --> and :end
    python -m benchmarks.report --check    changes nothing; fails when the README or a plot disagrees with the results

No number in them is typed by hand. benchmarks/figures.py says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plot
from benchmarks.figures import (
    Entry,
    best,
    error,
    family,
    kind,
    limit,
    ms,
    rate,
    ratio,
    revision,
    seconds,
    setting,
    tiers,
    variant,
)
from benchmarks.tables import NOTES, SECTIONS

# The most thorough first.
_PROFILES = ("full", "quick", "smoke")
_MARKER = re.compile(r"<!-- benchmark:(\w+):(begin|end) -->")


class ReportError(ValueError):
    """The results or the README cannot be used; the message says why."""


def load(folder: Path) -> list[Entry]:
    """The runs in a folder, by machine: of each the one with the most thorough profile."""
    runs: dict[str, Entry] = {}
    for path in sorted(folder.glob("*.json")):
        run = _read(path)
        other = runs.setdefault(run["machine"]["name"], run)
        if other is not run and other["profile"] == run["profile"]:
            msg = f"{path}: {folder} holds another {run['profile']} run of {run['machine']['name']}"
            raise ReportError(msg)
        runs[run["machine"]["name"]] = min(other, run, key=lambda run: _PROFILES.index(run["profile"]))
    if not runs:
        msg = f"no results in {folder}: run the benchmarks first"
        raise ReportError(msg)
    return [runs[name] for name in sorted(runs)]


def _read(path: Path) -> Entry:
    try:
        run: Entry = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        msg = f"{path}: not JSON: {problem}"
        raise ReportError(msg) from None
    if run.get("schema") != 1:
        msg = f"{path}: this report reads schema 1; got {run.get('schema')!r}"
        raise ReportError(msg)
    if not re.fullmatch(r"[\w.-]+", run["machine"]["name"]):
        msg = f"{path}: a machine's name is made of letters, digits and .-_ only; got {run['machine']['name']!r}"
        raise ReportError(msg)
    return run


def svg(run: Entry) -> bytes:
    """The plot of one run."""
    machine = run["machine"]
    title = f"Time relative to colbert_fast on {machine['name']}: further right is slower"
    parts = [machine["cpu"], machine.get("gpu"), f"{machine['threads']} threads", f"{run['profile']} profile"]
    parts += ["noisy machine" if machine.get("noisy") else None, revision(run), run["date"][:10]]
    subtitle = ", ".join(filter(None, parts)) + ". Medians, log axis. ~ marks a noisy figure."
    return plot.draw(
        title, subtitle, [_plot_row(run, workload) for workload in run["workloads"] if workload["results"]]
    )


def _plot_row(run: Entry, workload: Entry) -> plot.Row:
    ours, shape = best(workload["results"], "ours"), setting(workload)
    if ours is None:
        return plot.Row(workload["name"], shape, (), note="no correct result of ours")
    marks, fastest = [], dict[str, Entry]()
    for entry in sorted(workload["results"], key=seconds):
        wrong = entry.get("wrong", False)
        minor = not wrong and fastest.setdefault(family(entry["contender"]), entry) is not entry
        if minor and entry["ours"]:
            continue
        label = f"{ms(ours)} ms, {variant(ours)}" if entry is ours else f"{entry['contender']} {ratio(entry, ours)}"
        label += f", {error(entry)}" if wrong else ""
        median, low, high = (entry["seconds"][edge] / seconds(ours) for edge in ("p50", "p20", "p80"))
        marks.append(plot.Mark(kind(entry), label, median, low, high, wrong, minor))
    bound = limit(run, workload, tiers(workload))
    share = rate(run, workload, ours, tiers(workload))[2]
    drawn = (f"{share} of {bound[0]} limit", bound[1] / seconds(ours)) if bound else None
    return plot.Row(workload["name"], shape, tuple(marks), drawn)


def splice(readme: str, bodies: dict[str, str]) -> str:
    """The README with each body between its markers. A body that is not empty needs exactly one pair of them."""
    found = _MARKER.findall(readme)
    if unknown := sorted({name for name, _ in found} - set(bodies)):
        msg = f"unknown marker benchmark:{unknown[0]}; there are {', '.join(bodies)}"
        raise ReportError(msg)
    for name, body in bodies.items():
        edges = [edge for other, edge in found if other == name]
        if not edges and not body:
            continue
        begin, end = (f"<!-- benchmark:{name}:{edge} -->" for edge in ("begin", "end"))
        index = found.index((name, "begin")) if "begin" in edges else 0
        if edges != ["begin", "end"] or found[index + 1] != (name, "end"):
            msg = f"needs one {begin} and, after it, before any other marker, one {end}; got {edges or 'neither'}"
            raise ReportError(msg)
        head, rest = readme.split(begin)
        content = f"\n\n{body}\n\n" if body else "\n"
        readme = f"{head}{begin}{content}{end}{rest.split(end)[1]}"
    return readme


def report(readme: Path, results: Path) -> dict[Path, bytes]:
    """What the documents and the plots should hold."""
    runs = load(results)
    plots = {results / f"{run['machine']['name']}.svg": svg(run) for run in runs}
    bodies = {}
    for name, section in SECTIONS.items():
        parts = [part for part in map(section, runs) if part]
        bodies[name] = "\n\n".join([NOTES[name], *parts] if parts and name in NOTES else parts)
    images = []
    for path in plots:
        source = Path(os.path.relpath(path, readme.parent)).as_posix()
        images.append(f"![Time of every contender relative to colbert_fast on {path.stem}]({source})")
    bodies["plot"] = "\n\n".join(images)
    documents = {readme: bodies}
    details = results / "README.md"
    if details.is_file():
        there = {name for name, _ in _MARKER.findall(details.read_text(encoding="utf-8"))}
        documents[details] = {name: body for name, body in bodies.items() if name in there}
        documents[readme] = {name: body for name, body in bodies.items() if name not in there}
    return {**{path: _spliced(path, parts) for path, parts in documents.items()}, **plots}


def _spliced(document: Path, bodies: dict[str, str]) -> bytes:
    try:
        return splice(document.read_text(encoding="utf-8"), bodies).encode()
    except ReportError as problem:
        msg = f"{document}: {problem}"
        raise ReportError(msg) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the README or a plot is stale")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="default: README.md")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="default: benchmarks/results")
    chosen = parser.parse_args(arguments)
    try:
        files = report(chosen.readme, chosen.results)
    except (OSError, ReportError) as problem:
        print(f"benchmarks.report: {problem}", file=sys.stderr)
        return 1
    stale = [path for path, content in files.items() if not path.is_file() or path.read_bytes() != content]
    for path in stale:
        if chosen.check:
            print(f"{path} disagrees with the results: run python -m benchmarks.report", file=sys.stderr)
        else:
            path.write_bytes(files[path])
            print(f"wrote {path}")
    return int(chosen.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
