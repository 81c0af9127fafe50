"""What a run has measured so far."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.model import Entry, Result, Run, Workload, quantiles

if TYPE_CHECKING:
    from benchmarks.contender import Contender
    from colbert_fast import bench


def workload_entry(workload: bench.Workload, inputs: bench.Inputs | None = None) -> Entry:
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


def result_entry(contender: Contender, workload: bench.Workload) -> Entry:
    """Describe a contender, without what is measured of it."""
    return {
        "contender": contender.name,
        "ours": contender.kind == "ours",
        "kind": contender.kind,
        "backend": contender.backend_of(workload),
        "version": contender.version,
    }


class Recorder:
    """Everything measured in a run."""

    def __init__(self) -> None:
        self.commit, self.dirty = machine.commit()
        self.date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._workloads: dict[str, Workload] = {}
        # By workload and contender: what is known, and the rounds of each of its times.
        self._results: dict[tuple[str, str], tuple[Result, dict[str, list[float]]]] = {}
        self._skipped: dict[tuple[str, str], str] = {}
        self._encoding: dict[tuple[str, str], tuple[Result, list[float]]] = {}

    def __bool__(self) -> bool:
        return bool(self._workloads or self._encoding)

    def open(self, workload: Entry) -> None:
        """Begin a workload, or say more of one that has begun."""
        self._workloads[workload["name"]] = Workload(**workload)

    def add(self, workload: str, result: Entry, seconds: Iterable[float], **facts: Any) -> None:
        """Add rounds of a contender; the facts of its first turn stay."""
        place = workload, result["contender"]
        if place not in self._results:
            self._results[place] = Result(**{**result, **facts}), {}
        self.add_also(*place, "seconds", seconds)

    def add_also(self, workload: str, contender: str, what: str, seconds: Iterable[float]) -> None:
        """Add another time of a contender that was added, such as that of the host."""
        if found := list(seconds):
            self._results[workload, contender][1].setdefault(what, []).extend(found)

    def note(self, workload: str, contender: str, **facts: Any) -> None:
        """Say more of a contender that was added."""
        for name, value in facts.items():
            setattr(self._results[workload, contender][0], name, value)

    def skip(self, workload: str, contender: str, reason: str) -> None:
        """Say why a contender is not among a workload's results, unless it is."""
        self._skipped[workload, contender] = reason

    def add_encoding(self, name: str, contender: str, seconds: Iterable[float], **facts: Any) -> None:
        """Add rounds of an encoder."""
        kind = "ours" if facts["ours"] else "peer"
        first = Result(contender, name=name, kind=kind, **facts), list[float]()
        self._encoding.setdefault((name, contender), first)[1].extend(seconds)

    def run(self, about: Entry, order: Sequence[str], packages: Iterable[str]) -> Run:
        """Return what was measured.

        Parameters
        ----------
        about
            The profile, the command, the machine and its limits.
        order
            The contenders by name; the results of a workload stand in this order.
        packages
            Distributions whose versions are reported.
        """
        for workload in self._workloads.values():
            own = [(result, rounds) for place, (result, rounds) in self._results.items() if place[0] == workload.name]
            workload.results = sorted((result for result, _ in own), key=lambda result: order.index(result.contender))
            workload.skipped = [
                {"contender": contender, "reason": reason}
                for (name, contender), reason in self._skipped.items()
                if name == workload.name and (name, contender) not in self._results
            ]
            for result, rounds in own:
                result.close(rounds["seconds"])
                for what in rounds.keys() - {"seconds"}:
                    setattr(result, what, quantiles(rounds[what]))
        for result, seconds in self._encoding.values():
            result.close(seconds)
        encoding = [result for result, _ in self._encoding.values()]
        results = [*encoding, *(result for result, _ in self._results.values())]
        noisy = sum(result.noisy for result in results) > machine.MAX_NOISY * len(results)
        versions = {name.replace("colbert-fast", "colbert_fast"): machine.version(name) for name in packages}
        return Run(
            **{
                "date": self.date,
                "commit": self.commit,
                "dirty": self.dirty,
                **about,
                "machine": {**about["machine"], "noisy": about["machine"]["noisy"] or noisy},
                "versions": {name: version for name, version in versions.items() if version is not None},
                "workloads": list(self._workloads.values()),
                "encoding": encoding,
            }
        )

    def report(self, about: Entry, order: Sequence[str], packages: Iterable[str]) -> Entry:
        """Return the content of the file."""
        return self.run(about, order, packages).json()


def as_text(report: Entry) -> list[str]:
    """Lay the content of a file out for the terminal, the fastest first."""
    run = Run.of(report)
    groups = {f"{workload.name}: {workload.shape}": workload.results for workload in run.workloads}
    for result in run.encoding:
        groups.setdefault(str(result.name), []).append(result)
    return [line for name, results in groups.items() for line in ("", name, *_lines(results))]


def _lines(results: Sequence[Result]) -> list[str]:
    lines = []
    for result in sorted(results, key=lambda result: result.p50):
        p20, p50, p80 = (result.seconds[name] * 1e3 for name in ("p20", "p50", "p80"))
        error = "" if result.max_relative_error is None else f"  error {result.max_relative_error:.1e}"
        also = {"host": result.host, "wall": result.wall, "graph": result.graph}
        words = [f"{what} {1e3 * found['p50']:.3f}" for what, found in also.items() if found]
        words += [name for name in ("noisy", "wrong") if getattr(result, name)]
        times = f"{p50:>11.3f} ms  [{p20:.3f}, {p80:.3f}] x {result.seconds['rounds']}"
        lines.append(f"  {result.contender:<46}{times}{error}  {' '.join(words)}".rstrip())
    return lines
