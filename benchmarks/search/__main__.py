"""Search a collection with every contender, and write what it took into benchmarks/results/search.

    python -m benchmarks.search --corpus FOLDER      a folder in BEIR's layout, encoded with the demo's model
    python -m benchmarks.search --documents 100000   synthetic embeddings: to encode as many texts takes hours

Each contender gets one thread, and processes of its own: one builds its index, and one searches for each of its
settings. `--python` names the interpreter of another environment, for contenders whose library is not in this one.
`python -m benchmarks.report` writes the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.search import SCHEMA
from benchmarks.search.data import Data, of_collection, synthetic
from benchmarks.search.index import Index
from benchmarks.search.worker import INDEXES

# Variables by which libraries know how many threads to take. With one thread for input and output, or one core, LanceDB
# waits for itself for ever when it makes an index.
THREADS = (
    *(f"{name}_NUM_THREADS" for name in ("OMP", "MKL", "OPENBLAS", "RAYON", "COLBERT_FAST")),
    "LANCE_CPU_THREADS",
)


def prepared(folder: Path, make: Any) -> Data:
    """Read the data from a folder, or make them there first."""
    if not (folder / "about.json").is_file():
        make().write(folder)
    return Data.read(folder)


class Runner:
    """Runs contenders in processes of their own."""

    def __init__(self, data: Path, work: Path, k: int, seconds: float, limit: float, pythons: Sequence[str]) -> None:
        self._arguments = [str(data), str(work), str(k), str(seconds)]
        self._work = work
        self._limit = limit
        self._pythons = pythons

    def rows(self, index: Index) -> list[dict[str, Any]]:
        """Build an index, search it with each of its settings, and take it away again."""
        found = [(python, version) for python in self._pythons if (version := _version(python, index))]
        about = {"index": index.name, "package": index.package, "ours": index.package == "colbert-fast"}
        if not found:
            return [{**about, "setting": "", "failed": f"{index.package} is not installed"}]
        python, version = found[0]
        about["version"] = version
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        try:
            built = self._run(python, index.name) if index.build else {}
            if "failed" in built:
                return [{**about, "setting": "", "failed": f"building: {built['failed']}"}]
            return [
                {
                    **about,
                    "setting": name,
                    "in_memory": index.build is None,
                    **built,
                    **self._run(python, index.name, name),
                }
                for name in index.settings
            ]
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _run(self, python: str, *arguments: str) -> dict[str, Any]:
        command = [python, "-m", "benchmarks.search.worker", *self._arguments, *arguments]
        variables = dict.fromkeys(THREADS, "1")
        try:
            done = subprocess.run(
                command,
                cwd=machine.ROOT,
                env={**os.environ, **variables},
                capture_output=True,
                text=True,
                timeout=self._limit,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"more than {self._limit:.0f} s"}
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return {"failed": lines[-1][:300]}
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


def _version(python: str, index: Index) -> str | None:
    """Return the version of the library in an environment, or None."""
    code = (
        "import importlib.metadata as m, importlib.util as u, sys; "
        "print(m.version(sys.argv[1]) if u.find_spec(sys.argv[2]) else '')"
    )
    done = subprocess.run([python, "-c", code, index.package, index.module], capture_output=True, text=True)
    return done.stdout.strip() or None


def this_run() -> dict[str, Any]:
    """Return when this run began, at which commit, and whether others used the machine."""
    commit, dirty = machine.commit()
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"date": date, "commit": commit, "dirty": dirty, "noisy": machine.is_loaded()}


def content(data: Data, k: int) -> dict[str, Any]:
    """Return what a file of results says beside its rows."""
    described = machine.describe(threads=1)
    del described["noisy"]  # each row says it of its run
    about = {
        "name": data.about["name"],
        "source": data.about["source"],
        "documents": len(data.lengths),
        "tokens": len(data.documents),
        "dim": data.documents.shape[1],
        "queries": len(data.query_lengths),
        "query_tokens": float(data.query_lengths.mean()),
    }
    return {"schema": SCHEMA, "machine": described, "data": about, "k": k, "rows": []}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 1 where one of ours failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", type=Path, metavar="FOLDER", help="corpus.jsonl, queries.jsonl and qrels/test.tsv")
    source.add_argument("--documents", type=int, metavar="N", help="so many synthetic documents of 70 tokens")
    parser.add_argument("--dim", type=int, default=128, help="numbers a token (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=200, metavar="N", help="at most (default: %(default)s)")
    parser.add_argument("--k", type=int, default=10, help="documents to find (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=INDEXES, help=f"of {', '.join(INDEXES)}")
    parser.add_argument(
        "--seconds", type=float, default=120, help="no further query after so long (default: %(default)s)"
    )
    parser.add_argument("--limit", type=float, default=3600, help="seconds for one process (default: %(default)s)")
    parser.add_argument("--python", action="append", default=[], metavar="PATH", help="of another environment")
    parser.add_argument(
        "--work", type=Path, default=Path("build/search"), help="data and indexes (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/search"), help="default: %(default)s")
    chosen = parser.parse_args(arguments)
    if chosen.corpus:
        name = f"{chosen.corpus.resolve().name}-{chosen.dim}-{chosen.queries}"
    else:
        name = f"synthetic-{chosen.documents}-{chosen.dim}-{chosen.queries}"
    folder = chosen.work.resolve() / name
    data = prepared(
        folder,
        lambda: (
            of_collection(chosen.corpus, chosen.queries, chosen.dim)
            if chosen.corpus
            else synthetic(chosen.documents, chosen.queries, chosen.dim)
        ),
    )
    pythons = [sys.executable, *(str(Path(path).absolute()) for path in chosen.python)]
    runner = Runner(folder, folder / "index", chosen.k, chosen.seconds, chosen.limit, pythons)
    run, found = this_run(), content(data, chosen.k)
    path = chosen.results / f"{found['machine']['name']}-{found['data']['name']}.json"
    # Rows that are not measured now stay. Each row names its run.
    if chosen.only and path.is_file():
        found["rows"] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for name in chosen.only or INDEXES:
        rows = [{**row, "run": run} for row in runner.rows(INDEXES[name])]
        for row in rows:
            print(_line(row), flush=True)
        kept = [row for row in found["rows"] if row["index"] != name]
        found["rows"] = sorted([*kept, *rows], key=lambda row: list(INDEXES).index(row["index"]))
        chosen.results.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(row["ours"] and "failed" in row for row in found["rows"]))


def _line(row: dict[str, Any]) -> str:
    name = f"{row['index']} {row['setting']}".strip()
    if "failed" in row:
        return f"{name:40} {row['failed']}"
    return f"{name:40} {1e3 * row['cpu']['p50']:9.2f} CPU ms a query, {100 * row['overlap']:5.1f} % of the best"


if __name__ == "__main__":
    raise SystemExit(main())
