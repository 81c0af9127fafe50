"""Measure everything on the CUDA device, the first workloads first, until the time is over.

    python -m benchmarks.cuda.worker JOURNAL END

``END`` is in seconds since the epoch, so that what a process takes to begin counts.

Started again with the journal of a process that ended, it goes on behind what is done, without who ended it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, peaks
from benchmarks.contender import WRONG, Contender, Prepared, check, right_gradients
from benchmarks.cuda import first_call
from benchmarks.cuda.journal import Journal
from benchmarks.cuda.timing import Cuda, Device, clear, interleaved, on_device
from benchmarks.model import Entry
from benchmarks.recorder import result_entry, workload_entry
from colbert_fast import bench
from colbert_fast.bench import Inputs, Workload

# Of a worker that ends because its device is of no more use to it.
CRASHED = 75
# Seconds without a word after which a worker is stuck: of a call, and of one that compiles or tunes before.
CALL_LIMIT, PREPARE_LIMIT = 30.0, 100.0
NO_TIME = "no time left"
# Seconds without which nothing that compiles is begun.
LATE_RESERVE = 25.0
GRAPH_ROUNDS = 20
# Whose first calls are timed, on the first workload: with an empty cache, and with what that left.
FIRST_CALLS = ("colbert_fast triton", "late-interaction-kernels", "flash-maxsim")
COLD_CALLS, WARM_CALLS = 1, 2


@dataclass
class Ready:
    """A contender whose scores were checked."""

    contender: Contender
    call: Prepared
    facts: dict[str, Any]


class Worker:
    """Goes through the stages of a run.

    Parameters
    ----------
    deadline
        On the device's ``clock``.
    """

    def __init__(self, device: Device, journal: Journal, deadline: float) -> None:
        self.device = device
        self.journal = journal
        self.deadline = deadline
        self.finished = journal.done()
        self.crashed = journal.crashed()
        self._turn = ("", "", "")

    def run(self, workloads: Sequence[Workload], contenders: Sequence[Contender]) -> None:
        """Everyone who is ready at once on every workload, then the first calls, then those that compile."""
        main = [contender for contender in contenders if contender.main]
        for workload in workloads:
            self.stage(workload.name, workload, main)
        self.first_calls(workloads[0], contenders)
        for contender in contenders:
            for workload in workloads if not contender.main else ():
                # Beside one of ours, so that both have seen the same minute.
                anchors = [other for other in main if other.kind == "ours" and other.why_not(workload) is None]
                self.stage(f"{workload.name}/{contender.name}", workload, [*anchors[:1], contender], LATE_RESERVE)

    def left(self) -> float:
        """Seconds."""
        return self.deadline - self.device.clock()

    def stage(self, name: str, workload: Workload, contenders: Sequence[Contender], reserve: float = 0.0) -> None:
        """Check and time some contenders on a workload."""
        if name in self.finished:
            return
        able = [contender for contender in contenders if self._able(workload, contender)]
        if able[-1:] != list(contenders[-1:]) and reserve:
            able = []
        if able and self.left() > reserve:
            try:
                self._measure(name, workload, able)
            except Exception as error:  # Of the inputs or their reference, which no contender is to blame for.
                self._skip(workload, able, f"failed: {error}")
        else:
            self._skip(workload, able, NO_TIME)
        self._done(name)

    def _done(self, stage: str) -> None:
        if stage not in self.finished:
            self.finished.add(stage)
            self.journal.write("done", stage=stage)

    def _able(self, workload: Workload, contender: Contender) -> bool:
        if self.crashed & {(workload.name, contender.name, doing) for doing in ("prepare", "time")}:
            return False
        if reason := contender.why_not(workload):
            self._skip(workload, [contender], reason)
        return reason is None

    def _skip(self, workload: Workload, contenders: Iterable[Contender], reason: str) -> None:
        if not any(line["event"] == "workload" and line["name"] == workload.name for line in self.journal.lines()):
            # Its documents as long as they may be; with the inputs at hand, _measure says how long they are.
            self.journal.write("workload", **workload_entry(workload))
        for contender in contenders:
            self.journal.write("skip", workload=workload.name, contender=contender.name, reason=reason)

    def _measure(self, stage: str, workload: Workload, contenders: Sequence[Contender]) -> None:
        inputs = workload.inputs()
        self.journal.write("workload", **workload_entry(workload, inputs))
        reference = inputs.reference()
        gradients = right_gradients(inputs) if workload.backward else None
        ready: dict[str, Ready] = {}
        for contender in contenders:
            if self.left() <= 0:
                self._skip(workload, [contender], NO_TIME)
                continue
            self._begin(workload, contender.name, "prepare", PREPARE_LIMIT)
            try:
                ready[contender.name] = self._prepare(contender, inputs, reference, gradients)
            except Exception as error:
                self._failed(error)
        self.journal.write("workload", **workload_entry(workload, inputs))
        self._time(workload, ready)
        # A capture that fails can take the device down, and everything else is known by now.
        self._done(stage)
        self._graphs(workload, ready, reference)

    def _prepare(
        self, contender: Contender, inputs: Inputs, reference: Tensor, gradients: tuple[Tensor, Tensor] | None
    ) -> Ready:
        call = contender.prepare(inputs)
        self.device.synchronize()
        start = self.device.clock()
        call.score()
        self.device.synchronize()
        first = self.device.clock() - start
        clear(call)
        # The first call may have tuned; this one is as those to be timed.
        self.device.poison(reference.shape)
        checked = check(contender, call.score(), reference, exact=not inputs.workload.quantized)
        facts = {"first_call": first, "packing": call.packing, **checked._asdict()}
        if gradients is not None:
            facts["gradient_error"] = _gradient_error(call.leaves, gradients)
            facts["wrong"] = checked.wrong or not facts["gradient_error"] <= WRONG
        facts["peak_memory"] = self.device.peak_memory(call)
        return Ready(contender, call, facts)

    def _time(self, workload: Workload, ready: dict[str, Ready]) -> None:
        """Time all that are ready; one that fails now is left out, and the others begin anew."""

        def begin(name: str) -> None:
            self._begin(workload, name, "time", CALL_LIMIT)

        while True:
            try:
                times = interleaved(self.device, {n: found.call for n, found in ready.items()}, begin, self.deadline)
                break
            except Exception as error:
                name = self._turn[1]
                self._failed(error)
                del ready[name]
        for name, found in times.items():
            self.journal.write(
                "result",
                workload=workload.name,
                result=result_entry(ready[name].contender, workload),
                seconds=found.device,
                host=found.host,
                wall=found.wall,
                facts=ready[name].facts,
            )

    def _graphs(self, workload: Workload, ready: dict[str, Ready], reference: Tensor) -> None:
        for name, found in ready.items():
            place = {"workload": workload.name, "contender": name}
            if self.left() <= 0 or any(who == name and doing == "graph" for _, who, doing in self.crashed):
                continue
            self._begin(workload, name, "graph", CALL_LIMIT)
            try:
                replay, scores = self.device.graph(found.call)
                self.device.elapsed(replay)
                error = bench.relative_error(scores, reference)
                if not error <= max(bench.MAX_RELATIVE_ERROR, 2 * found.facts["max_relative_error"]):
                    msg = f"the graph's scores have a relative error of {error:.1e}"
                    raise ValueError(msg)
                call = Prepared(replay)  # type: ignore[arg-type]
                seconds = [on_device(self.device, call, 1e-4) for _ in range(GRAPH_ROUNDS)]
            except Exception as error:
                self._failed(error, "graph")
                continue
            self.journal.write("graph", **place, seconds=seconds)

    def first_calls(self, workload: Workload, contenders: Sequence[Contender]) -> None:
        """Time first calls in processes of their own."""
        if "first calls" in self.finished:
            return
        caches = {"cold": "empty", "warm": "filled"}
        workloads = {}
        for name, state in caches.items():
            shape = f"{workload.shape}, first call of a process, {state} compiler cache"
            about = {"name": f"gpu-first-call-{name}", "shape": shape, "bytes": 0, "flops": 0.0}
            workloads[name] = {**workload_entry(workload), **about}
            self.journal.write("workload", **workloads[name])
        for contender in contenders:
            if contender.name in FIRST_CALLS:
                self._first_calls(workload, contender, workloads)
        self._done("first calls")

    def _first_calls(self, workload: Workload, contender: Contender, workloads: dict[str, Entry]) -> None:
        reason = contender.why_not(workload)
        found: dict[str, list[float]] = {name: [] for name in workloads}
        with tempfile.TemporaryDirectory() as folder:
            for number in range(COLD_CALLS):
                reason = reason or self._first_call(workload, contender, Path(folder) / str(number), found["cold"])
            for _ in range(WARM_CALLS):
                reason = reason or self._first_call(workload, contender, Path(folder) / "0", found["warm"])
        nothing = dict.fromkeys(("first_call", "packing", "max_relative_error", "kendall_tau"))
        for name, seconds in found.items():
            place = {"workload": workloads[name]["name"]}
            if seconds:
                facts = {**nothing, "wrong": False}
                result = result_entry(contender, workload)
                self.journal.write("result", **place, result=result, seconds=seconds, host=[], wall=[], facts=facts)
            else:
                self.journal.write("skip", **place, contender=contender.name, reason=reason)

    def _first_call(self, workload: Workload, contender: Contender, cache: Path, found: list[float]) -> str | None:
        """Add one first call; return why there is none."""
        if self.left() <= LATE_RESERVE:
            return NO_TIME
        self._begin(workload, contender.name, "first call", first_call.LIMIT + 10)
        try:
            found.append(first_call.measured_apart(workload.name, contender.name, cache))
        except RuntimeError as error:
            return f"failed: {error}"
        return None

    def _begin(self, workload: Workload, contender: str, doing: str, limit: float) -> None:
        self._turn = (workload.name, contender, doing)
        self.journal.write("begin", workload=workload.name, contender=contender, doing=doing, limit=limit)

    def _failed(self, error: Exception, event: str = "skip") -> None:
        """Say why there is no result; end this process if the device is lost to it."""
        workload, contender, doing = self._turn
        place = {"workload": workload, "contender": contender}
        reason = f"failed: {' '.join(str(error).split())[:300] or type(error).__name__}"
        if self.device.healthy():
            self.journal.write(event, **place, reason=reason)
            return
        self.journal.write("crash", **place, doing=doing, reason=reason)
        raise SystemExit(CRASHED)


def _gradient_error(leaves: tuple[Tensor, ...], gradients: tuple[Tensor, Tensor]) -> float:
    """Of the gradients of queries and documents, the larger norm of the difference relative to that of the right ones.

    A norm, because where two tokens are almost equally similar another one may get the gradient.
    """
    errors = []
    for leaf, right in zip(leaves, gradients, strict=True):
        if leaf.grad is None:
            return float("inf")
        errors.append(float((leaf.grad.double().reshape(right.shape) - right).norm() / right.norm()))
    return max(errors)


def main() -> int:
    """Run the command; returns its exit status."""
    journal, end = Journal(Path(sys.argv[1])), float(sys.argv[2])
    threads = machine.limit_threads()
    torch.set_num_threads(threads)
    from benchmarks.cuda.contenders import CONTENDERS

    device = Cuda()
    if not any(line["event"] == "run" for line in journal.lines()):
        limits = peaks.cuda_limits()
        journal.write("run", profile="full", machine=machine.describe_gpu(threads), limits=limits)
    Worker(device, journal, device.clock() + end - time.time()).run(machine.gpu_workloads(), CONTENDERS)
    journal.write("end", state=machine.gpu_state())
    return 0


if __name__ == "__main__":
    sys.exit(main())
