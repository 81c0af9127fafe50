"""Measure everything on the CUDA device, the first workloads first, until the time is over.

    python -m benchmarks.cuda.worker PROGRESS END

``END`` is in seconds since the epoch, so that the start of this process counts too.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import machine, peaks
from benchmarks.contender import WRONG, Contender, Prepared, check, right_gradients
from benchmarks.cuda import first_call
from benchmarks.cuda.contenders import CONTENDERS
from benchmarks.cuda.progress import Progress
from benchmarks.cuda.timing import Cuda, interleaved, on_device
from benchmarks.recorder import result_entry, workload_entry
from colbert_fast import bench
from colbert_fast.bench import Inputs, Workload

# Seconds of a call, and of a first call, which compiles and tunes. A worker that takes longer is stuck.
CALL_LIMIT, PREPARE_LIMIT = 30.0, 100.0
# Nothing that compiles begins in the last seconds.
LATE_RESERVE = 25.0
GRAPH_ROUNDS = 20
# Contenders whose first calls are timed on the first workload: one with an empty cache, two with what it left there.
FIRST_CALLS = ("colbert_fast triton", "late-interaction-kernels", "flash-maxsim")
COLD, WARM = "gpu-first-call-cold", "gpu-first-call-warm"


class Ready(NamedTuple):
    """A contender whose scores were checked."""

    contender: Contender
    call: Prepared
    facts: dict[str, Any]


class Worker:
    """Goes through the stages of a run; ``deadline`` is on the device's ``clock``."""

    def __init__(self, device: Cuda, progress: Progress, deadline: float) -> None:
        self.device = device
        self.progress = progress
        self.recorder = progress.recorder
        self.deadline = deadline

    def run(self, workloads: Sequence[Workload], contenders: Sequence[Contender]) -> None:
        """Measure what is ready at once on every workload, then the first calls, then what compiles for long."""
        first_calls = [contender for contender in contenders if contender.name in FIRST_CALLS]
        if not self.progress.order:
            self.progress.order = [contender.name for contender in contenders]
            self._announce(workloads, contenders, first_calls)
        main = [contender for contender in contenders if contender.main]
        for workload in workloads:
            self._stage(workload.name, workload, self._able(workload, main))
        self._first_calls(workloads[0], first_calls)
        for late in (contender for contender in contenders if not contender.main):
            for workload in workloads:
                if self.left() > LATE_RESERVE and self._able(workload, [late]):
                    # It is timed beside one of ours, so that both have seen the same minute.
                    ours = self._able(workload, [contender for contender in main if contender.kind == "ours"])
                    self._stage(f"{workload.name}/{late.name}", workload, [*ours[:1], late])

    def left(self) -> float:
        """Seconds."""
        return self.deadline - self.device.clock()

    def _announce(
        self, workloads: Sequence[Workload], contenders: Sequence[Contender], first_calls: Sequence[Contender]
    ) -> None:
        """Write down why every result is missing. A result, or another reason, replaces this later."""
        entries = [(workload_entry(workload), workload, contenders) for workload in workloads]
        for name, state in ((COLD, "empty"), (WARM, "filled")):
            shape = f"{workloads[0].shape}, first call of a process, {state} compiler cache"
            about = {"name": name, "shape": shape, "bytes": 0, "flops": 0.0}
            entries.append(({**workload_entry(workloads[0]), **about}, workloads[0], first_calls))
        for entry, workload, expected in entries:
            self.recorder.open(entry)
            for contender in expected:
                self.recorder.skip(entry["name"], contender.name, contender.why_not(workload) or "no time left")
        self.progress.save()

    def _able(self, workload: Workload, contenders: Sequence[Contender]) -> list[Contender]:
        """Return the contenders that can run, and have not ended a process with this workload."""
        return [
            contender
            for contender in contenders
            if contender.why_not(workload) is None and (workload.name, contender.name) not in self.progress.left_out
        ]

    def _done(self, stage: str) -> None:
        self.progress.save(stage)
        print(f"{max(0.0, self.left()):4.0f} s left: {stage}", flush=True)

    def _stage(self, name: str, workload: Workload, contenders: Sequence[Contender]) -> None:
        """Check and time contenders on a workload."""
        if name in self.progress.done or not contenders or self.left() <= 0:
            return
        try:
            inputs = workload.inputs()
            # Now it is known how long the documents are.
            self.recorder.open(workload_entry(workload, inputs))
            reference = inputs.reference()
            ready = self._prepare(inputs, contenders, reference)
            self._time(workload, ready)
        except Exception as error:  # The inputs or their reference failed: no contender is to blame.
            for contender in contenders:
                self.recorder.skip(workload.name, contender.name, f"failed: {error}")
            self._done(name)
        else:
            # A capture that fails can take the device down. Everything else is known by now.
            self._done(name)
            self._graphs(workload, ready, reference)

    def _prepare(self, inputs: Inputs, contenders: Sequence[Contender], reference: Tensor) -> dict[str, Ready]:
        """Check contenders; return those that are ready to be timed, by name."""
        workload = inputs.workload
        gradients = right_gradients(inputs) if workload.backward else None
        ready = {}
        for contender in contenders:
            if self.left() <= 0:
                break
            self.progress.begin(workload.name, contender.name, "prepare", PREPARE_LIMIT)
            try:
                ready[contender.name] = self._checked(contender, inputs, reference, gradients)
            except Exception as error:
                self._failed(error)
        return ready

    def _checked(
        self, contender: Contender, inputs: Inputs, reference: Tensor, gradients: tuple[Tensor, Tensor] | None
    ) -> Ready:
        call = contender.prepare(inputs)
        self.device.synchronize()
        start = self.device.clock()
        call.score()
        self.device.synchronize()
        first = self.device.clock() - start
        call.clear()
        # The first call may have tuned. The second is like those to be timed, so its scores are checked.
        self.device.poison(reference.shape)
        checked = check(contender, call.score(), reference, exact=not inputs.workload.quantized)
        facts = {"first_call": first, "packing": call.packing, **checked._asdict()}
        if gradients is not None:
            facts["gradient_error"] = _gradient_error(call.leaves, gradients)
            facts["wrong"] = checked.wrong or not facts["gradient_error"] <= WRONG
        facts["peak_memory"] = self.device.peak_memory(call)
        return Ready(contender, call, facts)

    def _time(self, workload: Workload, ready: dict[str, Ready]) -> None:
        """Time all that are ready. One that fails now is left out, and the others begin again."""

        def begin(name: str) -> None:
            self.progress.begin(workload.name, name, "time", CALL_LIMIT)

        while True:
            try:
                times = interleaved(self.device, {n: found.call for n, found in ready.items()}, begin, self.deadline)
                break
            except Exception as error:
                del ready[self._failed(error)]
        for name, found in times.items():
            entry = result_entry(ready[name].contender, workload)
            self.recorder.add(workload.name, entry, found.device, **ready[name].facts)
            self.recorder.add_also(workload.name, name, "host", found.host)
            self.recorder.add_also(workload.name, name, "wall", found.wall)

    def _graphs(self, workload: Workload, ready: dict[str, Ready], reference: Tensor) -> None:
        for name, found in ready.items():
            if self.left() <= 0 or ("graph", name) in self.progress.left_out:
                continue
            self.progress.begin(workload.name, name, "graph", CALL_LIMIT)
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
                self._failed(error)
            else:
                self.recorder.add_also(workload.name, name, "graph", seconds)
        self.progress.save()

    def _failed(self, error: Exception) -> str:
        """Blame the contender whose turn it is, and return its name. If the device is lost, end this process."""
        healthy = self.device.healthy()
        name = self.progress.blame(" ".join(str(error).split())[:300] or type(error).__name__, lost=not healthy)
        if not healthy:
            sys.exit("the device is lost to this process")
        assert name is not None
        return name

    def _first_calls(self, workload: Workload, contenders: Sequence[Contender]) -> None:
        """Time first calls, each in a process of its own."""
        if "first calls" in self.progress.done:
            return
        for contender in (found for found in contenders if found.why_not(workload) is None):
            with tempfile.TemporaryDirectory() as cache:
                try:
                    for name in (COLD, WARM, WARM):
                        if self.left() > LATE_RESERVE:
                            seconds = first_call.measured_apart(workload.name, contender.name, Path(cache))
                            self.recorder.add(name, result_entry(contender, workload), [seconds])
                except RuntimeError as error:
                    for name in (COLD, WARM):
                        self.recorder.skip(name, contender.name, f"failed: {error}")
        self._done("first calls")


def _gradient_error(leaves: tuple[Tensor, ...], gradients: tuple[Tensor, Tensor]) -> float:
    """Return the error of the gradient of the queries or of the documents, whichever is larger.

    An error is the norm of the difference over the norm of the right gradient. It is a norm because another token may
    get the gradient where two tokens are almost equally similar.
    """
    errors = []
    for leaf, right in zip(leaves, gradients, strict=True):
        if leaf.grad is None:
            return float("inf")
        errors.append(float((leaf.grad.double().reshape(right.shape) - right).norm() / right.norm()))
    return max(errors)


def main() -> None:
    """Run the command."""
    progress, end = Progress.load(Path(sys.argv[1])), float(sys.argv[2])
    threads = machine.limit_threads()
    torch.set_num_threads(threads)
    device = Cuda()
    if "machine" not in progress.about:
        progress.about.update(machine=machine.describe_gpu(threads), limits=peaks.cuda_limits())
    Worker(device, progress, device.clock() + end - time.time()).run(machine.gpu_workloads(), CONTENDERS)
    progress.about["machine"]["cuda"]["state_at_end"] = machine.gpu_state()
    progress.save()


if __name__ == "__main__":
    main()
