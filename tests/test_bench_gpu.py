"""The benchmark of a GPU, on machines without one: its protocol on a device with a clock of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import machine, peaks, report
from benchmarks.contender import Contender, Prepared, right_gradients
from benchmarks.cuda import __main__ as command
from benchmarks.cuda import first_call, processes, worker
from benchmarks.cuda.contenders import CONTENDERS
from benchmarks.cuda.progress import Progress
from benchmarks.cuda.timing import HOST_ROUNDS, ROUNDS, Cuda, interleaved
from benchmarks.cuda.worker import Worker
from benchmarks.tables import SECTIONS
from colbert_fast.bench import Inputs, Workload

ROOT = Path(__file__).parents[1]
WORKLOADS = machine.gpu_workloads()
without_device = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


class Clockwork(Cuda):
    """A device whose calls take the time that they tell it, one millisecond else; a log says what happened."""

    def __init__(self, sick: bool = False) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.sick = sick

    def flush(self) -> None:
        self.log.append("flush")

    def delay(self, seconds: float) -> None:
        self.log.append("delay")

    def synchronize(self) -> None:
        self.now += 1e-3

    def clock(self) -> float:
        return self.now

    def elapsed(self, call: Callable[[], object]) -> float:
        start = self.now
        call()
        self.now += 1e-3
        return self.now - start

    def healthy(self) -> bool:
        return not self.sick

    def poison(self, shape: Any) -> None:
        pass

    def peak_memory(self, call: Prepared) -> int:
        call.score()
        return 1000

    def graph(self, call: Prepared) -> tuple[Callable[[], object], Tensor]:
        scores = call.score()
        return lambda: None, scores


def timed(seconds: dict[str, float], deadline: float = float("inf")) -> tuple[Clockwork, dict[str, Any]]:
    """Time calls that take so many seconds."""
    device = Clockwork()

    def taking(name: str) -> Prepared:
        def score() -> Tensor:
            device.log.append(name)
            device.now += seconds[name]
            return torch.zeros(1)

        return Prepared(score)

    return device, interleaved(device, {name: taking(name) for name in seconds}, lambda _: None, deadline)


def test_calls_are_interleaved_each_behind_a_flush() -> None:
    device, times = timed(dict.fromkeys("abc", 1e-4))
    turns = [name for name in device.log if name in times]
    assert turns[-6:] != sorted(turns[-6:]) and set(turns[-3:]) == set(times)  # another one begins
    for place, name in enumerate(device.log):
        if name in times:
            assert "flush" in device.log[max(0, place - 2) : place]
    assert device.log[-3:-1] == ["flush", "delay"]
    for found in times.values():
        assert found.device == pytest.approx([1.1e-3] * ROUNDS)
        assert found.host == pytest.approx([1e-4] * HOST_ROUNDS)
        assert found.wall == pytest.approx([1.1e-3] * HOST_ROUNDS)


def test_a_slow_call_gets_fewer_rounds_and_the_deadline_leaves_everyone_one() -> None:
    _, times = timed({"a": 1e-4, "b": 10})
    assert [len(found.device) for found in times.values()] == [ROUNDS, 5]
    device, times = timed({"a": 1, "b": 1e-4, "c": 1}, 3)
    assert [len(found.device) for found in times.values()] == [1, 1, 1]
    assert device.now < 10


def einsum(inputs: Inputs) -> Tensor:
    return torch.einsum("qid,njd->qnij", inputs.queries.float(), inputs.padded.float()).amax(-1).sum(-1)


def contender(name: str, score: Callable[[Inputs], Tensor], kind: str = "peer", main: bool = True) -> Contender:
    def build(inputs: Inputs) -> Prepared:
        return Prepared(lambda: score(inputs))

    return Contender(name, kind, build, main=main, backend="torch" if kind == "ours" else None)


def failing(message: str, act: Callable[[], object] = lambda: None) -> Callable[[Inputs], Tensor]:
    def score(_: Inputs) -> Tensor:
        act()
        raise RuntimeError(message)

    return score


def named(name: str) -> Contender:
    return next(found for found in CONTENDERS if found.name == name)


# As everywhere else, but on a device that is here, and small.
TINY = replace(WORKLOADS[0], nd=4, lq=3, ld=5, device="cpu")
SECOND = replace(TINY, name="second")
RIGHT = contender("right", einsum)
LATE = contender("late", einsum, main=False)
OURS = named("colbert_fast torch")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Hundreds of tiny calls: threads that wait for each other are all they would measure."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Progress:
    monkeypatch.setattr(first_call, "measured_apart", lambda *_: 0.5)
    monkeypatch.setattr(worker, "FIRST_CALLS", ("colbert_fast torch",))
    box = {"name": "a-gpu", "cpu": "A CPU", "cores": 16, "threads": 16, "last_level_cache": 1, "gpu": "A GPU"}
    limits = {"read_bytes_per_s": {"cuda": 3e12}, "flops_per_s": {"bfloat16": {"cuda": 8e14}}}
    about = {"profile": "full", "command": "make bench-gpu", "tests": {}, "limits": limits}
    about["machine"] = {**box, "noisy": False, "cuda": {}}
    return Progress(tmp_path / "progress", tmp_path / "results", about)


def run(progress: Progress, contenders: list[Contender], *workloads: Workload, **how: Any) -> dict[str, Any]:
    """Return the workloads of the file that the run has written."""
    Worker(how.get("device") or Clockwork(), progress, how.get("seconds", 1e9)).run(workloads or (TINY,), contenders)
    return written(progress)


def written(progress: Progress) -> dict[str, Any]:
    found = json.loads((progress.results / "a-gpu.json").read_text())
    return {workload["name"]: workload for workload in found["workloads"]}


def results(workload: dict[str, Any]) -> dict[str, Any]:
    return {result["contender"]: result for result in workload["results"]}


def reasons(workload: dict[str, Any]) -> dict[str, str]:
    return {entry["contender"]: entry["reason"] for entry in workload["skipped"]}


def test_a_result_has_every_time_and_its_error(progress: Progress) -> None:
    found = results(run(progress, [OURS, RIGHT])[TINY.name])
    assert list(found) == ["colbert_fast torch", "right"]
    for result in found.values():
        assert result["max_relative_error"] < 1e-6
        assert result["kendall_tau"] == 1
        assert result["peak_memory"] == 1000
        assert result["first_call"] > 0
        assert [result[what]["rounds"] for what in ("seconds", "host", "wall", "graph")] == [50, 30, 30, 20]
        assert all(result[what]["p20"] <= result[what]["p50"] <= result[what]["p80"] for what in ("host", "wall"))
    assert found["colbert_fast torch"]["backend"] == "torch"


def test_one_that_fails_or_is_missing_is_left_out_with_the_reason(progress: Progress) -> None:
    calls = iter(range(10))
    later = contender("later", lambda inputs: (einsum if next(calls) < 3 else failing("too late"))(inputs))
    absent = replace(RIGHT, name="absent", package="absent-scorer")
    found = run(progress, [contender("fails", failing("no kernel\nimage")), later, absent, OURS, RIGHT])[TINY.name]
    assert list(results(found)) == ["colbert_fast torch", "right"]
    assert reasons(found) == {
        "fails": "failed: no kernel image",
        "later": "failed: too late",
        "absent": "absent-scorer is not installed",
    }


@pytest.mark.parametrize("spoil", [1.05, float("nan")])
def test_a_wrong_peer_is_marked_and_wrong_scores_of_ours_are_not_timed(progress: Progress, spoil: float) -> None:
    def wrong(inputs: Inputs) -> Tensor:
        return einsum(inputs) * spoil

    found = run(progress, [contender("peer", wrong), contender("mine", wrong, "ours"), RIGHT])[TINY.name]
    assert [(result["contender"], result["wrong"]) for result in found["results"]] == [("peer", True), ("right", False)]
    assert "mine must be within 1e-05 of float64" in reasons(found)["mine"]


def test_documents_in_8_bits_may_be_further_off(progress: Progress) -> None:
    rounded = contender("mine", lambda inputs: einsum(inputs) * 1.001, "ours")
    found = run(progress, [rounded], replace(TINY, quantized=True))[TINY.name]
    assert [result["wrong"] for result in found["results"]] == [False]


def test_gradients_are_checked(progress: Progress) -> None:
    def half(inputs: Inputs) -> Prepared:
        prepared = named("torch einsum").build(inputs)

        def score() -> Tensor:
            scores = prepared.score()
            prepared.leaves[1].grad /= 2
            return scores

        return prepared._replace(score=score)

    contenders = [OURS, named("colbert_fast torch, packed"), named("torch einsum"), Contender("half", "peer", half)]
    found = results(run(progress, contenders, replace(TINY, backward=True, nq=3))[TINY.name])
    assert found["colbert_fast torch"]["gradient_error"] < 5e-3  # as bfloat16 rounds
    assert found["colbert_fast torch, packed"]["gradient_error"] < 5e-3
    assert found["half"]["gradient_error"] == pytest.approx(0.5, abs=0.05)
    assert [result["wrong"] for result in found.values()] == [False, False, False, True]


def test_the_gradients_of_the_definition_are_those_of_autograd() -> None:
    inputs = replace(TINY, backward=True, nq=3, lognormal=True, dtype=torch.float64).inputs()
    queries, rows = inputs.queries.clone().requires_grad_(), inputs.rows.clone().requires_grad_()
    for document in rows.split(inputs.lengths.tolist()):
        torch.einsum("qid,jd->qij", queries, document).amax(-1).sum().backward()
    for_queries, for_rows = right_gradients(inputs)
    torch.testing.assert_close(for_queries.view_as(queries), queries.grad)
    torch.testing.assert_close(for_rows, rows.grad)


def test_a_graph_that_takes_the_device_down_is_captured_for_nobody_again(progress: Progress) -> None:
    class Fragile(Clockwork):
        def graph(self, call: Prepared) -> tuple[Callable[[], object], Tensor]:
            self.sick = True
            msg = "capture failed"
            raise RuntimeError(msg)

    with pytest.raises(SystemExit, match="the device is lost"):
        run(progress, [RIGHT], TINY, SECOND, device=Fragile())
    found = run(Progress.load(progress.path), [RIGHT], TINY, SECOND)
    for name in (TINY.name, "second"):
        result = results(found[name])["right"]
        assert result["seconds"]["rounds"] == 50 and "graph" not in result
    assert results(found[TINY.name])["right"]["no_graph"] == "failed: capture failed"


def test_a_graph_with_wrong_scores_is_a_reason(progress: Progress) -> None:
    class Rigid(Clockwork):
        def graph(self, call: Prepared) -> tuple[Callable[[], object], Tensor]:
            return lambda: None, call.score() * 2

    (result,) = run(progress, [RIGHT], device=Rigid())[TINY.name]["results"]
    assert result["no_graph"] == "failed: the graph's scores have a relative error of 1.0e+00"


def test_without_time_the_first_workloads_are_done_and_the_others_say_so(progress: Progress) -> None:
    """Documents of different lengths are shorter than the longest, also where somebody is left out afterwards."""
    ragged = replace(TINY, nd=40, ld=300, lognormal=True)
    found = run(progress, [OURS, RIGHT, LATE], ragged, SECOND, seconds=0.15)
    assert set(results(found[TINY.name])) == {"colbert_fast torch", "right"}
    assert found[TINY.name]["bytes"] == ragged.inputs().bytes < 2 * 40 * 300 * 128
    assert reasons(found[TINY.name]) == {"late": "no time left"}
    assert not found["second"]["results"]
    assert reasons(found["second"]) == dict.fromkeys(("colbert_fast torch", "right", "late"), "no time left")
    assert reasons(found["gpu-first-call-cold"]) == {"colbert_fast torch": "no time left"}


def test_what_compiles_comes_last_beside_one_of_ours(progress: Progress, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(progress, [OURS, RIGHT, LATE])
    rounds = {name: result["seconds"]["rounds"] for name, result in results(found[TINY.name]).items()}
    assert rounds == {"colbert_fast torch": 100, "right": 50, "late": 50}
    stages = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert stages == [TINY.name, "first calls", f"{TINY.name}/late"]
    (cold,) = found["gpu-first-call-cold"]["results"]
    (warm,) = found["gpu-first-call-warm"]["results"]
    assert (cold["seconds"]["p50"], cold["seconds"]["rounds"], warm["seconds"]["rounds"]) == (0.5, 1, 2)


def test_a_first_call_that_fails_is_a_reason(progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.5])

    def once(*_: Any) -> float:
        for found in seconds:
            return found
        msg = "no memory"
        raise RuntimeError(msg)

    monkeypatch.setattr(first_call, "measured_apart", once)
    found = run(progress, [OURS])
    assert list(results(found["gpu-first-call-cold"])) == ["colbert_fast torch"]
    assert reasons(found["gpu-first-call-warm"]) == {"colbert_fast torch": "failed: no memory"}


def test_who_is_timed_on_which_workload() -> None:
    def able(workload: Workload) -> set[str]:
        there = {found for found in CONTENDERS if not any(refusal(workload) for refusal in found.refusals)}
        return {found.name for found in there} - {"colbert_fast triton"}

    workloads = {workload.name: workload for workload in WORKLOADS}
    common = {"torch einsum", "late-interaction-kernels", "flash-maxsim", "sentence-transformers maxsim"}
    for name, workload in workloads.items():
        if not workload.quantized:
            assert common | {"colbert_fast torch"} <= able(workload), name
    ragged = able(workloads["gpu-ragged-10k-bfloat16"])
    assert {"late-interaction-kernels varlen", "flash-maxsim packed", "flash-maxsim persistent"} <= ragged
    assert not {name for name in ragged if "GEMM, documents" in name}
    training = able(workloads["gpu-train-256-bfloat16"])
    assert {"late-interaction-kernels unified", "flash-maxsim inverse grid"} <= training
    assert "flash-maxsim packed" not in training
    compressed = able(workloads["gpu-rerank-10k-int8"]) - {"colbert_fast torch, int8", "colbert_fast triton, int8"}
    assert compressed == {"late-interaction-kernels fp8", "flash-maxsim int8x8", "torch GEMM, dequantized"}


@without_device
def test_without_a_device_the_command_says_so_and_writes_nothing(tmp_path: Path) -> None:
    make = ["make", "bench-gpu", f"PYTHON={sys.executable}", f"RESULTS={tmp_path / 'results'}"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "benchmarks.cuda: this machine has no CUDA device" in done.stderr
    assert not (tmp_path / "results").exists()
    assert {found.why_not(WORKLOADS[0]) for found in CONTENDERS} == {"this machine has no CUDA device"}


# A worker with contenders that lose the device, kill the process, or never return: each on the second workload only.
SCRIPT = """
import signal, sys
sys.path.insert(0, sys.argv[3])
from test_bench_gpu import *
loaded, device = Progress.load(Path(sys.argv[1])), Clockwork()
box = {"name": "a-gpu", "noisy": False, "cuda": {}}
loaded.about.update(machine=box, limits={})
def bad(name, act):
    return contender(name, lambda inputs: einsum(inputs) if inputs.workload.name == "second" else act(inputs))
def lose(_):
    device.sick = True
    raise RuntimeError("illegal access")
contenders = [OURS, bad("loses", lose), RIGHT, bad("kills", lambda _: os.kill(os.getpid(), signal.SIGKILL)),
              bad("hangs", lambda _: time.sleep(3600))]
worker.FIRST_CALLS, worker.PREPARE_LIMIT = (), 5.0
Worker(device, loaded, 1e9).run((SECOND, TINY), contenders)
"""


def test_an_interrupted_run_keeps_its_results_and_goes_on_without_who_interrupted_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = SCRIPT.replace("sys.argv[3]", repr(str(Path(__file__).parent)))
    monkeypatch.setattr(command, "WORKER", ("-c", script))
    monkeypatch.setattr(command, "start_shares", lambda *_, **__: [])
    monkeypatch.setattr(command, "_no_device", lambda: None)
    monkeypatch.setattr(command, "run_tests", lambda *_: {"passed": False, "summary": "7 failed"})
    assert command.main(["--results", str(tmp_path), "--wheels", str(tmp_path), "--commit", "abc"]) == 1
    found = json.loads((tmp_path / "a-gpu.json").read_text())
    assert (found["commit"], found["dirty"], found["tests"]["summary"]) == ("abc", None, "7 failed")
    second, tiny = found["workloads"][:2]
    assert [result["seconds"]["rounds"] for result in second["results"]] == [50] * 5  # not once more
    assert list(results(tiny)) == ["colbert_fast torch", "right"]
    assert reasons(tiny) == {
        "loses": "failed: illegal access",
        "kills": "failed: exit status -9",
        "hangs": "failed: took longer than 5 s",
    }
    shown = capfd.readouterr().out
    assert "unpacked: nothing" in shown and shown.count("s left: second") == 1
    assert f"tests: 7 failed\nwrote {tmp_path / 'a-gpu.json'}\nFAILED: tests: 7 failed\n" in shown


@pytest.mark.parametrize("ending", ["raise SystemExit(3)", "import time; time.sleep(3600)"])
def test_a_worker_that_does_nothing_is_ended_and_what_is_missing_is_written_down(
    ending: str, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "WORKER", ("-c", ending))
    monkeypatch.setattr(command, "ENDING", 0.0)
    run(progress, [OURS, RIGHT], TINY, SECOND, seconds=0)  # a worker that came as far as to say what is missing
    start = time.monotonic()
    command.measure(progress, dict(os.environ), start + 1)
    assert time.monotonic() - start < 60  # it would sleep for an hour
    for name in (TINY.name, "second"):
        assert reasons(written(progress)[name]) == dict.fromkeys(("colbert_fast torch", "right"), "no time left")
    assert command.measure(Progress(progress.path, progress.results), dict(os.environ), start) is None


def test_wheels_of_what_is_not_installed_are_unpacked(tmp_path: Path) -> None:
    for name in ("absent_scorer-1.0-py3-none-any", "torch-9.0-py3-none-any", "absent_too-1.0-cp312-cp312-linux_x86_64"):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w") as wheel:
            wheel.writestr(f"{name.split('-')[0]}/__init__.py", "")
    assert command.unpack(tmp_path, tmp_path / "site") == ["absent_scorer-1.0-py3-none-any.whl"]
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["absent_scorer"]
    assert command.unpack(tmp_path / "nowhere", tmp_path / "site") == []


def test_processes_are_waited_for_and_ended_in_time() -> None:
    script = "import sys, time; time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[2]))"
    started = [processes.start("-c", script, *words) for words in (("0", "0"), ("0", "1"), ("3600", "0"))]
    ends = [processes.wait(process, limit) for process, limit in zip(started, (60, 60, 0.5), strict=True)]
    assert ends == [0, 1, None]
    assert all(process.poll() is not None for process in started)


@without_device
def test_without_a_device_there_is_nothing_to_compile() -> None:
    compilers = processes.start_shares(*first_call.MODULE)
    assert [processes.wait(process, 300) for process in compilers] == [0] * len(compilers)


def test_the_tests_stop_in_time() -> None:
    found = command.run_tests(dict(os.environ), 0.5)
    assert not found["passed"] and found["summary"].startswith("stopped after 0 s")


def test_failures_of_ours_are_named() -> None:
    result = {"contender": "colbert_fast triton", "wrong": True}
    skipped = [
        {"contender": "colbert_fast torch", "reason": "failed: no"},
        {"contender": "colbert_fast triton, int8", "reason": "this version has no PackedTokens.quantize"},
        {"contender": "flash-maxsim", "reason": "failed: no"},
    ]
    workload = {"name": "w", "results": [result], "skipped": skipped}
    tests = {"passed": False, "summary": "1 failed"}
    assert command.failed({"tests": tests, "workloads": [workload]}) == [
        "tests: 1 failed",
        "w, colbert_fast torch: failed: no",
        "w, colbert_fast triton: wrong",
    ]


def test_the_report_of_a_gpu_needs_no_more_than_its_file(progress: Progress, tmp_path: Path) -> None:
    """One whole run of the clockwork, as if it had been a GPU."""
    run(progress, [OURS, named("torch einsum"), replace(RIGHT, name="flash-maxsim"), LATE], TINY, SECOND)
    path = progress.results / "a-gpu.json"
    text = path.read_text().replace('"device": "cpu"', '"device": "cuda"').replace('"cold": false', '"cold": true')
    path.write_text(text)
    names = ["plot", "summary", *SECTIONS]
    readme = tmp_path / "README.md"
    readme.write_text("".join(f"<!-- benchmark:{n}:begin -->\n<!-- benchmark:{n}:end -->\n" for n in names))
    assert report.main(["--readme", str(readme), "--results", str(progress.results)]) == 0
    page = readme.read_text()
    assert "**a-gpu**: A CPU, 16 cores, 16 threads, A GPU; " in page
    assert "Times of the device, with launches done ahead" in page
    assert "Device, host and graph on a-gpu" in page
    assert "gpu-first-call-cold" in page and "empty compiler cache" in page
    assert "torch einsum" in page and "flash-maxsim" in page
    workload = json.loads(text)["workloads"][0]
    share = 100 * workload["bytes"] / 3e12 / results(workload)["colbert_fast torch"]["seconds"]["p50"]
    assert f"{share:.2g}"[:3] in page and "memory" in page
    assert (tmp_path / "docs" / "images" / "a-gpu.svg").is_file()


PEERS = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import sys
from dataclasses import replace
import torch
from triton.runtime.autotuner import Autotuner
Autotuner.run = lambda self, *args, **named: self.fn.run(*args, **{**named, **self.configs[0].all_kwargs()})
from benchmarks import machine
from benchmarks.contender import check
from benchmarks.cuda.contenders import CONTENDERS
for workload in machine.gpu_workloads():
    # The interpreter multiplies bfloat16 wrongly.
    tiny = replace(workload, device="cpu", nq=min(workload.nq, 2), nd=3, ld=20, lq=600 if workload.lq > 512 else 8,
                   dim=16, dtype=torch.float16)
    inputs = tiny.inputs()
    for contender in CONTENDERS:
        if contender.kind != "peer" or tiny.backward or any(refusal(tiny) for refusal in contender.refusals):
            continue
        if contender.name == "flash-maxsim persistent":  # asks for the number of multiprocessors
            continue
        found = check(contender, contender.prepare(inputs).score(), inputs.reference())
        half = tiny.quantized or contender.name == "sentence-transformers maxsim"
        assert found.max_relative_error < (1e-2 if half else 1e-5)
        print(workload.name, contender.name)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a CUDA device")
def test_the_adapters_of_peers_agree_with_the_definition() -> None:
    for package in ("late_interaction_kernels", "flash_maxsim", "triton"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    command_ = [sys.executable, "-c", PEERS]
    done = subprocess.run(command_, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    timed = {line.split(maxsplit=1)[1] for line in done.stdout.splitlines()}
    assert {"late-interaction-kernels varlen", "flash-maxsim packed", "flash-maxsim int8x8"} <= timed


@pytest.mark.cuda
def test_limits_are_plausible() -> None:
    found = peaks.cuda_limits(2048, 2**28, 3)
    assert 1e10 < found["read_bytes_per_s"]["cuda"] < 1e14
    assert set(found["flops_per_s"]) == {"bfloat16", "float16", "tf32", "float32"}
    assert all(1e11 < rates["cuda"] < 1e16 for rates in found["flops_per_s"].values())


@pytest.mark.cuda
def test_the_protocol_on_a_device(progress: Progress) -> None:
    tiny = replace(WORKLOADS[0], nd=64, lq=32, ld=33)
    contenders = [found for found in CONTENDERS if found.name in ("colbert_fast torch", "torch einsum", "torch GEMM")]
    found = run(progress, contenders, tiny, replace(tiny, name="training", backward=True), device=Cuda())
    for name, workload in found.items():
        for result in workload["results"]:
            if not name.startswith("gpu-first"):
                assert result["seconds"]["p50"] > 0
                assert result["host"]["p50"] <= result["wall"]["p50"]
                assert result["peak_memory"] > 0
                # Sums in bfloat16 make equal what is not: a gradient of torch's may go to another token.
                assert not result["wrong"] or (name == "training" and not result["ours"])
        assert workload["results"], workload["skipped"]
    assert "graph" in results(found[tiny.name])["torch einsum"]
