"""The functions that sentence-transformers takes, against its own: checked against them first, then timed turn by turn.

A row is one call: the scoring of a loss, forward and backward, or of the evaluator of retrieval. Each row ends with a
line of its own in the output, and is not part of the tables of the report.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks.contender import missing, turn_by_turn
from colbert_fast import bench

SIDES = ("ours", "theirs")
TURNS = {"full": 5, "quick": 3, "smoke": 1}
LIBRARY = "sentence-transformers"


class Row(NamedTuple):
    """The same call of both sides, which give the same numbers."""

    name: str
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]


def _unit(random: torch.Generator, *shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=random), dim=-1)


def _with_gradients(score: Callable[..., Tensor], q: Tensor, d: Tensor, masks: dict[str, Tensor]) -> Tensor:
    """Score as a loss does: with masks, and backward."""
    q, d = q.detach().requires_grad_(), d.detach().requires_grad_()
    scores = score(q, d, **masks)
    scores.sum().backward()
    return scores.detach()


def _losses(random: torch.Generator, batch: int, tokens: int) -> dict[str, tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Return the arguments that a loss hands to every scoring function."""
    q, d = _unit(random, batch, 32, 128), _unit(random, batch, 4, tokens, 128)
    lengths = torch.randint(tokens // 3, tokens + 1, (batch, 4, 1), generator=random)
    q_mask, d_mask = torch.ones(batch, 32, dtype=torch.bool), torch.arange(tokens) < lengths
    documents = {
        "colbert_scores": (d[:, :2], d_mask[:, :2]),
        "colbert_scores_pairwise": (d[:, 0], d_mask[:, 0]),
        "colbert_kd_scores": (d, d_mask),
    }
    return {name: (q, d, {"queries_mask": q_mask, "documents_mask": m}) for name, (d, m) in documents.items()}


@functools.cache
def rows(tiny: bool) -> dict[str, Row]:
    """Return every row of sentence-transformers by its name."""
    from sentence_transformers.multi_vector_encoder import scoring as theirs
    from sentence_transformers.util import maxsim

    from colbert_fast.integrations import sentence_transformers as ours

    random = torch.Generator().manual_seed(0)
    found = []
    for name, arguments in _losses(random, *((2, 6) if tiny else (32, 180))).items():
        sides = [functools.partial(_with_gradients, getattr(m, name), *arguments) for m in (ours, theirs)]
        found.append(Row(f"{LIBRARY}-{name}", *sides))
    # What the evaluator of retrieval scores: padded queries against a list of documents.
    lengths = torch.randint(3 if tiny else 30, 9 if tiny else 181, (6 if tiny else 1000,), generator=random)
    queries, documents = _unit(random, 2 if tiny else 16, 32, 128), [_unit(random, n, 128) for n in lengths.tolist()]
    sides = [functools.partial(score, queries, documents) for score in (ours.maxsim, maxsim)]
    found.append(Row(f"{LIBRARY}-evaluator", *sides))
    return {row.name: row for row in found}


NAMES = [
    f"{LIBRARY}-{name}" for name in ("colbert_scores", "colbert_scores_pairwise", "colbert_kd_scores", "evaluator")
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every turn begins with the other side."""
    turns = list(turn_by_turn(SIDES, TURNS[metafunc.config.getoption("profile")]))
    cases = [pytest.param(name, *case, id="{}-{}-{}".format(name, *case)) for name in NAMES for case in turns]
    metafunc.parametrize(("name", "turn", "side"), cases)


# The seconds of every round, by row and side.
_measured: dict[tuple[str, str], list[float]] = {}


def test_door(benchmark: Any, pytestconfig: pytest.Config, capsys: Any, name: str, turn: int, side: str) -> None:
    if reason := missing(LIBRARY):
        pytest.skip(reason)
    profile = pytestconfig.getoption("profile")
    row = rows(profile == "smoke")[name]
    if side == "ours":
        assert bench.relative_error(row.ours(), row.theirs().double()) <= bench.MAX_RELATIVE_ERROR
    benchmark.group = name
    benchmark.extra_info.update(contender=side, turn=turn)
    benchmark.pedantic(getattr(row, side), setup=bench.rest, rounds=3, warmup_rounds=1)
    if benchmark.stats is None:
        return
    _measured.setdefault((name, side), []).extend(benchmark.stats.stats.data)
    if (turn, side) == list(turn_by_turn(SIDES, TURNS[profile]))[-1]:
        ours, theirs = (1e3 * median(_measured[name, other]) for other in SIDES)
        with capsys.disabled():
            print(f"\n{name}: ours {ours:.2f} ms, theirs {theirs:.2f} ms, {theirs / ours:.1f}x")
