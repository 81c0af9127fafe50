"""Named workloads, the check that comes before every timing, and the limits of this machine.

``colbert-fast bench`` is the short form for an installed package; the suite in ``benchmarks/`` times every peer on
the same workloads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import colbert_fast as cf
from colbert_fast._extension import MISSING
from colbert_fast.bench.machine import cpu_name, cuda_limits, last_level_cache, limits
from colbert_fast.bench.workloads import SHORT, WORKLOADS, Inputs, Workload

__all__ = [
    "MAX_RELATIVE_ERROR",
    "SHORT",
    "WORKLOADS",
    "Inputs",
    "Measurement",
    "Workload",
    "contenders",
    "cpu_name",
    "cuda_limits",
    "last_level_cache",
    "limits",
    "measure",
    "rated_peaks",
    "relative_error",
    "rest",
    "run",
    "warm_up_rounds",
]

# Seconds between two rounds. The OpenMP threads of torch spin for some milliseconds after its last operation, on the
# cores that the next contender is to run on.
PAUSE = 0.005
# Seconds of rounds that are not timed, when a contender follows another.
WARM_UP = 0.05
# The rounds of a contender are cut into so many turns, between which the others have theirs.
TURNS = 4
# Scores of ours that are further than this from float64 are not timed: the contract's bound.
MAX_RELATIVE_ERROR = 1e-5


class Measurement(NamedTuple):
    """Seconds of the rounds of one contender, ascending, and how far its scores are from float64."""

    seconds: list[float]
    max_relative_error: float

    @property
    def median(self) -> float:
        """Seconds."""
        return self.seconds[len(self.seconds) // 2]


def rest() -> None:
    """Let the threads of other contenders go to sleep, but not this one.

    Asleep it would lose its core: a virtual machine that packs threads onto few cores then woke our second thread on
    the core of the first, for more than a millisecond, and what was timed was the machine.
    """
    end = time.perf_counter() + PAUSE
    while time.perf_counter() < end:
        pass


def warm_up_rounds(seconds: float) -> int:
    """Return the rounds not to time, for a contender whose call takes so long.

    The contender before left the caches full of other things, and threads on cores from where it takes the scheduler
    some milliseconds to move them.
    """
    return max(1, min(10, int(WARM_UP / seconds)))


def relative_error(scores: Tensor, reference: Tensor) -> float:
    """Return the largest error of a score relative to its own size."""
    scores = scores.detach().cpu().double().reshape(reference.shape)
    return float(((scores - reference).abs() / reference.abs().clamp(min=1e-30)).max())


def contenders(inputs: Inputs) -> dict[str, Callable[[], Tensor]]:
    """Our backends that run here, and what torch users write: what ``colbert-fast bench`` compares."""
    workload = inputs.workload
    documents: Any = inputs.packed.quantize("int8") if workload.quantized else inputs.documents
    queries = inputs.queries
    if workload.backward:
        queries, documents = queries.clone().requires_grad_(), documents.clone().requires_grad_()

    def ours(backend: str) -> Callable[[], Tensor]:
        return lambda: _with_backward(cf.maxsim(queries, documents, backend=backend), workload)

    padded = documents if workload.backward else inputs.padded
    mask = None
    if workload.lognormal:
        mask = torch.arange(padded.shape[1]) >= inputs.lengths[:, None]

    def einsum() -> Tensor:
        similarity = torch.einsum("qid,njd->qnij", queries, padded)
        if mask is not None:
            similarity = similarity.masked_fill_(mask[:, None, :], float("-inf"))
        return _with_backward(similarity.amax(-1).float().sum(-1), workload)

    owner = torch.repeat_interleave(inputs.lengths) if workload.lognormal else None

    def gemm() -> Tensor:
        similarity = (inputs.rows if owner is not None else padded.flatten(0, 1)) @ queries.flatten(0, 1).T
        if owner is None:
            best = similarity.view(workload.nd, -1, similarity.shape[1]).amax(1)
        else:
            best = similarity.new_full((workload.nd, similarity.shape[1]), float("-inf"))
            best.scatter_reduce_(0, owner[:, None].expand_as(similarity), similarity, "amax")
        return _with_backward(best.view(workload.nd, workload.nq, -1).float().sum(-1).T, workload)

    named = {b.name: ours(b.name) for b in cf.backends() if b.unsupported is None and b.device in (None, "cpu")}
    if workload.quantized:
        return named
    return {**named, "torch einsum": einsum, "torch GEMM": gemm}


def _with_backward(scores: Tensor, workload: Workload) -> Tensor:
    if workload.backward:
        scores.sum().backward()
    return scores


def measure(functions: dict[str, Callable[[], Tensor]], inputs: Inputs, rounds: int) -> dict[str, Measurement | str]:
    """Check every contender against float64, then time those that agree, turn by turn.

    Returns
    -------
    dict
        A measurement, or the reason why there is none.
    """
    reference = inputs.reference()
    results: dict[str, Measurement | str] = {}
    times: dict[str, list[float]] = {}
    errors: dict[str, float] = {}
    ours = {b.name for b in cf.backends()}
    for name, function in functions.items():
        errors[name] = relative_error(function(), reference)
        # torch's own half-precision products are further off, and known to be; so are documents rounded to 8 bits.
        exact = name in ours and not inputs.workload.quantized
        if not errors[name] <= (MAX_RELATIVE_ERROR if exact else 1e-2):
            results[name] = f"wrong: relative error {errors[name]:.1e}"
        else:
            times[name] = []
    turns = min(TURNS, rounds)
    for turn in range(turns):
        for name in times:
            start = time.perf_counter()
            functions[name]()
            for _ in range(warm_up_rounds(time.perf_counter() - start)):
                functions[name]()
            for _ in range(rounds * turn // turns, rounds * (turn + 1) // turns):
                rest()
                start = time.perf_counter()
                functions[name]()
                times[name].append(time.perf_counter() - start)
    results.update({name: Measurement(sorted(seconds), errors[name]) for name, seconds in times.items()})
    return {name: results[name] for name in functions}


def run(names: tuple[str, ...], rounds: int, seed: int = 0) -> dict[str, Any]:
    """Measure workloads by name on this machine; what ``colbert-fast bench --json`` prints."""
    threads = cf.get_num_threads()
    torch.set_num_threads(threads)
    found = limits((threads,))
    report: dict[str, Any] = {
        "cpu": cpu_name(),
        "threads": threads,
        "versions": {"colbert_fast": cf.__version__, "torch": torch.__version__},
        "seed": seed,
        "limits": found,
        "workloads": [],
    }
    for workload in WORKLOADS:
        if workload.name in names:
            inputs = workload.inputs(seed)
            report["workloads"].append(_report(inputs, measure(contenders(inputs), inputs, rounds), found, threads))
    return report


def rated_peaks(backend: str, dtype: str | None) -> tuple[str, str, str]:
    """Names of the peaks, of which the highest bounds a CPU backend: it screens documents of any dtype in int8."""
    return backend, f"{backend} {dtype}", f"{backend} int8"


def _report(
    inputs: Inputs, results: dict[str, Measurement | str], found: dict[str, Any], threads: int
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for name, result in results.items():
        if isinstance(result, str):
            rows.append({"contender": name, "reason": result})
            continue
        peaks = found["flops_per_s"]
        dtype = "int8" if inputs.workload.quantized else str(inputs.workload.dtype).removeprefix("torch.")
        rated = [peaks[key] for key in rated_peaks(name, dtype) if key in peaks] or list(peaks.values())[:1]
        rate = max((peak.get(str(threads), 0.0) for peak in rated), default=0.0)
        bandwidth = found["read_bytes_per_s"].get(str(threads))
        floor = max(inputs.flops / rate if rate else 0.0, inputs.bytes / bandwidth if bandwidth else 0.0)
        rows.append(
            {
                "contender": name,
                "median": result.median,
                "bytes_per_s": inputs.bytes / result.median,
                "flops_per_s": inputs.flops / result.median,
                "share_of_limit": floor / result.median if floor else None,
                "max_relative_error": result.max_relative_error,
            }
        )
    return {"name": inputs.workload.name, "shape": inputs.workload.shape, "results": rows}


def as_text(report: dict[str, Any]) -> list[str]:
    """Lay a report out for reading."""
    lines = [f"{report['cpu']}, {report['threads']} threads; median of each contender, checked against float64 first"]
    if MISSING is not None:
        lines.append(f"without our own CPU backends: {MISSING}")
    for workload in report["workloads"]:
        lines += ["", f"{workload['name']}: {workload['shape']}"]
        lines.append(f"  {'':<14}{'ms':>9}{'GB/s':>8}{'GFLOP/s':>9}{'of limit':>10}{'error':>10}")
        for row in workload["results"]:
            if "reason" in row:
                lines.append(f"  {row['contender']:<14}{row['reason']}")
                continue
            share = f"{row['share_of_limit']:.0%}" if row["share_of_limit"] is not None else "-"
            lines.append(
                f"  {row['contender']:<14}{row['median'] * 1e3:>9.3f}{row['bytes_per_s'] / 1e9:>8.1f}"
                f"{row['flops_per_s'] / 1e9:>9.0f}{share:>10}{row['max_relative_error']:>10.1e}"
            )
    return lines


def as_json(report: dict[str, Any]) -> list[str]:
    """Lay a report out for a program."""
    return json.dumps(report, indent=2).splitlines()
