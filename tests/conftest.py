"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backends import REQUIRED, by_way_of

import colbert_fast as cf
from colbert_fast import _backends


@pytest.fixture(params=[b.name for b in cf.backends()])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every backend by name. One that cannot run here is skipped with its reason.

    COLBERT_FAST_REQUIRE="cpu:avx2,triton" turns the skips of these into failures. The tests make CPU tensors; a
    backend for another device gets them there and back.
    """
    name = _runnable(request.param)
    (chosen,) = (b for b in cf.backends() if b.name == name)
    if chosen.device in (None, "cpu"):
        yield name
        return
    others = [b for b in cf.backends() if b is not chosen]
    monkeypatch.setattr(_backends, "BACKENDS", (*others, by_way_of(chosen.device, chosen)))
    _backends._select.cache_clear()
    yield name
    _backends._select.cache_clear()


@pytest.fixture(params=[b.name for b in cf.backends() if b.name.startswith("cpu:")])
def native(request: pytest.FixtureRequest) -> str:
    """The tiers of the C++ extension only."""
    return _runnable(request.param)


def _runnable(name: str) -> str:
    reason = next(b.unsupported for b in cf.backends() if b.name == name)
    if reason is not None:
        (pytest.fail if name in REQUIRED else pytest.skip)(f"{name}: {reason}")
    return name


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty returns NaN, or -77 for integers, so that an output left unwritten is seen."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = empty(*args, **kwargs)
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor.fill_(-77) if tensor.dtype in (torch.int16, torch.int32, torch.int64) else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20240229)


@pytest.fixture
def threads() -> Iterator[Any]:
    """set_num_threads, undone after the test."""
    before = cf._backends.cpu._num_threads
    yield cf.set_num_threads
    cf._backends.cpu._num_threads = before
