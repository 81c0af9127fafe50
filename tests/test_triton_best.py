"""The best documents by keys, in one launch and in several. test_triton.py runs the kernel in the interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_topk import expected
from torch import Tensor

import colbert_fast as cf
from colbert_fast import _topk
from colbert_fast._backends import triton_, triton_best

INF, NAN = float("inf"), float("nan")
# A chunk that is full, two, and so many that there are three launches.
SIZES = [(1, 1), (16, 15), (17, 1), (70, 3)] if triton_.INTERPRETED else [(1, 1), (1024, 1000), (1025, 3), (70_000, 17)]
DEVICES = ["cpu"] if triton_.INTERPRETED else [pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def found(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values = torch.empty((len(scores), k), dtype=torch.float32, device=scores.device)
    numbers = torch.empty((len(scores), k), dtype=torch.int64, device=scores.device)
    triton_best._fill(scores, values, numbers)
    return values, numbers


def check(scores: Tensor, k: int) -> None:
    values, numbers = found(scores, k)
    best, order = expected(scores.cpu(), k)
    assert numbers.tolist() == order.tolist()
    assert torch.equal(values.cpu().view(torch.int32), scores.cpu().gather(1, order).view(torch.int32))
    torch.testing.assert_close(values.cpu(), best, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("nd", "k"), SIZES)
def test_ties_and_special_numbers_are_sorted_as_by_a_stable_sort(
    device: str, nd: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties within and across chunks; zeros of both signs are equal; NaN of any sign comes first."""
    if triton_.INTERPRETED:
        monkeypatch.setattr(triton_best, "_CHUNK", 16)
    values = torch.tensor([0.0, -0.0, 1.5, -1.5, 1e-42, -1e-42, 3e38, -3e38, -1e9, INF, -INF, NAN])
    nan = torch.tensor([0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    for some in (torch.cat([values, nan]), values[:9], torch.tensor([-INF, -3e38, 0.0])):
        scores = some[torch.randint(len(some), (2, nd))]
        check(scores.to(device), k)
    check(torch.randn(1, nd).to(device), k)


def test_a_call_finds_them(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_topk, "_LEAST_DOCUMENTS", 1)
    monkeypatch.setattr(_topk, "_LEAST_DOCUMENTS_FOR_EACH", 1)
    if triton_.INTERPRETED:
        monkeypatch.setattr(triton_best, "_CHUNK", 16)
        monkeypatch.setattr(triton_best, "_MOST_KEPT", 4)
    a, b = torch.randn(2, 3, 8).to(device), torch.randn(24, 2, 8).to(device)
    b[[9, 20, 21]] = b[3].clone()
    lists = [x[:1] for x in b[:18].cpu()] if device == "cpu" else list(b)
    for documents in (b, cf.PackedTokens.from_padded(b), lists):
        scores = cf.maxsim(a, documents, backend="triton")
        for k in (3, len(documents)):  # by keys, and by torch
            values, order = expected(scores, k)
            best, numbers = cf.topk(a, documents, k, backend="triton")
            assert torch.equal(best, values) and torch.equal(numbers, order)
