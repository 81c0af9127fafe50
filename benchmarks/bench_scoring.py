"""Every contender on every workload: checked against float64 first, then timed turn by turn.

Cases are ordered workload > turn > contender, and every turn begins with another contender, so that a slow minute
of the machine falls on all of them.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import Tensor

from benchmarks import machine, memory
from benchmarks.contender import Check, Contender, Prepared, check, turn_by_turn
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
MEMORY = ("rerank-text-float32", "ragged-list-float32", "train-inbatch-float32")
PROFILES = {
    "full": Profile(ALL, CONTENDERS, 5, 4, 20.0, MEMORY),
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
    cases = [
        pytest.param(workload, turn, contender, id=f"{workload.name}-{turn}-{contender.name}")
        for workload in profile.workloads
        for turn, contender in turn_by_turn(profile.contenders, profile.turns)
        if turn == 0 or _why_not(contender, workload) is None
    ]
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
    """The inputs of a workload, shared by all contenders."""

    def __init__(self, workload: Workload) -> None:
        self.inputs: Inputs = workload.inputs()
        self._reference: Tensor = self.inputs.reference()
        self._entries: dict[str, Entry | Exception] = {}

    def entry(self, contender: Contender) -> Entry:
        """Return a contender whose scores were checked. An error is raised again in every turn."""
        if contender.name not in self._entries:
            try:
                self._entries[contender.name] = self._checked(contender)
            except Exception as error:
                self._entries[contender.name] = error
        entry = self._entries[contender.name]
        if isinstance(entry, Exception):
            raise entry
        return entry

    def _checked(self, contender: Contender) -> Entry:
        prepared = contender.prepare(self.inputs)
        start = time.perf_counter()
        scores = prepared.score()
        first_call = seconds = time.perf_counter() - start
        checked = check(contender, scores, self._reference, exact=not self.inputs.workload.quantized)
        if first_call > 1:
            prepared.clear()
            start = time.perf_counter()
            prepared.score()
            seconds = time.perf_counter() - start
        return Entry(prepared, checked, first_call, seconds)


# One workload's inputs at a time.
stand = functools.lru_cache(maxsize=1)(Stand)


def checked_entry(found: Stand, contender: Contender, workload: Workload, recorder: Any) -> Entry:
    """Return a contender whose scores were checked. One of others that fails is skipped, with the reason."""
    try:
        return found.entry(contender)
    except Exception as error:
        recorder.skip(workload.name, contender.name, f"failed: {error}")
        if contender.kind == "ours":
            raise
        pytest.skip(f"failed: {error}")


def test_scoring(
    benchmark: Any,
    pytestconfig: pytest.Config,
    recorder: Any,
    workload: Workload,
    turn: int,
    contender: Contender,
) -> None:
    if reason := _why_not(contender, workload):
        recorder.open(workload_entry(workload))
        recorder.skip(workload.name, contender.name, reason)
        pytest.skip(reason)
    profile = PROFILES[pytestconfig.getoption("profile")]
    found = stand(workload)
    recorder.open(workload_entry(workload, found.inputs))
    entry = checked_entry(found, contender, workload, recorder)
    rounds = profile.rounds_in(turn, entry.seconds)
    if not rounds:
        pytest.skip(f"one call takes {entry.seconds:.1f} s: enough rounds in earlier turns")

    def rest() -> None:
        entry.prepared.clear()
        if workload.flush:
            bench.flush_caches()
        bench.rest()

    benchmark.group = workload.name
    benchmark.extra_info.update(contender=contender.name, turn=turn, **entry.check._asdict())
    warmup = bench.warm_up_rounds(entry.seconds) if rounds == profile.rounds else 0
    benchmark.pedantic(entry.prepared.score, setup=rest, rounds=rounds, warmup_rounds=warmup)
    if benchmark.stats is not None:
        facts = {"first_call": entry.first_call, "packing": entry.prepared.packing, **entry.check._asdict()}
        if turn == 0 and workload.name in profile.peak_memory:
            facts["peak_memory"] = memory.measured_apart(workload.name, contender.name)
        recorder.add(workload.name, result_entry(contender, workload), benchmark.stats.stats.data, **facts)
