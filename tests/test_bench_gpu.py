"""The benchmark of a GPU, on machines without one: its protocol on a device with a clock of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import colbert_fast as cf
from benchmarks import machine, peaks, report
from benchmarks.contender import Contender, Prepared, right_gradients
from benchmarks.cuda import __main__ as command
from benchmarks.cuda import ahead, first_call, worker
from benchmarks.cuda.contenders import CONTENDERS
from benchmarks.cuda.journal import Journal
from benchmarks.cuda.timing import HOST_ROUNDS, ROUNDS, Cuda, interleaved
from benchmarks.cuda.wheels import unpack
from benchmarks.cuda.worker import CRASHED, Worker
from benchmarks.recorder import Recorder
from benchmarks.tables import SECTIONS
from colbert_fast.bench import Inputs, Workload

ROOT = Path(__file__).parents[1]
WORKLOADS = machine.gpu_workloads()


class Clockwork:
    """A device whose calls take the time that they tell it, one millisecond else; a log says what happened."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.sick = False

    def flush(self) -> None:
        self.log.append("flush")

    def delay(self, seconds: float) -> None:
        self.log.append("delay")

    def synchronize(self) -> None:
        self.log.append("wait")
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

    def poison(self, shape: Iterable[int]) -> None:
        self.log.append("poison")

    def peak_memory(self, call: Prepared) -> int:
        call.score()
        return 1000

    def graph(self, call: Prepared) -> tuple[Callable[[], object], Tensor]:
        scores = call.score()
        return lambda: None, scores


def taking(device: Clockwork, name: str, seconds: float) -> Prepared:
    def score() -> Tensor:
        device.log.append(name)
        device.now += seconds
        return torch.zeros(1)

    return Prepared(score)


def test_calls_are_interleaved_each_behind_a_flush() -> None:
    device = Clockwork()
    calls = {name: taking(device, name, 1e-4) for name in "abc"}
    times = interleaved(device, calls, lambda _: None)
    assert [len(found.device) for found in times.values()] == [ROUNDS] * 3
    assert [len(found.host) for found in times.values()] == [HOST_ROUNDS] * 3
    turns = [name for name in device.log if name in calls]
    assert turns[-6:] != sorted(turns[-6:]) and set(turns[-3:]) == set(calls)  # another one begins
    for place, name in enumerate(device.log):
        if name in calls:
            assert "flush" in device.log[place - 2 : place]
    assert device.log[-3:-1] == ["flush", "delay"]
    assert times["a"].device == pytest.approx([1.1e-3] * ROUNDS)
    assert times["a"].host == pytest.approx([1e-4] * HOST_ROUNDS)
    assert times["a"].wall == pytest.approx([1.1e-3] * HOST_ROUNDS)


def test_a_slow_call_gets_fewer_rounds() -> None:
    device = Clockwork()
    times = interleaved(device, {"a": taking(device, "a", 1e-4), "b": taking(device, "b", 10)}, lambda _: None)
    assert [len(found.device) for found in times.values()] == [ROUNDS, 5]


def test_the_deadline_leaves_everyone_a_round() -> None:
    device = Clockwork()
    times = interleaved(device, {"a": taking(device, "a", 1), "b": taking(device, "b", 1)}, lambda _: None, 3)
    assert [len(found.device) for found in times.values()] == [1, 1]
    assert device.now < 10


def einsum(inputs: Inputs) -> Tensor:
    return torch.einsum("qid,njd->qnij", inputs.queries.float(), inputs.padded.float()).amax(-1).sum(-1)


def contender(name: str, build: Callable[[Inputs], Prepared], kind: str = "peer", main: bool = True) -> Contender:
    return Contender(name, kind, build, main=main, backend="torch" if kind == "ours" else None)


def named(name: str) -> Contender:
    return next(found for found in CONTENDERS if found.name == name)


# As everywhere else, but on a device that is here, and small.
TINY = replace(WORKLOADS[0], nd=4, lq=3, ld=5, device="cpu")
RIGHT = contender("right", lambda inputs: Prepared(lambda: einsum(inputs)))
OURS = named("colbert_fast torch")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Hundreds of tiny calls: threads that wait for each other are all they would measure."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    monkeypatch.setattr(first_call, "measured_apart", lambda *_: 0.5)
    monkeypatch.setattr(worker, "FIRST_CALLS", ("colbert_fast torch",))
    return Journal(tmp_path / "journal.jsonl")


def run(journal: Journal, contenders: list[Contender], *workloads: Workload, seconds: float = 1e9) -> None:
    Worker(Clockwork(), journal, seconds).run(workloads or (TINY,), contenders)


def replayed(journal: Journal, contenders: Iterable[Contender] = CONTENDERS) -> dict[str, Any]:
    recorder = Recorder()
    journal.replay(recorder)
    about = {"machine": {"noisy": False}, "limits": {}}
    found = recorder.report(about, [contender.name for contender in contenders], ())
    return {workload["name"]: workload for workload in found["workloads"]}


def results(workload: dict[str, Any]) -> dict[str, Any]:
    return {result["contender"]: result for result in workload["results"]}


def reasons(workload: dict[str, Any]) -> dict[str, str]:
    return {entry["contender"]: entry["reason"] for entry in workload["skipped"]}


def test_a_result_has_every_time_and_its_error(journal: Journal) -> None:
    run(journal, [OURS, RIGHT])
    found = results(replayed(journal, [OURS, RIGHT])[TINY.name])
    assert list(found) == ["colbert_fast torch", "right"]
    for result in found.values():
        assert result["max_relative_error"] < 1e-6
        assert result["kendall_tau"] == 1
        assert result["peak_memory"] == 1000
        assert result["first_call"] > 0
        assert [result[what]["rounds"] for what in ("seconds", "host", "wall", "graph")] == [50, 30, 30, 20]
        assert all(result[what]["p20"] <= result[what]["p50"] <= result[what]["p80"] for what in ("host", "wall"))
    assert found["colbert_fast torch"]["backend"] == "torch"


def test_one_that_fails_is_left_out_with_the_reason(journal: Journal) -> None:
    def fails(inputs: Inputs) -> Prepared:
        msg = "no kernel\nimage"
        raise RuntimeError(msg)

    calls = iter(range(10))

    def later(inputs: Inputs) -> Prepared:
        return Prepared(lambda: einsum(inputs) if next(calls) < 3 else fails(inputs).score())

    contenders = [contender("fails", fails), contender("later", later), OURS, RIGHT]
    run(journal, contenders)
    found = replayed(journal, contenders)[TINY.name]
    assert list(results(found)) == ["colbert_fast torch", "right"]
    assert reasons(found) == {"fails": "failed: no kernel image", "later": "failed: no kernel image"}


@pytest.mark.parametrize("spoil", [1.05, float("nan")])
def test_a_wrong_peer_is_marked_and_wrong_scores_of_ours_are_refused(journal: Journal, spoil: float) -> None:
    def wrong(inputs: Inputs) -> Prepared:
        return Prepared(lambda: einsum(inputs) * spoil)

    contenders = [contender("peer", wrong), contender("mine", wrong, "ours"), RIGHT]
    run(journal, contenders)
    found = replayed(journal, contenders)[TINY.name]
    assert [result["wrong"] for result in found["results"]] == [True, False]
    assert "mine must be within 1e-05 of float64" in reasons(found)["mine"]


def test_documents_in_8_bits_may_be_further_off(journal: Journal) -> None:
    rounded = contender("mine", lambda inputs: Prepared(lambda: einsum(inputs) * 1.001), "ours")
    run(journal, [rounded], replace(TINY, quantized=True))
    assert [result["wrong"] for result in replayed(journal, [rounded])[TINY.name]["results"]] == [False]


def test_gradients_are_checked(journal: Journal) -> None:
    training = replace(TINY, backward=True, nq=3)
    halved = named("torch einsum")

    def half(inputs: Inputs) -> Prepared:
        prepared = halved.build(inputs)

        def score() -> Tensor:
            scores = prepared.score()
            prepared.leaves[1].grad /= 2
            return scores

        return prepared._replace(score=score)

    contenders = [OURS, named("colbert_fast torch, packed"), halved, contender("half", half)]
    run(journal, contenders, training)
    found = results(replayed(journal, contenders)[TINY.name])
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


def test_a_lost_device_ends_the_worker_and_the_next_goes_on_without_who_lost_it(journal: Journal) -> None:
    device = Clockwork()

    def loses(inputs: Inputs) -> Prepared:
        device.sick = True
        msg = "an illegal memory access was encountered"
        raise RuntimeError(msg)

    first = replace(TINY, name="first")
    contenders = [OURS, contender("loses", loses), RIGHT]
    run(journal, [OURS, RIGHT], first)
    with pytest.raises(SystemExit) as ended:
        Worker(device, journal, 1e9).run((first, TINY), contenders)
    assert ended.value.code == CRASHED
    before = journal.path.read_text()
    run(journal, contenders, first, TINY)
    found = replayed(journal, contenders)
    assert list(results(found[TINY.name])) == ["colbert_fast torch", "right"]
    assert "illegal memory access" in reasons(found[TINY.name])["loses"]
    assert results(found["first"])["right"]["seconds"]["rounds"] == 50  # not once more
    assert journal.path.read_text().startswith(before)


def test_a_graph_that_takes_the_device_down_is_captured_for_nobody_again(journal: Journal) -> None:
    class Fragile(Clockwork):
        def graph(self, call: Prepared) -> tuple[Callable[[], object], Tensor]:
            self.sick = True
            msg = "capture failed"
            raise RuntimeError(msg)

    second = replace(TINY, name="second")
    with pytest.raises(SystemExit):
        Worker(Fragile(), journal, 1e9).run((TINY, second), [RIGHT])
    run(journal, [RIGHT], TINY, second)
    found = replayed(journal, [RIGHT])
    for name in (TINY.name, "second"):
        assert results(found[name])["right"]["seconds"]["rounds"] == 50
        assert "graph" not in results(found[name])["right"]


def test_a_capture_that_fails_is_a_reason(journal: Journal) -> None:
    class Rigid(Clockwork):
        def graph(self, call: Prepared) -> tuple[Callable[[], object], Tensor]:
            return lambda: None, call.score() * 2

    Worker(Rigid(), journal, 1e9).run((TINY,), [RIGHT])
    (result,) = replayed(journal, [RIGHT])[TINY.name]["results"]
    assert result["no_graph"] == "failed: the graph's scores have a relative error of 1.0e+00"


def test_without_time_the_first_workloads_are_done_and_the_others_say_so(journal: Journal) -> None:
    late = contender("late", RIGHT.build, main=False)
    second = replace(TINY, name="second")
    run(journal, [OURS, RIGHT, late], TINY, second, seconds=0.15)
    found = replayed(journal, [OURS, RIGHT, late])
    assert set(results(found[TINY.name])) == {"colbert_fast torch", "right"}
    assert reasons(found[TINY.name]) == {"late": "no time left"}
    assert not found["second"]["results"]
    assert set(reasons(found["second"]).values()) == {"no time left"}
    assert reasons(found["gpu-first-call-cold"]) == {"colbert_fast torch": "no time left"}


def test_a_workload_that_was_measured_keeps_its_size(journal: Journal) -> None:
    """Documents of different lengths are shorter than the longest, also where somebody is left out afterwards."""
    ragged = replace(TINY, nd=40, ld=300, lognormal=True)
    late = contender("late", RIGHT.build, main=False)
    run(journal, [OURS, late], ragged, seconds=0.5)
    found = replayed(journal, [OURS, late])[ragged.name]
    assert reasons(found) == {"late": "no time left"}
    assert found["bytes"] == ragged.inputs().bytes < 2 * 40 * 300 * 128


def test_what_compiles_comes_last_beside_one_of_ours(journal: Journal) -> None:
    late = contender("late", RIGHT.build, main=False)
    run(journal, [OURS, RIGHT, late])
    found = replayed(journal, [OURS, RIGHT, late])
    rounds = {name: result["seconds"]["rounds"] for name, result in results(found[TINY.name]).items()}
    assert rounds == {"colbert_fast torch": 100, "right": 50, "late": 50}
    stages = [line["stage"] for line in journal.lines() if line["event"] == "done"]
    assert stages == [TINY.name, "first calls", f"{TINY.name}/late"]
    (cold,) = found["gpu-first-call-cold"]["results"]
    (warm,) = found["gpu-first-call-warm"]["results"]
    assert (cold["seconds"]["p50"], cold["seconds"]["rounds"], warm["seconds"]["rounds"]) == (0.5, 1, 2)


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
    ours = [found for found in CONTENDERS if found.name == "colbert_fast torch, int8"]
    if not hasattr(cf.PackedTokens, "quantize"):
        reason = {refusal(workloads["gpu-rerank-10k-int8"]) for refusal in ours[0].refusals}
        assert "this version has no PackedTokens.quantize" in reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_the_command_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "bench-gpu", f"PYTHON={sys.executable}", f"RESULTS={tmp_path / 'results'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "benchmarks.cuda: this machine has no CUDA device" in done.stderr
    assert not (tmp_path / "results").exists()
    assert {found.why_not(WORKLOADS[0]) for found in CONTENDERS} == {"this machine has no CUDA device"}


def test_wheels_of_what_is_not_installed_are_unpacked(tmp_path: Path) -> None:
    for name in ("absent_scorer-1.0-py3-none-any", "torch-9.0-py3-none-any", "absent_too-1.0-cp312-cp312-linux_x86_64"):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w") as wheel:
            wheel.writestr(f"{name.split('-')[0]}/__init__.py", "")
    assert unpack(tmp_path, tmp_path / "site") == ["absent_scorer-1.0-py3-none-any.whl"]
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["absent_scorer"]
    assert unpack(tmp_path / "nowhere", tmp_path / "site") == []


def test_compilers_are_waited_for_and_what_they_tuned_is_forgotten(tmp_path: Path) -> None:
    script = "import sys, time; time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[2]))"
    arguments = (("0", "0"), ("0", "1"), ("3600", "0"))
    commands = [[sys.executable, "-c", script, *words] for words in arguments]
    processes = [subprocess.Popen(words, start_new_session=True) for words in commands]
    assert ahead.wait(processes, command.time.monotonic() + 5) == 1
    assert all(process.poll() is not None for process in processes)
    for name in ("a/kernel.autotune.json", "a/kernel.json", "b/kernel.cubin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ahead.forget_tuning(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["kernel.cubin", "kernel.json"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_there_is_nothing_to_compile() -> None:
    (process,) = ahead.start(dict(os.environ))[:1]
    assert ahead.wait([process], command.time.monotonic() + 300) == 1


# A worker that is killed by its first contender, waits for ever in its second, and then is through.
SCRIPT = """
import json, os, signal, sys, time
path = sys.argv[1]
lines = open(path).read().splitlines() if os.path.exists(path) else []
crashes = sum('"crash"' in line for line in lines)
def write(**line):
    with open(path, "a") as file:
        file.write(json.dumps(line) + chr(10))
if not lines:
    write(event="run", machine={"name": "box", "noisy": False}, limits={}, profile="full")
    sizes = {"shape": "1 x 1", "bytes": 1, "flops": 1.0, "cold": True}
    write(event="workload", name="w", source="s", device="cuda", dtype="bfloat16", **sizes)
if crashes < 2:
    contender, limit = [("flash-maxsim", 3600.0), ("torch einsum", 0.5)][crashes]
    write(event="begin", workload="w", contender=contender, doing="time", limit=limit)
    os.kill(os.getpid(), signal.SIGKILL) if crashes == 0 else time.sleep(3600)
write(event="done", stage="w")
"""


def test_a_worker_that_dies_or_hangs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "WORKER", ("-c", SCRIPT))
    journal = Journal(tmp_path / "journal.jsonl")
    recorded = command.Results(tmp_path / "results", {"passed": True, "summary": "1 passed"}, "abc")
    command.run_workers(journal, dict(os.environ), command.time.monotonic() + 3600, recorded)
    written = recorded.write(journal)
    assert written is not None and recorded.path == tmp_path / "results" / "box.json"
    assert json.loads(recorded.path.read_text()) == written
    assert (written["commit"], written["tests"]["summary"]) == ("abc", "1 passed")
    assert {entry["contender"]: entry["reason"] for entry in written["workloads"][0]["skipped"]} == {
        "flash-maxsim": "failed: exit status -9",
        "torch einsum": "time took longer than 0 s",
    }
    assert journal.done() == {"w"}
    assert command.failed(written) == []


def test_the_command_tests_measures_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = SCRIPT.replace("crashes < 2", "False")
    script += 'write(event="skip", workload="w", contender="colbert_fast torch", reason="failed: no")\n'
    monkeypatch.setattr(command, "WORKER", ("-c", script))
    monkeypatch.setattr(command, "_no_device", lambda: None)
    monkeypatch.setattr(command, "run_tests", lambda *_: {"passed": True, "summary": "7 passed"})
    assert command.main(["--results", str(tmp_path), "--wheels", str(tmp_path), "--commit", "abc"]) == 1
    shown = capfd.readouterr().out
    assert "unpacked: nothing" in shown
    assert "s left: w" in shown
    assert f"tests: 7 passed\nwrote {tmp_path / 'box.json'}\nFAILED: w, colbert_fast torch: failed: no\n" in shown
    assert json.loads((tmp_path / "box.json").read_text())["commit"] == "abc"


def test_the_tests_stop_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = command.run_tests(dict(os.environ), 0.5)
    assert not found["passed"]
    assert found["summary"].startswith("stopped after 0 s")


def test_a_worker_that_never_begins_is_not_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "WORKER", ("-c", "raise SystemExit(3)"))
    recorded = command.Results(tmp_path / "results", {}, None)
    journal = Journal(tmp_path / "journal.jsonl")
    command.run_workers(journal, dict(os.environ), command.time.monotonic() + 3600, recorded)
    assert recorded.write(journal) is None


def test_a_worker_out_of_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "WORKER", ("-c", "import time; time.sleep(3600)"))
    monkeypatch.setattr(command, "ENDING", 0.0)
    start = command.time.monotonic()
    recorded = command.Results(tmp_path / "results", {}, None)
    command.run_workers(Journal(tmp_path / "journal.jsonl"), dict(os.environ), start + 1, recorded)
    assert command.time.monotonic() - start < 3600  # it would sleep for an hour


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


def test_the_report_of_a_gpu_needs_no_more_than_its_file(journal: Journal, tmp_path: Path) -> None:
    """One whole run of the clockwork, as if it had been a GPU."""
    late = contender("torch einsum, compiled", RIGHT.build, "torch", main=False)
    contenders = [OURS, named("torch einsum"), contender("flash-maxsim", RIGHT.build), late]
    training = replace(TINY, name="gpu-train", backward=True, nq=2)
    worker_ = Worker(Clockwork(), journal, 1e9)
    limits = {"read_bytes_per_s": {"cuda": 3e12}, "flops_per_s": {"bfloat16": {"cuda": 8e14}}}
    box = {"name": "a-gpu", "cpu": "A CPU", "cores": 16, "threads": 16, "last_level_cache": 1, "gpu": "A GPU"}
    journal.write("run", profile="full", machine={**box, "noisy": False, "cuda": {}}, limits=limits)
    worker_.run((TINY, training), [found for found in contenders if found.name != "torch einsum, compiled"])
    journal.write("end", state={"clocks.sm": "1980 MHz"})
    text = (
        journal.path.read_text().replace('"device": "cpu"', '"device": "cuda"').replace('"cold": false', '"cold": true')
    )
    journal.path.write_text(text)
    recorded = command.Results(tmp_path / "results", {"passed": True, "summary": ""}, None)
    written = recorded.write(journal)
    assert written is not None
    assert written["machine"]["cuda"] == {"state_at_end": {"clocks.sm": "1980 MHz"}}
    assert {"schema", "profile", "date", "commit", "dirty", "command", "seed", "machine", "versions", "limits"} <= set(
        written
    )
    assert command.summary(written)[0].startswith(f"{TINY.name}: 1.00 ms, torch; ")
    assert "flash-maxsim 1.0x" in command.summary(written)[0]
    names = ["plot", *SECTIONS]
    readme = tmp_path / "README.md"
    readme.write_text("".join(f"<!-- benchmark:{n}:begin -->\n<!-- benchmark:{n}:end -->\n" for n in names))
    assert report.main(["--readme", str(readme), "--results", str(tmp_path / "results")]) == 0
    page = readme.read_text()
    assert "**a-gpu**: A CPU, 16 cores, 16 threads, A GPU; " in page
    assert "Times of the device, with launches done ahead" in page
    assert "Device, host and graph on a-gpu" in page
    assert "gpu-first-call-cold" in page and "empty compiler cache" in page
    assert "torch einsum" in page and "flash-maxsim" in page
    size, seconds = written["workloads"][0]["bytes"], results(written["workloads"][0])["colbert_fast torch"]["seconds"]
    share = 100 * size / 3e12 / seconds["p50"]
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
def test_the_protocol_on_a_device(journal: Journal) -> None:
    tiny = replace(WORKLOADS[0], nd=64, lq=32, ld=33)
    contenders = [found for found in CONTENDERS if found.name in ("colbert_fast torch", "torch einsum", "torch GEMM")]
    Worker(Cuda(), journal, 1e9).run((tiny, replace(tiny, name="training", backward=True)), contenders)
    for name, workload in replayed(journal).items():
        for result in workload["results"]:
            if not name.startswith("gpu-first"):
                assert result["seconds"]["p50"] > 0
                assert result["host"]["p50"] <= result["wall"]["p50"]
                assert result["peak_memory"] > 0
                # Sums in bfloat16 make equal what is not: a gradient of torch's may go to another token.
                assert not result["wrong"] or (name == "training" and not result["ours"])
        assert workload["results"], workload["skipped"]
    assert "graph" in results(replayed(journal)[tiny.name])["torch einsum"]
