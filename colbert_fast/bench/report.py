"""What ``colbert-fast bench`` prints."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import warnings
from typing import Any

import torch

import colbert_fast as cf
from colbert_fast._backends import select
from colbert_fast._extension import MISSING
from colbert_fast.bench.contenders import SENTENCE_TRANSFORMERS, contenders
from colbert_fast.bench.machine import Limits, cpu_name
from colbert_fast.bench.progress import Progress
from colbert_fast.bench.timing import Comparison, failure
from colbert_fast.bench.workloads import WORKLOADS, Workload


def run(names: tuple[str, ...], rounds: int, seed: int = 0) -> dict[str, Any]:
    """Measure workloads by name on this machine.

    Returns
    -------
    dict
        What ``colbert-fast bench --json`` prints. KeyboardInterrupt ends the run, and what was measured by then is
        returned: ``interrupted`` is True and ``missing`` names the workloads that were not measured to the end.

    Raises
    ------
    ValueError, NotImplementedError
        An environment variable names a backend that is not there or cannot run, or a wrong number of threads.
    """
    chosen = [workload for workload in WORKLOADS if workload.name in names]
    threads = cf.get_num_threads()
    defaults = [_default(workload) for workload in chosen]
    report: dict[str, Any] = {**_facts(), "threads": threads, "seed": seed, "rounds": rounds}
    report["override"] = os.environ.get("COLBERT_FAST_BACKEND") or None
    report.update(interrupted=False, missing=[workload.name for workload in chosen], workloads=[])
    try:
        with Progress(len(chosen)) as progress:
            torch.set_num_threads(threads)
            for workload, default in zip(chosen, defaults, strict=True):
                progress.begin(workload.name)
                _measure(workload, default, threads, report, progress)
    except KeyboardInterrupt:
        report["interrupted"] = True
    return report


def _measure(workload: Workload, default: str, threads: int, report: dict[str, Any], progress: Progress) -> None:
    """Add one workload to the report, as far as it was measured when it is interrupted."""
    entry: dict[str, Any] = {"name": workload.name, "shape": workload.shape, "limits": {}, "results": []}
    report["workloads"].append(entry)
    try:
        inputs = workload.inputs(report["seed"])
        limits = Limits(inputs, threads)
        comparison = Comparison(inputs, contenders(inputs), report["rounds"], limits)
        try:
            comparison.run(progress.step)
        finally:
            entry["limits"] = {"read_bytes_per_s": limits.read_bytes_per_s, "flops_per_s": limits.flops_per_s}
            entry["results"] = _rows(inputs.bytes, inputs.flops, comparison, limits, default)
    except Exception as error:
        # The other workloads may need less memory.
        entry["reason"] = failure(error)
    report["missing"].remove(workload.name)


def _default(workload: Workload) -> str:
    """The backend of a call that names none."""
    with warnings.catch_warnings():
        # It warns where the extension is missing, which the report says too.
        warnings.simplefilter("ignore")
        return select("cpu", workload.dtype, None, workload.quantized).name


def _facts() -> dict[str, Any]:
    versions = {"colbert_fast": cf.__version__, "torch": torch.__version__, "python": platform.python_version()}
    for package in ("numpy", SENTENCE_TRANSFORMERS):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cpu": cpu_name(),
        "platform": platform.platform(),
        "versions": versions,
    }


def _rows(size: int, flops: float, comparison: Comparison, limits: Limits, default: str) -> list[dict[str, Any]]:
    rows = []
    for name, result in comparison.results.items():
        row: dict[str, Any] = {"contender": name, "default": name == default}
        rows.append(row)
        if isinstance(result, str):
            row["reason"] = result
            continue
        p20, median, p80 = result.quantiles
        bound = limits.bound(name)
        row.update(
            median=median,
            p20=p20,
            p80=p80,
            rounds=len(result.seconds),
            bytes_per_s=size / median,
            flops_per_s=flops / median,
            limit=bound[0] if bound else None,
            share_of_limit=bound[1] / median if bound else None,
            max_relative_error=result.max_relative_error,
        )
    return rows


def as_text(report: dict[str, Any]) -> list[str]:
    """Lay a report out for reading."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"{report['cpu']}, {report['threads']} threads, {report['platform']}, {report['date']}",
        f"{versions}, seed {report['seed']}, {report['rounds']} rounds",
        "ms, p20, p80: the median and the middle 60 % of the rounds. error: the distance to float64, checked first.",
        "of limit: the share of the median in which this machine, at its measured rates, could have read the documents",
        "or computed the products with the instructions of the backend, whichever takes longer.",
    ]
    why = f", by COLBERT_FAST_BACKEND={report['override']}" if report["override"] else ""
    lines.append(f"* is the backend of a call without backend={why}.")
    if MISSING is not None:
        lines.append(f"without our own CPU backends: {MISSING}")
    for workload in report["workloads"]:
        lines += ["", f"{workload['name']}: {workload['shape']}"]
        if "reason" in workload:
            lines.append(f"  {workload['reason']}")
        head = f"{'ms':>9}{'p20':>9}{'p80':>9}{'GB/s':>8}{'GFLOP/s':>9}{'of limit':>16}{'error':>10}"
        lines += [f"  {'':<24}{head}", *map(_line, workload["results"])]
    if report["interrupted"]:
        lines += ["", f"interrupted: not measured to the end: {', '.join(report['missing']) or 'nothing'}"]
    return lines


def _line(row: dict[str, Any]) -> str:
    name = f"{'*' if row['default'] else ' '} {row['contender']:<24}"
    if "reason" in row:
        return f"{name} {row['reason']}"
    times = "".join(f"{row[key] * 1e3:>9.3f}" for key in ("median", "p20", "p80"))
    share = f"{row['share_of_limit']:.0%} {row['limit']}" if row["limit"] else "-"
    rates = f"{row['bytes_per_s'] / 1e9:>8.1f}{row['flops_per_s'] / 1e9:>9.0f}"
    return f"{name}{times}{rates}{share:>16}{row['max_relative_error']:>10.1e}"


def as_json(report: dict[str, Any]) -> list[str]:
    """Lay a report out for a program."""
    return json.dumps(report, indent=2).splitlines()
