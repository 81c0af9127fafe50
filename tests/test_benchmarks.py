"""The benchmark suite itself: a run leaves what the report reads, and what is wrong or missing is not timed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import colbert_fast as cf
from colbert_fast import bench

ROOT = Path(__file__).parents[1]
TINY = replace(bench.WORKLOADS[0], nd=4, lq=3, ld=5)


@pytest.fixture
def contenders(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import contenders

    return contenders


def run_smoke(folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--profile", "smoke", "--results", str(folder), *options]
    # Its own load, or that of other tests, is of no interest here; neither is a thread for every core.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    # pytest-benchmark times nothing in a worker of pytest-xdist. This process may be one, but the run is not.
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    (path,) = folder.glob("*.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["machine"]["name"] == path.stem
    return report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_smoke(tmp_path_factory.mktemp("results"), "-p", "no:cacheprovider")


def test_smoke_run_leaves_what_the_report_reads(report: dict[str, Any]) -> None:
    from benchmarks.model import Run

    run = Run.of(report)
    assert run.json() == report
    assert (run.schema, run.profile, run.seed) == (1, "smoke", 0) and run.command and run.date
    assert run.commit is None or (len(run.commit) == 40 and isinstance(run.dirty, bool))
    assert {"colbert_fast", "torch", "numpy"} <= set(run.versions)
    assert set(run.limits) - {"skipped"} == {"read_bytes_per_s", "flops_per_s"}
    kinds = {"name": str, "cpu": str, "cores": int, "threads": int, "noisy": bool}
    assert set(run.machine) == {*kinds, "last_level_cache", "gpu"}
    assert all(isinstance(run.machine[name], kind) for name, kind in kinds.items())
    for workload in run.workloads:
        assert workload.source and workload.dtype and workload.device in ("cpu", "cuda")
        assert workload.bytes > 0 and workload.flops > 0
        assert all(set(skipped) == {"contender", "reason"} for skipped in workload.skipped)
        for result in workload.results:
            assert result.version and result.kind in ("ours", "torch", "peer") and result.first_call > 0
            assert result.ours == (result.kind == "ours") == (result.backend is not None)
            assert isinstance(result.max_relative_error, float) and isinstance(result.kendall_tau, float)
    assert all(result.name == f"encode-scores-{result.pairs}" for result in run.encoding)
    for result in [*run.encoding, *(result for workload in run.workloads for result in workload.results)]:
        assert list(result.seconds) == ["p20", "p50", "p80", "p90", "rounds"]
        assert 0 < result.seconds["p20"] <= result.p50 <= result.seconds["p80"]
        assert result.p50 <= result.seconds["p90"]


def test_smoke_run_times_every_backend(report: dict[str, Any], contenders: ModuleType) -> None:
    """Each contender is either timed or skipped with a reason, on every workload."""
    names = {contender.name for contender in contenders.CONTENDERS if contender.main}
    for workload in report["workloads"]:
        timed = {result["contender"] for result in workload["results"]}
        skipped = {entry["contender"] for entry in workload["skipped"]}
        # In the middle of other work, of ours only the call that names no backend.
        here = {name for name in names if not (workload["moment"] and name.startswith("colbert_fast "))}
        assert timed | skipped == here
        assert not timed & skipped
        if workload["device"] == "cpu":
            ours = {"colbert_fast"} if workload["moment"] else {"colbert_fast", "colbert_fast torch"}
            of_torch = "torch GEMM, dequantized" if workload["dtype"] == "int8" else "torch einsum"
            assert {*ours, of_torch} <= timed


def test_the_threads_and_the_process_of_a_moment_end_with_it(contenders: ModuleType) -> None:
    from benchmarks.mixed import MOMENTS

    assert len({moment.name for moment in MOMENTS}) == len(MOMENTS)
    path = Path(f"/proc/self/task/{threading.get_native_id()}/children")

    def children() -> set[str]:
        return set(path.read_text().split())

    before = children() if path.exists() else set()
    for moment in MOMENTS:
        threads: set[threading.Thread] = set()
        with moment.surroundings(lambda found=threads: found.add(threading.current_thread())):
            moment.before()
            while len(threads) < moment.callers - 1:
                pass
            if path.exists():
                assert len(children() - before) == moment.busy
        assert len(threads) == moment.callers - 1 and not any(thread.is_alive() for thread in threads)
        if path.exists():
            assert not children() - before


def test_numkong_is_marked_wrong(report: dict[str, Any]) -> None:
    wrong = {r["contender"] for workload in report["workloads"] for r in workload["results"] if r["wrong"]}
    assert wrong <= {"numkong"}


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_wrong_scores_of_ours_are_refused(contenders: ModuleType, factor: float) -> None:
    from benchmarks import contender

    inputs = TINY.inputs()
    right = contenders.CONTENDERS[0]
    wrong = replace(
        right, build=lambda inputs: contender.Prepared(lambda: right.build(inputs).score() * factor), name="ours x"
    )
    reference = inputs.reference()
    assert not contender.check(right, right.prepare(inputs).score(), reference).wrong
    with pytest.raises(ValueError, match="ours x must be within 1e-05 of float64; got relative error"):
        contender.check(wrong, wrong.prepare(inputs).score(), reference)


def test_wrong_scores_of_others_are_marked(contenders: ModuleType) -> None:
    from benchmarks import contender

    reference = TINY.inputs().reference()
    peer = replace(contenders.CONTENDERS[0], kind="peer")
    assert not contender.check(peer, reference * 1.001, reference).wrong
    assert contender.check(peer, reference * 1.02, reference).wrong
    assert contender.check(peer, reference * float("nan"), reference).wrong
    assert contender.check(peer, -reference, reference).kendall_tau == pytest.approx(-1)


def test_missing_package_becomes_a_reason(contenders: ModuleType) -> None:
    absent = replace(contenders.CONTENDERS[0], package="colbert-fast-of-tomorrow")
    assert absent.why_not(TINY) == "colbert-fast-of-tomorrow is not installed"
    assert absent.version is None


def test_broken_package_becomes_a_reason(
    contenders: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed_scorer.py").write_text("import a_library_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    broken = replace(contenders.CONTENDERS[0], package="half-installed-scorer")
    assert "cannot be imported: No module named 'a_library_that_is_not_there'" in broken.why_not(TINY)


def test_workloads_for_a_gpu_are_skipped_with_the_reason(report: dict[str, Any]) -> None:
    workloads = [workload for workload in report["workloads"] if workload["device"] == "cuda"]
    assert workloads
    for workload in workloads:
        assert not workload["results"]
        reasons = {entry["reason"] for entry in workload["skipped"]}
        if not torch.cuda.is_available():
            assert reasons == {"this machine has no CUDA device"}
        elif not workload["name"].endswith("int8"):
            assert "make bench-gpu times it" in reasons


def test_peaks_of_every_backend(contenders: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import peaks

    runnable = {b.name for b in cf.backends() if b.name.startswith("cpu:") and b.unsupported is None}
    monkeypatch.setattr(peaks, "COMPILER", ["no-such-compiler"])
    nothing = {"read_bytes_per_s": {}, "flops_per_s": {}}
    reason = {"skipped": "the C++ compiler no-such-compiler is not installed"} if runnable else {}
    assert peaks.cpu_limits((1,), 0.001) == {**nothing, **reason}
    monkeypatch.undo()
    if shutil.which(peaks.COMPILER[0]) is None:
        pytest.skip(f"there is no C++ compiler {peaks.COMPILER[0]!r}")
    found = peaks.cpu_limits((1, 2), 0.001)
    assert {name.split()[0] for name in found["flops_per_s"]} == runnable
    assert all(rate > 1e8 for rates in found["flops_per_s"].values() for rate in (rates["1"], rates["2"]))
    if runnable:
        assert min(found["read_bytes_per_s"].values()) > 1e8


def test_turns_begin_with_another(contenders: ModuleType) -> None:
    from benchmarks.contender import turn_by_turn

    assert list(turn_by_turn("ab", 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_memory_of_unknown_contender(contenders: ModuleType) -> None:
    from benchmarks.memory import peak_memory

    with pytest.raises(ValueError, match=r"must be one of colbert_fast, .*; got 'nobody'"):
        peak_memory("rerank-text-float32", "nobody")


def test_memory_is_measured_apart(contenders: ModuleType) -> None:
    from benchmarks.memory import measured_apart

    einsum = measured_apart("latency-float32", "torch einsum")
    if einsum is None:
        pytest.skip("this system reports no peak memory")
    assert einsum >= 100 * 180 * 32 * 4
    assert measured_apart("latency-float32", "numpy of tomorrow") is None


def test_ways_to_encode_need_a_folder(
    contenders: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import encoder_paths

    with pytest.raises(SystemExit):
        encoder_paths.main(["speed", str(tmp_path)])
    assert f"{tmp_path} must be a folder with corpus.jsonl, in the layout of BEIR" in capsys.readouterr().err
