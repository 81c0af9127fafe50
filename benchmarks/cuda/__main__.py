"""Test and measure this machine's CUDA device, with what is installed on it: ``make bench-gpu``.

    python -m benchmarks.cuda [--wheels FOLDER] [--results FOLDER] [--minutes 8] [--commit HASH] [--no-tests]

1. The tests that need a device run, while other processes compile what is to be measured.
2. A worker measures every workload. It writes the JSON file after each, with the reason why a result is missing. If a
   contender ends the worker, a new worker goes on without this contender.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from benchmarks import machine, recorder
from benchmarks.cuda import first_call
from benchmarks.cuda.processes import start, start_shares, wait
from benchmarks.cuda.progress import Progress

# Every test that is marked ``cuda``, that names triton, or that the backend fixture runs on it. Tests of the
# interpreter and of compiled code need no device.
SELECTION = "(cuda or triton) and not interpreter and not test_triton_code and not (test_triton_upper and not on_a_gpu)"
# Of the time, what the tests and the compilers get, and seconds to come to an end.
TESTING, ENDING = 0.4, 15.0
# A copy of the tests in a folder without colbert_fast, so that they import the installed one; `make suite` makes it.
SUITE = machine.ROOT / "build" / "suite"
WORKER = ("-m", "benchmarks.cuda.worker")
WORKERS = 6


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 if the tests passed and nothing of ours failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__.split("\n")[0])
    parser.add_argument("--wheels", type=Path, default=machine.ROOT / "build" / "wheels", help="used, not installed")
    parser.add_argument("--results", type=Path, default=machine.ROOT / "benchmarks" / "results")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (default: 8)")
    parser.add_argument("--commit", help="of a tree without its git folder")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    chosen = parser.parse_args(arguments)
    begin, seconds = time.monotonic(), 60 * chosen.minutes
    if reason := _no_device():
        print(f"benchmarks.cuda: {reason}; make bench measures the processor", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("unpacked:", *(unpack(chosen.wheels, folder / "site") or ["nothing"]), flush=True)
        sys.path.insert(1, str(folder / "site"))
        path = os.pathsep.join(filter(None, (sys.path[1], os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, **first_call.caches(folder)}
        about: dict[str, Any] = {"profile": "full", "command": "make bench-gpu", "tests": {}}
        about |= {"commit": chosen.commit, "dirty": None} if chosen.commit else {}
        progress = Progress(folder / "progress", chosen.results, about)
        compilers = start_shares(*first_call.MODULE, environment=environment)
        try:
            if not chosen.no_tests:
                about["tests"] = run_tests(environment, TESTING * seconds)
            ends = [wait(process, max(0.0, begin + TESTING * seconds - time.monotonic())) for process in compilers]
        finally:
            for process in compilers:
                wait(process, 0.0)
        print(f"compiled: {ends.count(0)} of {len(ends)} shares", flush=True)
        # Contenders that keep on disk which configuration was the fastest chose it beside other processes.
        for found in folder.rglob("*.autotune.json"):
            found.unlink()
        report = measure(progress, environment, begin + seconds - ENDING)
    if report is None:
        print("benchmarks.cuda: nothing was measured", file=sys.stderr)
        return 1
    failures = failed(report)
    print(*recorder.as_text(report), "", f"tests: {about['tests'].get('summary', 'not run')}", sep="\n")
    print(
        f"wrote {chosen.results / report['machine']['name']}.json", *(f"FAILED: {line}" for line in failures), sep="\n"
    )
    return int(bool(failures))


def _no_device() -> str | None:
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    return None if torch.cuda.is_available() else f"this machine has no CUDA device (torch {torch.__version__})"


def unpack(wheels: Path, site: Path) -> list[str]:
    """Unpack the pure-Python wheels whose distribution is not installed, and return their names."""
    absent = [
        wheel
        for wheel in sorted(wheels.glob("*-none-any.whl"))
        if machine.version(wheel.name.partition("-")[0].replace("_", "-")) is None
    ]
    for wheel in absent:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return [wheel.name for wheel in absent]


def run_tests(environment: dict[str, str], limit: float) -> dict[str, Any]:
    """Run the tests that need a device; return how they ended."""
    if importlib.util.find_spec("pytest") is None:
        return {"passed": False, "summary": "pytest is not installed"}
    command = ["-m", "pytest", "tests", "-k", SELECTION, "-q", "--continue-on-collection-errors", "--maxfail", "60"]
    # The packages of this machine are not those that we develop with: a warning of theirs is no failure.
    command += ["-p", "no:cacheprovider", "-W", "default", "--durations", "15"]
    # None of these needs a device, and each process would import them.
    command += [f"--ignore=tests/{folder}" for folder in ("cli", "doors", "encoders")]
    if importlib.util.find_spec("xdist") is not None:
        # The compilers, which run meanwhile, give way to the tests.
        command += ["-n", str(max(1, (os.cpu_count() or 1) - 2)), "--dist", "worksteal"]
    environment = {**environment, "COLBERT_FAST_REQUIRE": "triton"}
    folder = SUITE if SUITE.is_dir() else machine.ROOT
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = start(*command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        # pytest says what it has done so far when it is interrupted.
        status = wait(process, limit, patience=10.0)
        output.seek(0)
        lines = output.read().splitlines()
    print(*lines, sep="\n", flush=True)
    last = lines[-1].strip("= ") if lines else ""
    return {"passed": status == 0, "summary": f"stopped after {limit:.0f} s: {last}" if status is None else last}


def measure(progress: Progress, environment: dict[str, str], end: float) -> dict[str, Any] | None:
    """Run workers, one after the other, until one is through or the time is over; return what the file holds."""
    progress.save()
    with contextlib.suppress(KeyboardInterrupt):
        for _ in range(WORKERS):
            left = end - time.monotonic()
            # A worker ends by itself, after the call during which the time is over.
            worker = start(*WORKER, str(progress.path), str(time.time() + left), env=environment)
            status = wait(worker, max(0.0, left + ENDING / 3))
            if status in (0, None):
                break
            print(f"benchmarks.cuda: a worker ended: exit status {status}", file=sys.stderr, flush=True)
            Progress.load(progress.path).blame(f"exit status {status}")
    return Progress.load(progress.path).report()


def failed(report: dict[str, Any]) -> list[str]:
    """The tests, if they did not pass, and everything of ours that failed or is wrong."""
    tests = report["tests"]
    found = [f"tests: {tests['summary']}"] if tests and not tests["passed"] else []
    for workload in report["workloads"]:
        skips = [(entry["contender"], entry["reason"]) for entry in workload["skipped"]]
        wrongs = [(entry["contender"], "wrong") for entry in workload["results"] if entry["wrong"]]
        for name, reason in [*skips, *wrongs]:
            if name.startswith("colbert_fast") and reason.startswith(("failed", "wrong")):
                found.append(f"{workload['name']}, {name}: {reason}")
    return found


if __name__ == "__main__":
    sys.exit(main())
