"""What a run has measured so far, as the plain dictionaries that become its JSON file."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks import machine

if TYPE_CHECKING:
    from benchmarks.contender import Contender
    from colbert_fast.bench import Inputs, Workload

Entry: TypeAlias = dict[str, Any]
# A result whose middle 60 % of rounds spread further than this, relative to the median, is noisy.
NOISY_SPREAD = 0.25


def workload_entry(workload: Workload, inputs: Inputs | None = None) -> Entry:
    """Describe a workload; without its inputs, with documents as long as they may be."""
    tokens, query_tokens = workload.nd * workload.ld, workload.nq * workload.lq
    size = (tokens + query_tokens) * workload.dim * workload.dtype.itemsize if inputs is None else int(inputs.bytes)
    return {
        "name": workload.name,
        "source": workload.source,
        "shape": workload.shape,
        "bytes": size,
        "flops": 2.0 * tokens * query_tokens * workload.dim if inputs is None else inputs.flops,
        "cold": machine.is_cold(workload, size),
        "device": workload.device,
        "dtype": "int8" if workload.quantized else str(workload.dtype).removeprefix("torch."),
    }


def result_entry(contender: Contender, workload: Workload) -> Entry:
    """Describe a contender, without what is measured of it."""
    return {
        "contender": contender.name,
        "ours": contender.kind == "ours",
        "kind": contender.kind,
        "backend": contender.backend_of(workload),
        "version": contender.version,
        "peak_memory": None,
    }


class Recorder:
    """Everything measured in a run."""

    def __init__(self) -> None:
        self.commit, self.dirty = machine.commit()
        self.date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._workloads: dict[str, Entry] = {}
        self._encoding: dict[tuple[str, str], Entry] = {}

    def __bool__(self) -> bool:
        return bool(self._workloads or self._encoding)

    def open(self, workload: Entry) -> None:
        """Begin a workload, or say more of one that has begun."""
        empty: Entry = {**workload, "results": {}, "skipped": {}}
        self._workloads.setdefault(workload["name"], empty).update(workload)

    def add(self, workload: str, result: Entry, seconds: Iterable[float], **facts: Any) -> None:
        """Add rounds of a contender; the facts of its first turn stay."""
        name = result["contender"]
        self._workloads[workload]["results"].setdefault(name, {**result, **facts, "rounds": []})["rounds"] += seconds

    def add_also(self, workload: str, contender: str, what: str, seconds: Iterable[float]) -> None:
        """Add another time of a contender that was added, such as that of the host."""
        if found := list(seconds):
            self._workloads[workload]["results"][contender].setdefault("also", {}).setdefault(what, []).extend(found)

    def note(self, workload: str, contender: str, **facts: Any) -> None:
        """Say more of a contender that was added."""
        self._workloads[workload]["results"][contender].update(facts)

    def skip(self, workload: str, contender: str, reason: str) -> None:
        """Say why a contender is not among a workload's results, unless it is."""
        if contender not in self._workloads[workload]["results"]:
            self._workloads[workload]["skipped"][contender] = reason

    def add_encoding(self, name: str, contender: str, seconds: Iterable[float], **facts: Any) -> None:
        """Add rounds of an encoder."""
        first = {"name": name, "contender": contender, "rounds": [], **facts}
        self._encoding.setdefault((name, contender), first)["rounds"] += seconds

    def report(self, run: Entry, order: Sequence[str], packages: Iterable[str]) -> Entry:
        """Return the file's content.

        Parameters
        ----------
        run
            The profile, the command, the machine and its limits.
        order
            The contenders by name; the results of a workload stand in it.
        packages
            Distributions whose versions are reported.
        """
        workloads = []
        for workload in self._workloads.values():
            results = sorted(workload["results"].values(), key=lambda result: order.index(result["contender"]))
            skipped = [
                {"contender": name, "reason": reason}
                for name, reason in workload["skipped"].items()
                if name not in workload["results"]
            ]
            workloads.append({**workload, "results": [_closed(result) for result in results], "skipped": skipped})
        encoding = [_closed(result) for result in self._encoding.values()]
        results = [*encoding, *(result for workload in workloads for result in workload["results"])]
        noisy = sum(result["noisy"] for result in results) > machine.MAX_NOISY * len(results)
        versions = {name.replace("colbert-fast", "colbert_fast"): machine.version(name) for name in packages}
        return {
            "schema": 1,
            "date": self.date,
            "commit": self.commit,
            "dirty": self.dirty,
            "seed": 0,
            **run,
            "machine": {**run["machine"], "noisy": run["machine"]["noisy"] or noisy},
            "versions": {name: version for name, version in versions.items() if version is not None},
            "workloads": workloads,
            "encoding": encoding,
        }


def _closed(result: Entry) -> Entry:
    """Replace the rounds by their quantiles."""
    facts = {name: value for name, value in result.items() if name not in ("rounds", "also")}
    seconds = quantiles(result["rounds"])
    also = {what: quantiles(rounds) for what, rounds in result.get("also", {}).items()}
    noisy = (seconds["p80"] - seconds["p20"]) / seconds["p50"] > NOISY_SPREAD
    return {**facts, **also, "seconds": seconds, "noisy": noisy}


def quantiles(rounds: list[float]) -> Entry:
    """The median, the edges of the middle 60 %, and the number of rounds."""
    if len(rounds) == 1:
        return {**dict.fromkeys(("p20", "p50", "p80"), rounds[0]), "rounds": 1}
    fifths = statistics.quantiles(rounds, n=5, method="inclusive")
    return {"p20": fifths[0], "p50": statistics.median(rounds), "p80": fifths[3], "rounds": len(rounds)}


def as_text(report: Entry) -> list[str]:
    """Lay a report out for the terminal, the fastest first."""
    lines = []
    for workload in report["workloads"]:
        lines += ["", f"{workload['name']}: {workload['shape']}"]
        lines += [_line(result) for result in sorted(workload["results"], key=lambda r: r["seconds"]["p50"])]
    for name in dict.fromkeys(result["name"] for result in report["encoding"]):
        lines += ["", name]
        lines += [_line(result) for result in report["encoding"] if result["name"] == name]
    return lines


def _line(result: Entry) -> str:
    p20, p50, p80 = (result["seconds"][name] * 1e3 for name in ("p20", "p50", "p80"))
    error = "" if result["max_relative_error"] is None else f"  error {result['max_relative_error']:.1e}"
    also = [f"{what} {1e3 * result[what]['p50']:.3f}" for what in ("host", "wall", "graph") if result.get(what)]
    marks = [name for name in ("noisy", "wrong") if result.get(name)]
    return (
        f"  {result['contender']:<46}{p50:>11.3f} ms  [{p20:.3f}, {p80:.3f}] x {result['seconds']['rounds']}"
        f"{error}  {' '.join([*also, *marks])}".rstrip()
    )
