"""The tables of docs/collections.md, from benchmarks/results/search/*.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.model import ReportError, digits
from benchmarks.search import SCHEMA
from benchmarks.search.worker import INDEXES
from benchmarks.tables import cell, details, table

Entry = dict[str, Any]
# What a passage is in the table of sizes and times, and how many of them.
PASSAGE = 70
SIZES = (100_000, 1_000_000, 10_000_000)

NOTE = (
    "CPU milliseconds of one query, the median, with one thread; below it the middle 60 %, and how many queries were "
    "asked in the time that each contender has. *The best* is the share of the exact ten best that were found, and "
    "*first* how often the first document was the right one. *Read* is how many documents were scored by their own "
    "tokens, on average, where the library says it. nDCG@10 stands beside that of the exact ranking for the "
    "same queries. Memory is the most that the searching process held, mapped files and Python included."
)
SCALE_NOTE = (
    "Computed from the lines of the same names for {name}: time grows with the tokens. A passage is {passage} tokens "
    "of {dim} numbers, a query {query_tokens:.0f} tokens. Several cores share the work, as long as memory is fast "
    "enough: one core reads {rate} GB/s in this table."
)


def load(folder: Path) -> list[Entry]:
    """The runs in a folder, the smallest collection first."""
    runs = []
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if run.get("schema") != SCHEMA:
            msg = f"{path}: this report reads schema {SCHEMA} of a search; got {run.get('schema')!r}"
            raise ReportError(msg)
        runs.append(run)
    return sorted(runs, key=lambda run: (run["data"]["tokens"], run["machine"]["name"]))


def search(runs: list[Entry]) -> str:
    """Every contender, a table for each collection."""
    return "\n\n".join([NOTE, *map(_run, runs)]) if runs else ""


def _run(run: Entry) -> str:
    data, machine = run["data"], run["machine"]
    heading = (
        f"**{data['name']}**: {data['documents']:,} documents, {data['tokens']:,} tokens of {data['dim']} numbers, "
        f"{data['source']}; k = {run['k']}. {machine['name']}; {_runs(run['rows'])}."
    )
    rows = [row for row in run["rows"] if "failed" not in row]
    judged = any("ndcg_10" in row for row in rows)
    header = ["contender", "CPU ms a query", "the best", "first", "read", *(["nDCG@10"] if judged else [])]
    header += ["on disk, MB", "memory, MB", "to build, CPU s"]
    body = [_row(row, judged) for row in rows]
    failed = [f"- {_name(row)}: {row['failed']}" for row in run["rows"] if "failed" in row]
    failed += [f"- {name}: not run" for name in INDEXES if name not in {row["index"] for row in run["rows"]}]
    left_out = [details(f"Not measured on {data['name']}, and why", "\n".join(failed))] if failed else []
    return "\n\n".join([heading, table(header, body), *left_out])


def _runs(rows: list[Entry]) -> str:
    """Name the runs that measured the rows."""
    runs = {row["run"]["date"]: row["run"] for row in rows}
    said = []
    for date, run in sorted(runs.items()):
        commit = f"commit {run['commit'][:10]}" if run["commit"] else "commit unknown"
        noisy = ", **noisy machine**" if run["noisy"] else ""
        said.append(f"{commit}{' (dirty)' if run['dirty'] else ''}, {date.replace('T', ' ')[:16]}{noisy}")
    return said[0] if len(said) == 1 else f"joined from {len(said)} runs: {'; '.join(said)}"


def _name(row: Entry) -> str:
    return f"{row['index']}, {row['setting']}" if row["setting"] else str(row["index"])


def _row(row: Entry, judged: bool) -> list[str]:
    name = f"**{_name(row)}**" if row["ours"] else _name(row)
    time = row["cpu"]
    cells = [
        cell(name),
        cell(
            digits(1e3 * time["p50"]),
            f"{digits(1e3 * time['p20'])}-{digits(1e3 * time['p80'])}, {row['queries']} queries",
        ),
        f"{100 * row['overlap']:.1f} %",
        f"{100 * row['first']:.1f} %",
        "-" if row["read"] is None else f"{row['read']:,.0f}",
    ]
    if judged:
        cells.append(f"{row['ndcg_10']:.4f} ({row['exact_ndcg_10']:.4f})")
    return [
        *cells,
        "in memory" if row["in_memory"] else digits(row["size"] / 1e6),
        digits(row["peak_memory"] / 1e6) if row["peak_memory"] else "-",
        digits(row["build_cpu"]),
    ]


def scale(runs: list[Entry]) -> str:
    """How long ours takes for more passages than were measured."""
    if not runs:
        return ""
    run = runs[-1]
    data = run["data"]
    rows = [row for row in run["rows"] if row["ours"] and "failed" not in row and not row["in_memory"]]
    if not rows:
        return ""
    body, rates = [], []
    for row in rows:
        nanoseconds = 1e9 * row["cpu"]["p50"] / data["tokens"]
        read = bytes_read(row["index"].removeprefix("Collection "), data["dim"])
        rates.append(read / nanoseconds)
        times = [f"{digits(nanoseconds * PASSAGE * size / 1e9)} s" for size in SIZES]
        body.append([cell(_name(row)), f"{read}", digits(nanoseconds), *times])
    header = ["codes", "bytes read a token", "ns a token", *(f"{size:,} passages" for size in SIZES)]
    note = SCALE_NOTE.format(**data, passage=PASSAGE, rate=digits(max(rates), 2))
    return f"{note}\n\n{table(header, body)}"


def bytes_read(codes: str, dim: int) -> int:
    """Return the bytes of a token that a scan reads: one plane of its numbers, its multiplier and its slack."""
    bits = {"int8": 8, "int4+4": 4, "int4": 4, "int2": 2, "int1": 1}[codes]
    return -(-dim // (8 // bits)) + 4
