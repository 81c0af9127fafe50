"""Nothing waits for a GPU, except the checks that are documented to wait.

A meta tensor has no values: whoever asks it for one gets an error. What a GPU would have to be waited for is so found
without one; and by CUDA itself, where there is a device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import colbert_fast as cf
from colbert_fast import packed
from colbert_fast._backends import triton_
from colbert_fast._backends.problem import Problem

DTYPE = torch.bfloat16


class NoCopies(TorchDispatchMode):
    """Raises when values go from one device to another, which waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor) and x.ndim}
        assert len(devices) <= 1, f"{func} copies between {devices}"
        return result


def ragged(device: str) -> cf.PackedTokens:
    lengths = torch.tensor([3, 70, 5, 1, 9])
    made = cf.PackedTokens(torch.randn(88, 16, dtype=DTYPE), lengths.cumsum(0) - lengths, lengths).to(device)
    assert made._order is not None
    return made


def train(score: Callable[..., Tensor], q: Tensor, d: cf.PackedTokens, *rest: Tensor) -> Tensor:
    rows = d.tokens.clone().requires_grad_()
    queries = q.clone().requires_grad_()
    score(queries, d.with_tokens(rows), *rest).sum().backward()
    assert rows.grad is not None and queries.grad is not None
    return rows.grad


CALLS: dict[str, Callable[[Tensor, cf.PackedTokens, Tensor], Any]] = {
    "maxsim": lambda q, d, numbers: cf.maxsim(q, d),
    "padded": lambda q, d, numbers: cf.maxsim(q, q, length_normalize=True),
    "masked": lambda q, d, numbers: cf.maxsim(q, q, a_mask=q[:, :, 0] > 0, b_mask=q[:, :, 1] > 0),
    "from_padded": lambda q, d, numbers: cf.maxsim(q, cf.PackedTokens.from_padded(q, q[:, :, 0] > 0)),
    "cat": lambda q, d, numbers: cf.maxsim(q, cf.PackedTokens.cat([d, d[1:3], d[4:]])),
    "to_padded": lambda q, d, numbers: (d.to_padded(), d[1:3].to_padded(70)),
    "part": lambda q, d, numbers: cf.maxsim(q, d[4:].to(dtype=torch.float32).to(dtype=DTYPE)),
    "pairwise": lambda q, d, numbers: cf.maxsim_pairwise(q, d, length_normalize=True),
    "groups": lambda q, d, numbers: cf.maxsim_pairwise(q, torch.stack([q, q], dim=1)),
    "argmax": lambda q, d, numbers: cf.maxsim_with_argmax(q, d),
    "argmax, masked": lambda q, d, numbers: cf.maxsim_with_argmax(q, q, q[:, :, 0] > 0, q[:, :, 1] > 0),
    "topk": lambda q, d, numbers: cf.topk(q, d, 3),
    "backward": lambda q, d, numbers: train(cf.maxsim, q, d),
    "backward pairwise": lambda q, d, numbers: train(cf.maxsim_pairwise, q, d),
}
# These calls check numbers that are on the GPU, and wait for that once.
CHECKED: dict[str, Callable[[Tensor, cf.PackedTokens, Tensor], Any]] = {
    "pairs": lambda q, d, numbers: cf.maxsim_pairs(q, d, numbers[:, :2]),
    "backward pairs": lambda q, d, numbers: train(cf.maxsim_pairs, q, d, numbers[:, :2]),
    "candidates": lambda q, d, numbers: cf.topk(q, d, 2, candidates=numbers),
}


def inputs(device: str) -> tuple[Tensor, cf.PackedTokens, Tensor]:
    queries = torch.randn(5, 4, 16, dtype=DTYPE).to(device)
    return queries, ragged(device), torch.tensor([[0, 1, 2]] * 5).to(device)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The numbers that were checked, which meta tensors cannot be."""
    seen: list[Tensor] = []
    for module in ("colbert_fast._maxsim", "colbert_fast._topk"):
        monkeypatch.setattr(sys.modules[module], "check_range", lambda numbers, counts, name: seen.append(numbers))
    return seen


@pytest.fixture(autouse=True)
def ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_ORDERED_ON", ("cuda", "meta", "cpu"))


@pytest.mark.parametrize("name", [*CALLS, *CHECKED])
def test_no_value_of_the_device_is_asked_for(name: str, checks: list[Tensor]) -> None:
    given = inputs("meta")
    with NoCopies():
        {**CALLS, **CHECKED}[name](*given)
    assert len(checks) == (name in CHECKED)


def test_what_asks_is_seen() -> None:
    """The other tests rely on this."""
    given = inputs("meta")
    for call in CHECKED.values():
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            call(*given)
    with NoCopies(), pytest.raises(AssertionError, match="copies between"):
        torch.zeros(3).to("meta")


def test_a_check_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents, numbers = inputs("cpu")
    reads = []
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: reads.append(self.shape) or tolist(self))
    monkeypatch.setattr(Tensor, "__int__", None)
    monkeypatch.setattr(Tensor, "__bool__", None)
    for call in CHECKED.values():
        reads.clear()
        call(queries, documents, numbers)
        assert len(reads) == 1


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the kernels that would have been launched, for a GPU that is not here."""
    names: list[str] = []
    monkeypatch.setattr(triton_, "_launch", lambda name, *_: names.append(name))
    monkeypatch.setattr(triton_, "_gpu", lambda _: triton_._Gpu("sm_90", 232448, 1))
    monkeypatch.setattr(triton_, "INTERPRETED", False)
    yield names
    triton_._score_plan.cache_clear()
    triton_._grad_plan.cache_clear()


@pytest.mark.parametrize("with_pairs", [False, True], ids=["all", "pairs"])
@pytest.mark.parametrize("lq", [32, 1000], ids=["short", "long"])
def test_the_triton_backend_asks_for_no_value(lq: int, with_pairs: bool, planned: list[str]) -> None:
    q = cf.PackedTokens.from_padded(torch.randn(2, lq, 16, dtype=DTYPE, device="meta"))
    d = ragged("meta")
    pairs = torch.zeros(7, 2, dtype=torch.int64, device="meta") if with_pairs else None
    p = Problem.of(q, d, pairs, (True, True))
    with NoCopies():
        triton_.score(p)
        scores, argmax, empty = triton_.score_argmax(p)
        assert argmax is not None and not empty
        triton_.backward(p, scores.flatten(), argmax, True, True)
    assert planned == ["score_kernel"] * 2 + ["grad_kernel", "rank_kernel", "grad_kernel"]


@pytest.mark.cuda
@pytest.mark.parametrize("name", [*CALLS, *CHECKED])
def test_cuda_sees_no_wait(name: str) -> None:
    """CUDA raises here when a call waits for the device. The calls with a check do wait."""
    given = inputs("cuda")
    call = {**CALLS, **CHECKED}[name]
    call(*given)  # Triton compiles, and loads what it compiled
    refused = pytest.raises(RuntimeError, match="synchroniz") if name in CHECKED else nullcontext()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with refused:
            call(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
