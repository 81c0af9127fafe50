"""Every contender on every workload: checked against float64 first, then timed turn by turn.

Cases are ordered workload > turn > contender, and every turn begins with another contender, so that a slow minute
of the machine falls on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import Tensor

from benchmarks import machine, memory
from benchmarks.contender import Check, Contender, Prepared, check
from benchmarks.contenders import CONTENDERS
from benchmarks.recorder import result_entry, workload_entry
from colbert_fast import bench
from colbert_fast.bench import Inputs, Workload


@dataclass(frozen=True)
class Profile:
    """What is timed, and how often."""

    workloads: tuple[Workload, ...]
    contenders: tuple[Contender, ...]
    turns: int
    rounds: int
    """In every turn."""
    budget: float
    """Seconds for one contender on one workload; a slower one gets fewer rounds, and the results say how many."""
    peak_memory: tuple[str, ...] = ()
    """Workloads whose peak memory is measured."""

    def rounds_in(self, turn: int, seconds: float) -> int:
        """Rounds of a contender whose call takes so long: all, one a turn, or one in each of the first three."""
        if seconds * self.rounds * self.turns <= self.budget:
            return self.rounds
        return 1 if turn < 3 or seconds * self.turns <= self.budget else 0


def _tiny(workload: Workload) -> Workload:
    return replace(workload, nq=min(workload.nq, 2), nd=6, lq=8, ld=20)


ALL = (*bench.WORKLOADS, *machine.gpu_workloads())
SHORT = tuple(workload for workload in bench.WORKLOADS if workload.name in bench.SHORT)
# One of every kind: dtype, layout, cold, backward, device.
KINDS = {(w.dtype, w.layout, w.flush, w.backward, w.device): w for w in reversed(ALL)}
MAIN = tuple(contender for contender in CONTENDERS if contender.main)
PROFILES = {
    "full": Profile(
        ALL, CONTENDERS, 5, 4, 20.0, ("rerank-text-float32", "ragged-list-float32", "train-inbatch-float32")
    ),
    "quick": Profile(SHORT, MAIN, 3, 2, 10.0),
    # Compiling takes longer than all the rest of a smoke run.
    "smoke": Profile(tuple(map(_tiny, reversed(KINDS.values()))), MAIN, 1, 1, 60.0),
}


def _why_not(contender: Contender, workload: Workload) -> str | None:
    """Return the reason why it is not timed here, or None."""
    return contender.why_not(workload) or ("make bench-gpu times it" if workload.device == "cuda" else None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Order the cases; a contender that cannot run is named once."""
    profile = PROFILES[metafunc.config.getoption("profile")]
    cases = []
    for workload in profile.workloads:
        for turn in range(profile.turns):
            first = turn % len(profile.contenders)
            for contender in profile.contenders[first:] + profile.contenders[:first]:
                if turn == 0 or _why_not(contender, workload) is None:
                    case = f"{workload.name}-{turn}-{contender.name}"
                    cases.append(pytest.param(workload, turn, contender, id=case))
    metafunc.parametrize(("workload", "turn", "contender"), cases)


@dataclass
class Entry:
    """A contender that is ready to be timed."""

    prepared: Prepared
    check: Check
    first_call: float
    seconds: float
    """Of a call that compiles nothing, roughly."""


class Stand:
    """The inputs of the workload that is being timed, shared by all contenders; the last one's are let go."""

    def __init__(self) -> None:
        self.inputs: Inputs | None = None
        self.reference: Tensor | None = None
        self.entries: dict[str, Entry | Exception] = {}

    def draw(self, workload: Workload) -> Inputs:
        """Return the inputs of a workload."""
        if self.inputs is None or self.inputs.workload is not workload:
            self.entries = {}
            self.inputs = self.reference = None
            self.inputs = workload.inputs()
            self.reference = self.inputs.reference()
        return self.inputs

    def entry(self, contender: Contender) -> Entry:
        """Return a contender whose scores were checked. An error is raised again in every turn."""
        if contender.name not in self.entries:
            try:
                self.entries[contender.name] = self._checked(contender)
            except Exception as error:
                self.entries[contender.name] = error
        entry = self.entries[contender.name]
        if isinstance(entry, Exception):
            raise entry
        return entry

    def _checked(self, contender: Contender) -> Entry:
        assert self.inputs is not None
        assert self.reference is not None
        prepared = contender.prepare(self.inputs)
        start = time.perf_counter()
        scores = prepared.score()
        first_call = seconds = time.perf_counter() - start
        checked = check(contender, scores, self.reference, exact=not self.inputs.workload.quantized)
        if first_call > 1:
            _clear(prepared)
            start = time.perf_counter()
            prepared.score()
            seconds = time.perf_counter() - start
        return Entry(prepared, checked, first_call, seconds)


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """One workload's inputs at a time."""
    yield Stand()


def test_scoring(
    benchmark: Any,
    pytestconfig: pytest.Config,
    recorder: Any,
    stand: Stand,
    workload: Workload,
    turn: int,
    contender: Contender,
) -> None:
    if reason := _why_not(contender, workload):
        recorder.open(workload_entry(workload))
        recorder.skip(workload.name, contender.name, reason)
        pytest.skip(reason)
    profile = PROFILES[pytestconfig.getoption("profile")]
    inputs = stand.draw(workload)
    recorder.open(workload_entry(workload, inputs))
    try:
        entry = stand.entry(contender)
    except Exception as error:
        recorder.skip(workload.name, contender.name, f"failed: {error}")
        if contender.kind == "ours":
            raise
        pytest.skip(f"failed: {error}")
    rounds = profile.rounds_in(turn, entry.seconds)
    if not rounds:
        pytest.skip(f"one call takes {entry.seconds:.1f} s: enough rounds in earlier turns")
    benchmark.group = workload.name
    benchmark.extra_info.update(contender=contender.name, turn=turn, **entry.check._asdict())
    warmup = bench.warm_up_rounds(entry.seconds) if rounds == profile.rounds else 0
    benchmark.pedantic(entry.prepared.score, setup=_rest(workload, entry), rounds=rounds, warmup_rounds=warmup)
    if benchmark.stats is not None:
        facts = _facts(entry)
        if turn == 0 and workload.name in profile.peak_memory:
            facts["peak_memory"] = memory.measured_apart(workload.name, contender.name)
        recorder.add(workload.name, result_entry(contender, workload), benchmark.stats.stats.data, **facts)


def _facts(entry: Entry) -> dict[str, Any]:
    return {"first_call": entry.first_call, "packing": entry.prepared.packing, **entry.check._asdict()}


def _rest(workload: Workload, entry: Entry) -> Any:
    def rest() -> None:
        _clear(entry.prepared)
        if workload.flush:
            bench.flush_caches()
        bench.rest()

    return rest


def _clear(prepared: Prepared) -> None:
    for leaf in prepared.leaves:
        leaf.grad = None
