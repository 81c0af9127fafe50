"""What a run has measured so far."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.model import NOISY_SPREAD, Entry, Result, Run, Workload, quantiles

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
        # By workload and contender. The workload of an encoder is never opened.
        self._results: dict[tuple[str, str], Result] = {}
        self._skipped: dict[tuple[str, str], str] = {}
        # By workload, contender, and the field of its result that gets the quantiles.
        self._rounds: dict[tuple[str, str, str], list[float]] = {}

    def __bool__(self) -> bool:
        return bool(self._workloads or self._results)

    def open(self, workload: Entry) -> None:
        """Begin a workload, or say more of one that has begun."""
        self._workloads[workload["name"]] = Workload(**workload)

    def add(self, workload: str, result: Entry, seconds: Iterable[float], **facts: Any) -> None:
        """Add rounds of a contender; the facts of its first turn stay."""
        self._results.setdefault((workload, result["contender"]), Result(**{**result, **facts}))
        self.add_also(workload, result["contender"], "seconds", seconds)

    def add_also(self, workload: str, contender: str, what: str, seconds: Iterable[float]) -> None:
        """Add another time of a contender that was added, such as that of the host."""
        if found := list(seconds):
            self._rounds.setdefault((workload, contender, what), []).extend(found)

    def note(self, workload: str, contender: str, **facts: Any) -> None:
        """Say more of a contender that was added."""
        vars(self._results[workload, contender]).update(facts)

    def skip(self, workload: str, contender: str, reason: str) -> None:
        """Say why a contender is not among a workload's results, unless it is."""
        self._skipped[workload, contender] = reason

    def _moment(self, workload: str) -> str:
        return self._workloads[workload].moment if workload in self._workloads else ""

    def report(self, about: Entry, order: Sequence[str], packages: Iterable[str]) -> Entry:
        """Return the content of the file.

        Parameters
        ----------
        about
            The profile, the command, the machine and its limits.
        order
            The contenders by name; the results of a workload stand in this order.
        packages
            Distributions whose versions are reported.
        """
        for (name, contender, what), rounds in self._rounds.items():
            setattr(self._results[name, contender], what, quantiles(rounds))
        for result in self._results.values():
            result.noisy = (result.seconds["p80"] - result.seconds["p20"]) / result.p50 > NOISY_SPREAD
        for workload in self._workloads.values():
            own = [result for (name, _), result in self._results.items() if name == workload.name]
            workload.results = sorted(own, key=lambda result: order.index(result.contender))
            workload.skipped = [
                {"contender": contender, "reason": reason}
                for (name, contender), reason in self._skipped.items()
                if name == workload.name and (name, contender) not in self._results
            ]
        # In the middle of other work, times spread on every machine.
        rested = [found for (name, _), found in self._results.items() if not self._moment(name)]
        noisy = sum(result.noisy for result in rested) > machine.MAX_NOISY * len(rested)
        about = {"date": self.date, "commit": self.commit, "dirty": self.dirty, **about}
        about["machine"] = {**about["machine"], "noisy": about["machine"]["noisy"] or noisy}
        versions = {name.replace("colbert-fast", "colbert_fast"): machine.version(name) for name in packages}
        return Run(
            **about,
            versions={name: version for name, version in versions.items() if version is not None},
            workloads=list(self._workloads.values()),
            encoding=[result for (name, _), result in self._results.items() if name not in self._workloads],
        ).json()


def as_text(report: Entry) -> list[str]:
    """Lay the content of a file out for the terminal, the fastest first."""
    run = Run.of(report)
    lines = []
    for workload in (*run.workloads, *run.encoders()):
        lines += ["", f"{workload.name}: {workload.shape}".rstrip(": ")]
        lines += map(_line, sorted(workload.results, key=lambda result: result.p50))
    return lines


def _line(result: Result) -> str:
    p20, p50, p80 = (result.seconds[name] * 1e3 for name in ("p20", "p50", "p80"))
    times = f"{p50:>11.3f} ms  [{p20:.3f}, {p80:.3f}] x {result.seconds['rounds']}"
    error = "" if result.max_relative_error is None else f"  error {result.max_relative_error:.1e}"
    also = {"host": result.host, "wall": result.wall, "graph": result.graph}
    words = [f"{what} {1e3 * found['p50']:.3f}" for what, found in also.items() if found]
    words += [name for name in ("noisy", "wrong") if getattr(result, name)]
    return f"  {result.contender:<46}{times}{error}  {' '.join(words)}".rstrip()
