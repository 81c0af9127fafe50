"""Write the benchmark tables of the documents, and one SVG plot per machine, from benchmarks/results/*.json.

    python -m benchmarks.report            rewrites what stands between <!-- benchmark:NAME:begin --> and :end
    python -m benchmarks.report --check    changes nothing; fails when a document or a plot disagrees with the results

README.md has the short table, `summary`. Every other section stands where its marker is: in docs/performance.md, in
docs/collections.md, whose results are in the folder search, or in the README.md beside the results. No number is typed
by hand. benchmarks/model.py says what the figures mean.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.model import Entry, ReportError, Run, load
from benchmarks.plot import svg
from benchmarks.search import tables as search
from benchmarks.tables import NOTES, SECTIONS, summary

_MARKER = re.compile(r"<!-- benchmark:(\w+):(begin|end) -->")


def splice(document: str, bodies: dict[str, str]) -> str:
    """The document with the bodies between their markers. A marker has one beginning and, after it, one end."""
    found = _MARKER.findall(document)
    if unknown := sorted({name for name, _ in found} - set(bodies)):
        msg = f"unknown marker benchmark:{unknown[0]}; there are {', '.join(bodies)}"
        raise ReportError(msg)
    for name in dict.fromkeys(name for name, _ in found):
        edges = [edge for other, edge in found if other == name]
        begin, end = (f"<!-- benchmark:{name}:{edge} -->" for edge in ("begin", "end"))
        old = re.search(f"{begin}((?!{_MARKER.pattern}).)*{end}", document, re.DOTALL)
        if edges != ["begin", "end"] or old is None:
            msg = f"needs one {begin} and, after it, before any other marker, one {end}; got {edges}"
            raise ReportError(msg)
        content = f"\n\n{bodies[name]}\n\n" if bodies[name] else "\n"
        document = f"{document[: old.start()]}{begin}{content}{end}{document[old.end() :]}"
    return document


def _images(plots: Sequence[Path], folder: Path) -> str:
    """The plots, as a document in a folder shows them."""
    links = {path.stem: Path(os.path.relpath(path, folder)).as_posix() for path in plots}
    return "\n\n".join(
        f"![Time of every contender relative to colbert_fast on {name}]({link})" for name, link in links.items()
    )


def _bodies(runs: Sequence[Run], searches: list[Entry], plots: Sequence[Path], folder: Path) -> dict[str, str]:
    """All sections, for a document in a folder."""
    short = summary(runs)
    # The first plot belongs to the machine of the first rows.
    bodies = {"summary": f"{short}\n\n{_images(plots[:1], folder)}" if short else "", "plot": _images(plots, folder)}
    for name, section in SECTIONS.items():
        parts = [part for part in map(section, runs) if part]
        bodies[name] = "\n\n".join([NOTES[name], *parts] if parts and name in NOTES else parts)
    return {**bodies, "search": search.search(searches), "scale": search.scale(searches)}


def report(readme: Path, results: Path) -> dict[Path, bytes]:
    """What the documents and the plots should hold."""
    runs, searches = load(results), search.load(results / "search")
    docs = readme.parent / "docs"
    plots = {docs / "images" / f"{run.machine['name']}.svg": svg(run) for run in runs}
    others = (docs / "performance.md", docs / "collections.md", results / "README.md")
    texts = {path: path.read_text(encoding="utf-8") for path in (readme, *filter(Path.is_file, others))}
    for name, body in _bodies(runs, searches, list(plots), readme.parent).items():
        places = [str(path) for path, text in texts.items() if f"<!-- benchmark:{name}:" in text]
        if len(places) > 1 or (body and not places):
            msg = f"one of {', '.join(map(str, texts))} needs the marker benchmark:{name}; got it in {places or 'none'}"
            raise ReportError(msg)
    files = dict(plots)
    for path, text in texts.items():
        try:
            files[path] = splice(text, _bodies(runs, searches, list(plots), path.parent)).encode()
        except ReportError as problem:
            msg = f"{path}: {problem}"
            raise ReportError(msg) from None
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a document or a plot is stale")
    parser.add_argument(
        "--readme", type=Path, default=Path("README.md"), help="docs/ lies beside it (default: README.md)"
    )
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
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[path])
            print(f"wrote {path}")
    return int(chosen.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
