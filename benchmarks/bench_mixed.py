"""Scoring in the middle of other work, which benchmarks/mixed.py lists: the time of the scoring call alone.

Every contender is checked against float64 first, and then timed turn by turn, as in benchmarks/bench_scoring.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.bench_scoring import MAIN, checked_entry, stand
from benchmarks.contender import Contender, turn_by_turn
from benchmarks.mixed import MOMENTS, Moment, workload
from benchmarks.recorder import result_entry, workload_entry
from colbert_fast import bench

# Of ours, the call that names no backend.
CONTENDERS = tuple(found for found in MAIN if found.kind != "ours" or found.name == "colbert_fast")
# By profile: the numbers of documents, the turns, and the rounds in every turn.
PROFILES = {"full": ((100, 1000), 3, 20), "quick": ((100,), 2, 10), "smoke": ((6,), 1, 1)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sizes, turns, _ = PROFILES[metafunc.config.getoption("profile")]
    cases = [
        pytest.param(moment, nd, turn, contender, id=f"mixed-{moment.name}-{nd}-{turn}-{contender.name}")
        for nd in sizes
        for moment in MOMENTS
        for turn, contender in turn_by_turn(CONTENDERS, turns)
    ]
    metafunc.parametrize(("moment", "nd", "turn", "contender"), cases)


def test_mixed(
    benchmark: Any,
    pytestconfig: pytest.Config,
    recorder: Any,
    moment: Moment,
    nd: int,
    turn: int,
    contender: Contender,
) -> None:
    _, _, rounds = PROFILES[pytestconfig.getoption("profile")]
    timed = workload(moment, nd)
    # All moments share the inputs, which are checked once.
    found = stand(replace(timed, name=f"mixed-{nd}", source=""))
    recorder.open({**workload_entry(timed, found.inputs), "moment": moment.words})
    if reason := contender.why_not(timed):
        recorder.skip(timed.name, contender.name, reason)
        pytest.skip(reason)
    entry = checked_entry(found, contender, timed, recorder)
    benchmark.group = timed.name
    benchmark.extra_info.update(contender=contender.name, turn=turn, **entry.check._asdict())
    score = entry.prepared.score
    with moment.surroundings(score):
        warmup = bench.warm_up_rounds(entry.seconds) if rounds > 1 else 0
        benchmark.pedantic(score, setup=moment.before, rounds=rounds, warmup_rounds=warmup)
    if benchmark.stats is not None:
        facts = {"first_call": entry.first_call, **entry.check._asdict()}
        recorder.add(timed.name, result_entry(contender, timed), benchmark.stats.stats.data, **facts)
