"""topk agrees with sorting the whole score matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import colbert_fast as cf
from colbert_fast import _topk


def expected(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], order[:, :k]


@pytest.mark.parametrize("k", [1, 3, 20])
def test_all_documents(backend: str, k: int) -> None:
    a, b = torch.randn(3, 4, 8), torch.randn(20, 5, 8)
    scores, numbers = cf.topk(a, b, k, backend=backend)
    values, order = expected(cf.maxsim(a, b, backend=backend), k)
    assert torch.equal(scores, values)
    assert torch.equal(numbers, order)
    assert numbers.dtype == torch.int64


def test_in_runs(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_topk, "CHUNK_ELEMENTS", 12)  # four documents at a time
    a, b = torch.randn(3, 4, 8), torch.randn(22, 5, 8)
    b[7], b[19] = b[2], b[2]
    scores, numbers = cf.topk(a, b, 4, backend=backend)
    values, order = expected(cf.maxsim(a, b, backend=backend), 4)
    torch.testing.assert_close(scores, values)
    assert torch.equal(numbers, order)


def test_fewer_documents_than_k(backend: str) -> None:
    scores, numbers = cf.topk(torch.randn(2, 4, 8), torch.randn(3, 5, 8), 5, backend=backend)
    assert torch.equal(scores[:, 3:], torch.full((2, 2), float("-inf")))
    assert numbers[:, 3:].tolist() == [[-1, -1]] * 2
    assert sorted(numbers[0, :3].tolist()) == [0, 1, 2]


ENOUGH = 1024  # a larger k always gets so many columns


@pytest.mark.parametrize("k", [np.int64(2), np.array(2, dtype=np.uint8), torch.tensor(2, dtype=torch.int32)])
def test_k_may_be_any_integer(k: Any) -> None:
    a, b = torch.randn(2, 4, 8), torch.randn(5, 3, 8)
    for candidates in (None, [[0, 3, 2], [1]]):
        actual, expected = cf.topk(a, b, k, candidates=candidates), cf.topk(a, b, 2, candidates=candidates)
        assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("k", [ENOUGH, ENOUGH + 1, 10**9, 2**63 - 1])
@pytest.mark.parametrize("nd", [3, ENOUGH + 6])
def test_a_large_k_gives_no_more_columns_than_can_be_filled(backend: str, nd: int, k: int) -> None:
    a, b = torch.randn(2, 1, 8), torch.randn(nd, 1, 8)
    scores, numbers = cf.topk(a, b, k, backend=backend)
    assert scores.shape == numbers.shape == (2, min(k, max(nd, ENOUGH)))
    values, order = expected(cf.maxsim(a, b, backend=backend), nd)
    there = min(k, nd)
    torch.testing.assert_close(scores[:, :there], values[:, :there])
    assert torch.equal(numbers[:, :there], order[:, :there])
    assert (scores[:, there:] == float("-inf")).all() and (numbers[:, there:] == -1).all()


@pytest.mark.parametrize("width", [3, ENOUGH + 6])
@pytest.mark.parametrize("kind", ["tensor", "lists"])
def test_a_large_k_of_candidates(kind: str, width: int) -> None:
    """However many documents there are."""
    a, b = torch.randn(2, 1, 8), torch.randn(3 * ENOUGH, 1, 8)
    rows = torch.stack([torch.randperm(len(b))[:width] for _ in a])
    candidates = rows if kind == "tensor" else [rows[0].tolist(), rows[1, :2].tolist()]
    scores, numbers = cf.topk(a, b, 10**9, candidates=candidates)
    assert scores.shape == numbers.shape == (2, max(width, ENOUGH))
    assert set(numbers[0, :width].tolist()) == set(rows[0].tolist())
    assert (numbers[0, width:] == -1).all()


def test_a_large_k_compiles() -> None:
    a, b = torch.randn(2, 1, 8), torch.randn(5, 1, 8)
    for k in (7, 10**9):
        compiled = torch.compile(lambda a, b, k=k: cf.topk(a, b, k), fullgraph=True, backend="aot_eager")
        assert all(map(torch.equal, compiled(a, b), cf.topk(a, b, k)))


@pytest.mark.parametrize("candidates", [None, [[4, 1, 2], [3]], torch.tensor([[4, 1], [0, 3]])], ids=repr)
def test_length_normalize(backend: str, candidates: Any) -> None:
    a, b = torch.randn(2, 4, 8), torch.randn(5, 3, 8)
    a[0, 1:3] = 0
    for queries, counts in ((a, [[2], [4]]), (list(a), [[4], [4]]), ([a[0, :1], a[1, :0]], [[1], [1]])):
        scores, numbers = cf.topk(queries, b, 3, candidates=candidates, backend=backend)
        mean, same = cf.topk(queries, b, 3, candidates=candidates, length_normalize=True, backend=backend)
        assert torch.equal(same, numbers)
        assert torch.equal(mean, scores / torch.tensor(counts))


def test_ties_keep_the_order_of_the_documents(backend: str) -> None:
    scores, numbers = cf.topk(torch.ones(1, 2, 4), torch.ones(6, 3, 4), 4, backend=backend)
    assert numbers.tolist() == [[0, 1, 2, 3]]
    assert scores.tolist() == [[8.0] * 4]


@pytest.mark.parametrize("kind", ["tensor", "lists", "ragged"])
def test_candidates(backend: str, kind: str) -> None:
    a, b = torch.randn(2, 4, 8), torch.randn(9, 5, 8)
    rows: list[list[int]] = [[8, 0, 3], [1, 2, 5]] if kind != "ragged" else [[8, 0, 3, 7], [1]]
    candidates = torch.tensor(rows) if kind == "tensor" else rows
    scores, numbers = cf.topk(a, b, 3, candidates=candidates, backend=backend)
    every = cf.maxsim(a, b, backend=backend)
    for i, row in enumerate(rows):
        best = sorted(row, key=lambda j: -every[i, j].item())[:3]
        assert numbers[i, : len(best)].tolist() == best
        torch.testing.assert_close(scores[i, : len(best)], every[i, best])
        assert numbers[i, len(best) :].tolist() == [-1] * (3 - len(best))
        assert (scores[i, len(best) :] == float("-inf")).all()


def test_nothing(backend: str) -> None:
    for a, b in ((torch.randn(0, 4, 8), torch.randn(3, 5, 8)), (torch.randn(2, 4, 8), torch.randn(0, 5, 8))):
        scores, numbers = cf.topk(a, b, 2, backend=backend)
        assert scores.shape == numbers.shape == (len(a), 2)
        assert (numbers == -1).all()
    scores, numbers = cf.topk(torch.randn(2, 4, 8), torch.randn(3, 5, 8), 2, candidates=[[], []], backend=backend)
    assert (numbers == -1).all()


def test_no_graph(backend: str) -> None:
    scores, _ = cf.topk(torch.randn(2, 4, 8, requires_grad=True), torch.randn(3, 5, 8), 2, backend=backend)
    assert not scores.requires_grad


def test_zero_rows_are_padding(backend: str) -> None:
    b = -torch.ones(2, 3, 4)
    b[0, 1] = 0
    scores, numbers = cf.topk(torch.ones(1, 1, 4), b, 2, backend=backend)
    assert scores.tolist() == [[-4.0, -4.0]]
    assert numbers.tolist() == [[0, 1]]
