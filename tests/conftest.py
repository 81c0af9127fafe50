"""Fixtures shared by all tests."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The folder with benchmarks/. It comes last, so that the installed colbert_fast is tested, not the one in this folder.
sys.path.append(str(Path(__file__).parents[1]))

import pytest
import torch
from backends import by_way_of
from lacking import FILES, LACKING, here, left_out

import colbert_fast as cf
from colbert_fast import _backends, _threads
from colbert_fast._backends import cpu, triton_
from colbert_fast._extension import MISSING

collect_ignore = [file for name in LACKING for file in FILES.get(name, [])]
if triton_.INTERPRETED:
    from interpreter import prepare_once, sort_with_numpy

    prepare_once()
    sort_with_numpy()
else:
    # test_triton.py runs them in a process with the interpreter.
    collect_ignore += ["test_triton_kernels.py", "test_triton_upper_kernel.py"]


def pytest_report_header() -> str:
    return f"colbert_fast: {Path(cf.__file__).parent}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    out = [item for item in items if left_out(item)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test fail where it asks the network."""

    def refuse(*args: object) -> None:
        pytest.fail(f"the network was asked for {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(params=here(b.name for b in cf.backends()))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of every backend that can run here, and every name in COLBERT_FAST_REQUIRE, which fails if it cannot.

    The tests make CPU tensors; a backend for another device gets them there and back.
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


@pytest.fixture(params=here(b.name for b in cf.backends() if b.name.startswith("cpu:")))
def native(request: pytest.FixtureRequest) -> str:
    """The names of the backends of the C++ extension only."""
    return _runnable(request.param)


def _runnable(name: str) -> str:
    if name in LACKING:
        pytest.fail(f"{name}: {LACKING[name]}")
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
    before = _threads._num_threads
    yield cf.set_num_threads
    _threads._num_threads = before


@pytest.fixture
def extension() -> str:
    """The best tier, for tests of the threads, which are the same for all tiers."""
    if cpu._C is None:
        pytest.skip(MISSING)
    return "cpu"
