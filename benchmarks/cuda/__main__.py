"""Test and measure this machine's CUDA device, with what is installed on it: ``make bench-gpu``.

    python -m benchmarks.cuda [--wheels FOLDER] [--results FOLDER] [--minutes 8] [--commit HASH]

First the tests that need a device, while other processes compile what is to be measured; then every workload, in a
process of its own that is started again without the contender that ended it. What was measured is in the JSON file
after every workload, and at the end of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.cuda import ahead
from benchmarks.cuda.first_call import caches
from benchmarks.cuda.journal import Journal
from benchmarks.cuda.wheels import unpack
from benchmarks.model import Run
from benchmarks.recorder import Recorder, as_text

COMMAND = "make bench-gpu"
# Every test that is marked ``cuda``, that names triton, or that the backend fixture runs on it; not those that need no
# device, of the interpreter and of compiled code.
SELECTION = "(cuda or triton) and not interpreter and not test_triton_code"
# Of the time, to come to an end; in seconds.
ENDING = 15.0
# A copy of the tests in a folder without colbert_fast, so that they import the installed one; `make suite` makes it.
SUITE = machine.ROOT / "build" / "suite"
RESTARTS = 6
WORKER = ("-m", "benchmarks.cuda.worker")
PACKAGES = ("colbert-fast", "torch", "triton", "sentence-transformers", "late-interaction-kernels", "flash-maxsim")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 if the tests passed and nothing of ours failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__.split("\n")[0])
    parser.add_argument("--wheels", type=Path, default=machine.ROOT / "build" / "wheels", help="used, not installed")
    parser.add_argument("--results", type=Path, default=machine.ROOT / "benchmarks" / "results")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (default: 8)")
    parser.add_argument(
        "--test-seconds", type=float, default=150.0, help="for the tests and the compilers at most (default: 150)"
    )
    parser.add_argument("--commit", help="of a tree without its git folder")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    chosen = parser.parse_args(arguments)
    end = time.monotonic() + 60 * chosen.minutes
    if reason := _no_device():
        print(f"benchmarks.cuda: {reason}; make bench measures the processor", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        print("unpacked:", *(unpack(chosen.wheels, site) or ["nothing"]), flush=True)
        sys.path.insert(1, str(site))
        path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, **caches(Path(folder))}
        enough = min(end, time.monotonic() + chosen.test_seconds)
        compilers = ahead.start(environment)
        try:
            tests = {} if chosen.no_tests else run_tests(environment, enough - time.monotonic())
            through = ahead.wait(compilers, enough)
        except BaseException:  # Ctrl-C
            ahead.wait(compilers, 0.0)
            raise
        print(f"compiled: {through} of {len(compilers)} shares; {end - time.monotonic():.0f} s left", flush=True)
        ahead.forget_tuning(Path(folder))
        recorded = Results(chosen.results, tests, chosen.commit)
        journal = Journal(Path(folder) / "journal.jsonl")
        with contextlib.suppress(KeyboardInterrupt):
            run_workers(journal, environment, end - ENDING, recorded)
        report = recorded.write(journal)
    if report is None:
        print("benchmarks.cuda: nothing was measured", file=sys.stderr)
        return 1
    print("\n".join(as_text(report)))
    failures = failed(report)
    print(
        "",
        *summary(report),
        "",
        f"tests: {tests.get('summary', 'not run')}",
        f"wrote {recorded.path}",
        *(f"FAILED: {failure}" for failure in failures),
        sep="\n",
    )
    return int(bool(failures))


def _no_device() -> str | None:
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    return None if torch.cuda.is_available() else f"this machine has no CUDA device (torch {torch.__version__})"


def run_tests(environment: dict[str, str], limit: float) -> dict[str, Any]:
    """Run the tests that need a device; return how they ended."""
    if importlib.util.find_spec("pytest") is None:
        return {"passed": False, "summary": "pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "tests", "-k", SELECTION, "-q", "--continue-on-collection-errors"]
    # The packages of this machine are not those that we develop with: a warning of theirs is no failure.
    command += ["-p", "no:cacheprovider", "--maxfail", "60", "-W", "default"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(max(1, (os.cpu_count() or 1) // 2)), "--dist", "worksteal"]
    environment = {**environment, "COLBERT_FAST_REQUIRE": "triton"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            cwd=SUITE if SUITE.is_dir() else machine.ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
            # pytest says what it has done so far.
            stop(process, signal.SIGINT, 10.0)
        output.seek(0)
        lines = output.read().splitlines()
    print(*lines, sep="\n", flush=True)
    last = lines[-1].strip("= ") if lines else ""
    return {"passed": status == 0, "summary": f"stopped after {limit:.0f} s: {last}" if status is None else last}


class Results:
    """The JSON file of this run."""

    def __init__(self, folder: Path, tests: dict[str, Any], commit: str | None) -> None:
        from benchmarks.cuda.contenders import CONTENDERS

        self.folder = folder
        self._order = [contender.name for contender in CONTENDERS]
        self.path: Path | None = None
        self._tests = tests
        self._commit = commit
        self._began = Recorder()

    def write(self, journal: Journal) -> dict[str, Any] | None:
        """Write what the journal holds; None if that is nothing."""
        recorder = Recorder()
        run = journal.replay(recorder)
        if not run:
            return None
        given = {"commit": self._commit, "dirty": None} if self._commit else {}
        recorder.commit, recorder.dirty, recorder.date = self._began.commit, self._began.dirty, self._began.date
        about = {**run, **given, "command": COMMAND, "tests": self._tests}
        report = recorder.report(about, self._order, PACKAGES)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{report['machine']['name']}.json"
        # At once, so that a reader or a kill never finds half a file.
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        new.replace(self.path)
        return report


def run_workers(journal: Journal, environment: dict[str, str], end: float, results: Results) -> None:
    """Run workers, one after the other, until one is through or the time is over."""
    for _ in range(RESTARTS):
        left = end - time.monotonic()
        if left <= 0:
            return
        known = journal.size()
        command = [sys.executable, *WORKER, str(journal.path), str(time.time() + left)]
        process = subprocess.Popen(command, cwd=machine.ROOT, env=environment, start_new_session=True)
        try:
            reason = watch(process, journal, end, results)
        finally:
            stop(process, signal.SIGTERM, 2.0)
        if reason is None or journal.size() == known:
            return
        if found := journal.unfinished():
            place = {name: found[name] for name in ("workload", "contender", "doing")}
            journal.write("crash", **place, reason=reason)
        print(f"benchmarks.cuda: a worker ended: {reason}", file=sys.stderr, flush=True)


def watch(
    process: subprocess.Popen[bytes], journal: Journal, end: float, results: Results, pause: float = 0.25
) -> str | None:
    """Wait for a worker, keeping the file up to date; return why it ended too early, or None."""
    known = journal.done()
    while (status := process.poll()) is None:
        time.sleep(pause)
        if time.monotonic() > end + ENDING / 3:
            return None
        if (found := journal.unfinished()) and journal.age() > found["limit"]:
            return f"{found['doing']} took longer than {found['limit']:.0f} s"
        if found is None and (done := journal.done()) != known:
            print(f"{end - time.monotonic():4.0f} s left:", *sorted(done - known), flush=True)
            known = done
            results.write(journal)
    return None if status == 0 else f"failed: exit status {status}"


def stop(process: subprocess.Popen[bytes], how: signal.Signals, patience: float) -> None:
    """End a process and those it has started, by force if it does not in time."""
    for number, limit in ((how, patience), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(limit)
            return


def summary(report: dict[str, Any]) -> list[str]:
    """One line for every workload: ours, and how many times longer the others take."""
    run, lines = Run.of(report), []
    for workload in run.workloads:
        ours = workload.best("ours")
        if ours is None:
            lines.append(f"{workload.name}: {'no correct result of ours' if workload.results else 'not run'}")
            continue
        _, bound, share = run.rate(workload, ours, workload.tiers)
        parts = [f"{workload.name}: {ours.ms} ms, {ours.variant}"]
        parts += [f"{share} of the {bound} limit"] if share != "-" else []
        parts += [f"host {1e3 * ours.host['p50']:.4f} ms"] if ours.host else []
        right = sorted((r for r in workload.results if not r.ours and not r.wrong), key=lambda r: r.p50)
        fastest = {result.family: result for result in reversed(right)}
        names = dict.fromkeys(result.family for result in workload.results)
        parts += [f"{fastest[name].contender} {fastest[name].ratio(ours)}" for name in names if name in fastest]
        lines.append("; ".join(parts))
    return lines


def failed(report: dict[str, Any]) -> list[str]:
    """The tests, if they did not pass, and everything of ours that failed or is wrong."""
    tests = report["tests"]
    found = [f"tests: {tests['summary']}"] if tests and not tests["passed"] else []
    for workload in report["workloads"]:
        skips = [(entry["contender"], entry["reason"]) for entry in workload["skipped"]]
        wrongs = [(entry["contender"], "wrong") for entry in workload["results"] if entry["wrong"]]
        for name, reason in [*skips, *wrongs]:
            if name.startswith("colbert_fast") and reason.startswith(("failed", "wrong", "prepare", "time", "graph")):
                found.append(f"{workload['name']}, {name}: {reason}")
    return found


if __name__ == "__main__":
    sys.exit(main())
