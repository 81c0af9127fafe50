"""What a run measured: the content of ``benchmarks/results/<machine>.json``, and what its figures mean.

A ratio is a contender's median time over ours. Ours is a call that names no backend. A ratio above 1 says that ours is
faster. A wrong result is never the fastest.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
# A result whose middle 60 % of rounds spread further than this, relative to the median, is noisy.
NOISY_SPREAD = 0.25
# The calls of ours that ask for nothing special, of scores and of an encoder: others are compared with them.
PLAIN_ENCODER = "colbert_fast models.ColBERT.scores"
PLAIN = ("colbert_fast", PLAIN_ENCODER)
# The most thorough first.
PROFILES = ("full", "quick", "smoke")
Quantiles = dict[str, float]
Entry = dict[str, Any]


class ReportError(ValueError):
    """The results or a document cannot be used; the message says why."""


def digits(value: float, significant: int = 3) -> str:
    """A number with so many significant digits and no exponent."""
    value = float(f"{value:.{significant - 1}e}")
    return f"{value:.{max(significant - 1 - math.floor(math.log10(value)), 0)}f}" if value > 0 else "0"


def quantiles(rounds: Sequence[float]) -> Quantiles:
    """The median, the edges of the middle 60 %, what nine of ten rounds do not exceed, and the number of rounds."""
    # Imported here, for the report reads results without torch.
    from colbert_fast.bench import quantiles

    p90 = sorted(rounds)[math.ceil(0.9 * len(rounds)) - 1]
    return {**dict(zip(("p20", "p50", "p80"), quantiles(rounds), strict=True)), "p90": p90, "rounds": len(rounds)}


@dataclass
class Result:
    """One contender on one workload, or one encoder. Times are in seconds; what was not measured is None."""

    contender: str
    seconds: Quantiles = field(default_factory=dict)
    ours: bool = False
    kind: str = "peer"
    """Whose result it is: "ours", "torch" or "peer"."""
    backend: str | None = None
    version: str | None = None
    noisy: bool = False
    wrong: bool = False
    max_relative_error: float | None = None
    kendall_tau: float | None = None
    first_call: float | None = None
    packing: float | None = None
    peak_memory: int | None = None
    host: Quantiles | None = None
    wall: Quantiles | None = None
    graph: Quantiles | None = None
    no_graph: str | None = None
    gradient_error: float | None = None
    name: str | None = None
    """The workload of an encoder."""
    pairs: int | None = None

    @property
    def p50(self) -> float:
        """The median."""
        return self.seconds["p50"]

    @property
    def family(self) -> str:
        """The library: "maxsim-cpu maxsim_scores_variable" is one of maxsim-cpu's paths."""
        return self.contender.split()[0]

    @property
    def variant(self) -> str:
        """Which of our paths it is: the backend, and the layout if that is not the workload's own."""
        return self.contender.partition(" ")[2] or str(self.backend)

    @property
    def ms(self) -> str:
        """The median in milliseconds."""
        return tilde(self) + digits(1e3 * self.p50)

    @property
    def spread(self) -> str:
        """p20 and p80 in milliseconds."""
        return "-".join(digits(1e3 * self.seconds[edge]) for edge in ("p20", "p80"))

    @property
    def error(self) -> str:
        """The largest relative error; in per cent, and called wrong, where the suite found the result wrong."""
        if self.max_relative_error is None:
            return "wrong" if self.wrong else "-"
        return f"wrong, error {100 * self.max_relative_error:.2g} %" if self.wrong else f"{self.max_relative_error:.1e}"

    def ratio(self, ours: Result | None) -> str:
        """Its time over ours."""
        if ours is None:
            return "-"
        times = self.p50 / ours.p50
        text = digits(times, 2) if times < 0.995 else f"{times:.1f}" if times < 9.95 else f"{times:.0f}"
        return f"{tilde(self, ours)}{text}x"

    def beats(self, ours: Result | None) -> bool:
        """Whether it is correct and faster than ours, by what two decimals can show."""
        return ours is not None and not self.wrong and self.p50 < 0.995 * ours.p50


def _results(entry: Entry, name: str = "results") -> list[Result]:
    """Read results; older files say of encoders only whether they are ours."""
    return [Result(**{"kind": "ours" if result["ours"] else "peer", **result}) for result in entry[name]]


def tilde(*results: Result) -> str:
    """The mark of a figure that rests on a noisy one."""
    return "~" if any(result.noisy for result in results) else ""


def best(results: Iterable[Result], kind: str) -> Result | None:
    """The fastest correct result of a kind; of ours the call that names no backend, if there is one."""
    right = [result for result in results if result.kind == kind and not result.wrong]
    if kind == "ours":
        right = [result for result in right if result.contender in PLAIN] or right
    return min(right, key=lambda result: result.p50, default=None)


@dataclass
class Workload:
    """A workload, and who scored it."""

    name: str
    shape: str
    bytes: float = 0.0
    """Bytes that must be read at least once."""
    flops: float = 0.0
    cold: bool = True
    """Whether the documents come from memory in every round."""
    device: str = "cpu"
    dtype: str | None = None
    source: str = ""
    """Who asks for it."""
    moment: str = ""
    """What the program does beside it (benchmarks/mixed.py); empty where everything else rests."""
    results: list[Result] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def best(self, kind: str) -> Result | None:
        """The fastest correct result of a kind."""
        return best(self.results, kind)

    @property
    def setting(self) -> str:
        """The shape, and whether the documents come from memory or may be in a cache."""
        return f"{self.shape}, {'cold' if self.cold else 'warm'}"

    @property
    def tiers(self) -> list[str]:
        """Our backends that gave a correct result; the best of their peaks bounds the workload."""
        return [str(result.backend) for result in self.results if result.ours and not result.wrong]


@dataclass
class Run:
    """One file of results."""

    machine: Entry
    profile: str = ""
    command: str = ""
    date: str = ""
    commit: str | None = None
    dirty: bool | None = None
    limits: Entry = field(default_factory=dict)
    versions: dict[str, str | None] = field(default_factory=dict)
    workloads: list[Workload] = field(default_factory=list)
    encoding: list[Result] = field(default_factory=list)
    seed: int = 0
    tests: Entry | None = None
    """How the tests on a CUDA device ended."""
    schema: int = SCHEMA

    @classmethod
    def of(cls, content: Entry) -> Run:
        """Read the content of a file.

        Raises
        ------
        ReportError
            It has another schema, or a machine's name that cannot be a file's.
        """
        if content.get("schema") != SCHEMA:
            msg = f"this report reads schema {SCHEMA}; got {content.get('schema')!r}"
            raise ReportError(msg)
        name = content["machine"]["name"]
        if not re.fullmatch(r"[\w.-]+", name):
            msg = f"a machine's name is made of letters, digits and .-_ only; got {name!r}"
            raise ReportError(msg)
        workloads = [Workload(**{**entry, "results": _results(entry)}) for entry in content["workloads"]]
        return cls(**{**content, "workloads": workloads, "encoding": _results(content, "encoding")})

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read a file."""
        try:
            return cls.of(json.loads(path.read_text(encoding="utf-8")))
        except ReportError as problem:
            msg = f"{path}: {problem}"
        except ValueError as problem:
            msg = f"{path}: not JSON: {problem}"
        raise ReportError(msg)

    def json(self) -> Entry:
        """The content of a file: what is not known is left out, but a commit that is not known is null."""
        known = dataclasses.asdict(self, dict_factory=lambda found: {k: v for k, v in found if v is not None})
        return {"commit": None, "dirty": None, **known}

    def encoders(self) -> list[Workload]:
        """The encoders, grouped by what they encode."""
        groups: dict[str, list[Result]] = {}
        for result in self.encoding:
            groups.setdefault(str(result.name), []).append(result)
        return [Workload(name, "", results=results) for name, results in sorted(groups.items())]

    def ran(self) -> list[Workload]:
        """The workloads that somebody scored while everything else rested."""
        return [workload for workload in self.workloads if workload.results and not workload.moment]

    def mixed(self) -> list[Workload]:
        """The workloads that somebody scored in the middle of other work."""
        return [workload for workload in self.workloads if workload.results and workload.moment]

    @property
    def revision(self) -> str:
        """The commit that was measured, and whether the working tree differed from it."""
        return f"commit {self.commit[:10]}{' (dirty)' if self.dirty else ''}" if self.commit else "commit unknown"

    def limit(self, workload: Workload, backends: Iterable[str]) -> tuple[str, float] | None:
        """What bounds a workload, and the seconds it takes there at least.

        The larger of two times: reading the bytes once at the measured bandwidth ("memory"), and computing at the
        highest peak measured for these backends ("compute"). The peak of int8 is among the peaks of a CPU, because
        documents of any type are screened in int8. On a CUDA device the peak is that of the tokens' type. Bandwidth
        bounds no warm workload that fits into the last-level cache.
        """
        key = str(self.machine["threads"]) if workload.device == "cpu" else workload.device
        bounds = []
        bandwidth = self.limits.get("read_bytes_per_s", {}).get(key)
        from_memory = workload.cold or workload.bytes > (self.machine["last_level_cache"] or 0)
        if bandwidth and workload.bytes and from_memory:
            bounds.append(("memory", workload.bytes / bandwidth))
        peaks = self.limits.get("flops_per_s", {})
        dtype = str(workload.dtype)
        rated = [name for b in backends for name in (b, f"{b} {dtype}", f"{b} int8")]
        rated = rated if workload.device == "cpu" else [dtype]
        peak = max((peaks.get(name, {}).get(key, 0.0) for name in rated), default=0.0)
        if peak and workload.flops:
            bounds.append(("compute", workload.flops / peak))
        return max(bounds, key=lambda bound: bound[1], default=None)

    def rate(self, workload: Workload, result: Result, backends: Iterable[str]) -> tuple[str, str, str]:
        """The rate a result reached, the bound of its workload, and the share of it; "-" where none was measured."""
        bound = self.limit(workload, backends)
        if bound is None:
            return "-", "-", "-"
        amount, unit = (workload.bytes, "GB/s") if bound[0] == "memory" else (workload.flops, "GFLOP/s")
        reached = amount / result.p50 / 1e9
        if bound[0] == "compute" and reached >= 1e4:
            reached, unit = reached / 1e3, "TFLOP/s"
        share = 100 * bound[1] / result.p50
        text = f"{tilde(result)}{digits(reached)} {unit}"
        return text, bound[0], f"{tilde(result)}{f'{share:.0f}' if share >= 9.5 else digits(share, 2)} %"


def load(folder: Path) -> list[Run]:
    """The runs in a folder, by machine: of each machine the run with the most thorough profile."""
    runs: dict[str, Run] = {}
    for path in sorted(folder.glob("*.json")):
        run = Run.read(path)
        other = runs.setdefault(run.machine["name"], run)
        if other is not run and other.profile == run.profile:
            msg = f"{path}: {folder} holds another {run.profile} run of {run.machine['name']}"
            raise ReportError(msg)
        runs[run.machine["name"]] = min(other, run, key=lambda run: PROFILES.index(run.profile))
    if not runs:
        msg = f"no results in {folder}: run the benchmarks first"
        raise ReportError(msg)
    return [runs[name] for name in sorted(runs)]
