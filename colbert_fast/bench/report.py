"""What ``colbert-fast bench`` measures and prints."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import colbert_fast as cf
from colbert_fast._backends import select
from colbert_fast._extension import MISSING
from colbert_fast.bench.contenders import SENTENCE_TRANSFORMERS, contenders
from colbert_fast.bench.timing import Contender, compare, failure, quantiles
from colbert_fast.bench.workloads import SEED, WORKLOADS, Inputs, Workload


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def run(names: tuple[str, ...], rounds: int) -> dict[str, Any]:
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
    defaults = {workload.name: _default(workload) for workload in chosen}
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cpu": cpu_name(),
        "platform": platform.platform(),
        "versions": _versions(),
        "threads": threads,
        "seed": SEED,
        "rounds": rounds,
        "override": os.environ.get("COLBERT_FAST_BACKEND") or None,
        "interrupted": False,
        "missing": [workload.name for workload in chosen],
        "workloads": [],
    }
    try:
        torch.set_num_threads(threads)
        for workload in _with_progress(chosen):
            entry: dict[str, Any] = {"name": workload.name, "shape": workload.shape, "results": []}
            report["workloads"].append(entry)
            _measure(workload, rounds, defaults[workload.name], entry)
            report["missing"].remove(workload.name)
    except KeyboardInterrupt:
        report["interrupted"] = True
    return report


def _measure(workload: Workload, rounds: int, default: str, entry: dict[str, Any]) -> None:
    """Add the results of a workload to its entry, as far as it was measured when it is interrupted."""
    try:
        inputs = workload.inputs()
        found = [Contender(name, score) for name, score in contenders(inputs).items()]
        try:
            compare(inputs, found, rounds)
        finally:
            entry["results"] = [_row(inputs, contender, default) for contender in found]
    except Exception as error:
        # The other workloads may need less memory.
        entry["reason"] = failure(error)


def _row(inputs: Inputs, contender: Contender, default: str) -> dict[str, Any]:
    row: dict[str, Any] = {"contender": contender.name, "default": contender.name == default}
    if contender.reason is not None or not contender.seconds:
        return {**row, "reason": contender.reason or "not timed: interrupted"}
    p20, median, p80 = quantiles(contender.seconds)
    return {
        **row,
        "median": median,
        "p20": p20,
        "p80": p80,
        "rounds": len(contender.seconds),
        "bytes_per_s": inputs.bytes / median,
        "flops_per_s": inputs.flops / median,
        "max_relative_error": contender.max_relative_error,
    }


def _default(workload: Workload) -> str:
    """The backend of a call that names none."""
    with warnings.catch_warnings():
        # It warns where the extension is missing, which the report says too.
        warnings.simplefilter("ignore")
        return select("cpu", workload.dtype, None, workload.quantized).name


def _versions() -> dict[str, str]:
    versions = {"colbert_fast": cf.__version__, "torch": torch.__version__, "python": platform.python_version()}
    for package in ("numpy", SENTENCE_TRANSFORMERS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _with_progress(workloads: Sequence[Workload]) -> Iterator[Workload]:
    """Show on standard error how far a run is: by tqdm on a terminal, else by one line for each workload."""
    bar = None
    with contextlib.suppress(ImportError):
        if sys.stderr.isatty():
            from tqdm import tqdm

            # A terminal may not know its own size, and tqdm would draw nothing there.
            bar = tqdm(workloads, ncols=80, nrows=24, leave=False)
    for number, workload in enumerate(bar or workloads, start=1):
        # Nothing is lost where nobody can read it.
        with contextlib.suppress(OSError):
            if bar is None:
                line = f"{workload.name}: measuring, {number} of {len(workloads)}"
                print(line, file=sys.stderr, flush=True)
            else:
                bar.set_description_str(workload.name)
        yield workload


def as_text(report: dict[str, Any]) -> list[str]:
    """Lay a report out for reading."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    why = f", by COLBERT_FAST_BACKEND={report['override']}" if report["override"] else ""
    lines = [
        f"{report['cpu']}, {report['threads']} threads, {report['platform']}, {report['date']}",
        f"{versions}, seed {report['seed']}, {report['rounds']} rounds",
        "ms, p20, p80: the median and the middle 60 % of the rounds. error: the distance to float64, checked first.",
        f"* is the backend of a call without backend={why}.",
    ]
    if MISSING is not None:
        lines.append(f"without our own CPU backends: {MISSING}")
    for workload in report["workloads"]:
        lines += ["", f"{workload['name']}: {workload['shape']}"]
        if "reason" in workload:
            lines.append(f"  {workload['reason']}")
        lines.append(f"  {'':<24}{'ms':>9}{'p20':>9}{'p80':>9}{'GB/s':>8}{'GFLOP/s':>9}{'error':>10}")
        lines += map(_line, workload["results"])
    if report["interrupted"]:
        lines += ["", f"interrupted: not measured to the end: {', '.join(report['missing']) or 'nothing'}"]
    return lines


def _line(row: dict[str, Any]) -> str:
    name = f"{'*' if row['default'] else ' '} {row['contender']:<24}"
    if "reason" in row:
        return f"{name} {row['reason']}"
    times = "".join(f"{row[key] * 1e3:>9.3f}" for key in ("median", "p20", "p80"))
    rates = f"{row['bytes_per_s'] / 1e9:>8.1f}{row['flops_per_s'] / 1e9:>9.0f}"
    return f"{name}{times}{rates}{row['max_relative_error']:>10.1e}"


def as_json(report: dict[str, Any]) -> list[str]:
    """Lay a report out for a program."""
    return json.dumps(report, indent=2).splitlines()
