"""colbert-fast bench: what it measures, what it shows meanwhile, and what is left when it is stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import signal
import struct
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from test_cli import ctrl_c_is_heard, posix

import colbert_fast as cf
from colbert_fast import bench, cli
from colbert_fast.bench import contenders, report, timing

with contextlib.suppress(ImportError):
    import fcntl
    import termios

__all__ = ["ctrl_c_is_heard"]

RUNNABLE = [b.name for b in cf.backends() if b.unsupported is None and b.device in (None, "cpu")]
TORCH = ["torch einsum", "torch GEMM"]
PEERS = [] if find_spec("sentence_transformers") is None else ["sentence-transformers"]


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLBERT_FAST_BACKEND", "COLBERT_FAST_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def tiny_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same workloads with a few documents of a few tokens."""
    tiny = [dataclasses.replace(w, nq=min(w.nq, 2), nd=5, lq=8, ld=12, dim=16) for w in bench.WORKLOADS]
    monkeypatch.setattr(report, "WORKLOADS", tuple(tiny))


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["bench", "--rounds", "1", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    names = [w.name for w in bench.WORKLOADS]
    found = measured(capsys, *names)
    assert [w["name"] for w in found["workloads"]] == names and found["missing"] == [] and not found["interrupted"]
    for workload in found["workloads"]:
        rounded = workload["name"].endswith("int8")
        assert [row["contender"] for row in workload["results"]] == [*RUNNABLE, *([] if rounded else TORCH + PEERS)]
        for row in workload["results"]:
            assert 0 < row["p20"] <= row["median"] <= row["p80"] and row["rounds"] == 1
            ours = row["contender"] in RUNNABLE and not rounded
            assert row["max_relative_error"] <= (bench.MAX_RELATIVE_ERROR if ours else 1e-2)


def test_json_says_what_was_measured_where_and_when(capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    found = measured(capsys, "latency-float32")
    date = datetime.datetime.strptime(found["date"], "%Y-%m-%dT%H:%M:%S%z")
    assert before <= date <= datetime.datetime.now(datetime.timezone.utc)
    assert found["cpu"] == bench.cpu_name() and found["platform"]
    assert (found["threads"], found["seed"], found["rounds"]) == (cf.get_num_threads(), 0, 1)
    assert found["versions"] == {
        "colbert_fast": cf.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        **{package: version(package) for package in ("numpy", *PEERS)},
    }


def test_quantiles() -> None:
    assert bench.quantiles([3.0]) == (3.0, 3.0, 3.0)
    assert bench.quantiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--rounds", "2"]) == 0
    out, err = capsys.readouterr()
    assert f"torch {torch.__version__}" in out and "seed 0, 2 rounds" in out
    assert all(f"\n{name}: " in out for name in bench.SHORT)
    assert "* is the backend of a call without backend=.\n" in out
    starred = [line.split()[1] for line in out.splitlines() if line.startswith("* ")]
    assert starred == ["is", *RUNNABLE[:1] * len(bench.SHORT)]
    lines = [f"{name}: measuring, {n} of {len(bench.SHORT)}" for n, name in enumerate(bench.SHORT, start=1)]
    assert err.splitlines() == lines


def test_star_follows_the_variable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLBERT_FAST_BACKEND", "torch")
    found = measured(capsys, "latency-float32")
    (workload,) = found["workloads"]
    assert found["override"] == "torch"
    assert [row["contender"] for row in workload["results"] if row["default"]] == ["torch"]
    assert cli.main(["bench", "--rounds", "1", "latency-float32"]) == 0
    out = capsys.readouterr().out
    assert "* is the backend of a call without backend=, by COLBERT_FAST_BACKEND=torch.\n" in out
    assert "\n* torch  " in out
    monkeypatch.setenv("COLBERT_FAST_BACKEND", "bogus")
    assert cli.main(["bench"]) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("colbert-fast: the environment variable COLBERT_FAST_BACKEND: no backend")


def test_contenders_that_fail_or_are_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = contenders.contenders

    def failing(message: str, calls: int) -> Any:
        def call() -> torch.Tensor:
            nonlocal calls
            calls -= 1
            if calls < 0:
                raise ImportError(message)
            return correct["torch"]()

        return call

    def changed(inputs: bench.Inputs) -> Any:
        correct.update(right(inputs))
        return {
            "absent": failing("no\nscores", 0),
            "later": failing("not again", 2),
            "shapeless": lambda: torch.zeros(3),
            "off": lambda: correct["torch"]() * 1.02,
            "nan": lambda: correct["torch"]() * float("nan"),
            # A thousandth is close enough for others, not for ours.
            "cpu:avx2": lambda: correct["torch"]() * 1.001,
            "torch": correct["torch"],
        }

    correct: Any = {}
    monkeypatch.setattr(report, "contenders", changed)
    found = measured(capsys, "latency-float32", "train-inbatch-float32")
    for workload in found["workloads"]:
        rows = {row["contender"]: row for row in workload["results"]}
        assert rows["absent"]["reason"] == "failed: ImportError: no scores"
        assert rows["later"]["reason"] == "failed: ImportError: not again"
        assert rows["shapeless"]["reason"].startswith("failed: RuntimeError: shape")
        assert rows["off"]["reason"] == "wrong: relative error 2.0e-02"
        assert rows["nan"]["reason"] == "wrong: relative error nan"
        assert rows["cpu:avx2"]["reason"] == "wrong: relative error 1.0e-03"
        assert rows["torch"]["median"] > 0
    assert cli.main(["bench", "--rounds", "1", "latency-float32"]) == 0
    assert "\n  off                      wrong: relative error 2.0e-02\n" in capsys.readouterr().out


def test_workload_that_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = contenders.contenders

    def no_memory(inputs: bench.Inputs) -> Any:
        if inputs.workload.backward:
            raise MemoryError
        return right(inputs)

    monkeypatch.setattr(report, "contenders", no_memory)
    found = measured(capsys, "latency-float32", "train-inbatch-float32")
    assert "reason" not in found["workloads"][0] and found["missing"] == []
    assert found["workloads"][1]["reason"] == "failed: MemoryError" and found["workloads"][1]["results"] == []


@pytest.mark.needs("models")
def test_sentence_transformers_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called with what it takes: its scores are right for every workload but those in 8 bits."""
    for workload in report.WORKLOADS:
        inputs = workload.inputs()
        functions = contenders.contenders(inputs)
        assert ("sentence-transformers" in functions) != workload.quantized
        if not workload.quantized:
            assert bench.relative_error(functions["sentence-transformers"](), inputs.reference()) < 1e-2
    monkeypatch.setitem(sys.modules, "sentence_transformers.util", None)
    old = timing.Contender("sentence-transformers", functions["sentence-transformers"])
    timing.compare(inputs, [old], 1)
    assert str(old.reason).startswith("failed: ModuleNotFoundError: ")


def test_cold_documents_leave_the_caches_before_every_round(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes: list[str] = []
    monkeypatch.setattr(timing, "flush_caches", lambda: flushes.append("before a round"))
    measured(capsys, "latency-float32")
    assert flushes == []
    found = measured(capsys, "latency-cold-float32")
    assert len(flushes) == len(found["workloads"][0]["results"])


# A bench of tiny workloads in a process of its own. With a number of calls as its last argument it gets a signal
# after so many contenders have had a turn.
SCRIPT = """
import dataclasses, os, signal, sys
from colbert_fast import bench, cli
from colbert_fast.bench import report, timing
tiny = [dataclasses.replace(w, nq=1, nd=5, lq=8, ld=12, dim=16) for w in bench.WORKLOADS]
report.WORKLOADS = tuple(tiny)
number, left = (int(sys.argv.pop()) for _ in range(2))
timed = timing.Contender.time
def interrupted(*arguments):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), number)
        while True:
            pass
    timed(*arguments)
timing.Contender.time = interrupted
if "--without-tqdm" in sys.argv:
    sys.argv.remove("--without-tqdm")
    sys.modules["tqdm"] = None
sys.exit(cli.main())
"""
# Threads that wait for each other take long beside other tests.
ONE_THREAD = {**os.environ, "COLBERT_FAST_NUM_THREADS": "1"}
NAMES = ["ragged-packed-float32", "latency-float32", "train-inbatch-float32"]


def stopped(*arguments: str, number: int, after: int, **streams: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, "bench", *NAMES, "--rounds", "4", *arguments, str(after), str(number)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=ONE_THREAD, **streams)


@posix
@pytest.mark.usefixtures("ctrl_c_is_heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_measured_is_printed_when_it_is_stopped(number: int) -> None:
    count = len(RUNNABLE + TORCH + PEERS)
    # All four turns of the first workload, and of the second one and two contenders.
    done = stopped("--json", number=number, after=5 * count + 3, stderr=subprocess.PIPE)
    assert done.returncode == 128 + number
    assert done.stderr.endswith("\ncolbert-fast: interrupted; what was measured so far is on standard output\n")
    found = json.loads(done.stdout)
    assert found["interrupted"] is True and found["missing"] == NAMES[1:]
    first, second = found["workloads"]
    assert (first["name"], second["name"]) == tuple(NAMES[:2])
    assert [row["rounds"] for row in first["results"]] == [4] * count
    assert [row["rounds"] for row in second["results"]] == [2] * 2 + [1] * (count - 2)
    assert all(row["median"] > 0 for row in second["results"])


@posix
@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_the_table_says_what_is_missing() -> None:
    done = stopped(number=signal.SIGINT, after=2, stderr=subprocess.PIPE)
    assert done.returncode == 130
    assert done.stderr.endswith("\ncolbert-fast: interrupted; what was measured so far is on standard output\n")
    assert done.stdout.endswith(f"\ninterrupted: not measured to the end: {', '.join(NAMES)}\n")
    assert f"\n  {RUNNABLE[1]:<24} not timed: interrupted\n" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@posix
@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_nothing_was_measured_when_it_is_stopped() -> None:
    done = stopped("--json", number=signal.SIGINT, after=1, stderr=subprocess.PIPE)
    assert done.returncode == 130 and json.loads(done.stdout)["missing"] == NAMES
    assert done.stderr.endswith("\ncolbert-fast: interrupted; nothing was measured\n")


@posix
@pytest.mark.parametrize(("tqdm", "columns"), [(True, 0), (True, 100), (False, 100)])
def test_progress_on_a_terminal(tqdm: bool, columns: int) -> None:
    """A bar where tqdm is there, else a line for each workload; standard output holds the report only."""
    if tqdm:
        pytest.importorskip("tqdm")
    reading, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24 if columns else 0, columns, 0, 0))
    options = [] if tqdm else ["--without-tqdm"]
    command = [sys.executable, "-c", SCRIPT, "bench", *NAMES, "--rounds", "1", "--json", *options, "0", "0"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, text=True, env=ONE_THREAD)
    os.close(terminal)
    drawn = b""
    # Linux says by an error that the other side is closed.
    with contextlib.suppress(OSError):
        while piece := os.read(reading, 4096):
            drawn += piece
    out, _ = running.communicate()
    os.close(reading)
    assert running.returncode == 0 and [w["name"] for w in json.loads(out)["workloads"]] == NAMES
    seen = drawn.decode()
    if tqdm:
        assert (
            "latency-float32:  33%|" in seen
            and "0%|" in seen
            and "measuring" not in seen
            and seen.rstrip(" ").endswith("\r")
        )
    else:
        assert seen.splitlines() == [f"{name}: measuring, {n} of 3" for n, name in enumerate(NAMES, start=1)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_progress_that_nobody_reads() -> None:
    with open("/dev/full", "w") as full:
        done = stopped("--json", number=0, after=0, stderr=full)
    assert done.returncode == 0 and json.loads(done.stdout)["missing"] == []
