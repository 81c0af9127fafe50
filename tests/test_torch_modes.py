"""Modes, transforms and tensors without values change no score and break no call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import colbert_fast as cf
from colbert_fast import _lowering

Q = torch.randn(2, 4, 8)
D = torch.randn(3, 5, 8)
LIST = [D[0], D[1, :2], D[2]]
MASK = torch.arange(5) < torch.tensor([[5], [2], [4]])

CALLS: dict[str, Callable[[], Any]] = {
    "padded": lambda: cf.maxsim(Q, D),
    "masked": lambda: cf.maxsim(Q, D, b_mask=MASK),
    "masked by lists": lambda: cf.maxsim(Q, D, b_mask=MASK.tolist()),
    "list": lambda: cf.maxsim(list(Q), LIST),
    "masked list": lambda: cf.maxsim(Q, LIST, b_mask=MASK),
    "arrays": lambda: cf.maxsim([q.numpy() for q in Q], D.numpy()),
    "numbers": lambda: cf.maxsim(Q, D.tolist()),
    "nothing": lambda: cf.maxsim([], []),
    "packed": lambda: cf.maxsim(Q, cf.PackedTokens.from_list(LIST)),
    "int8": lambda: cf.maxsim(Q, cf.PackedTokens.from_list(LIST).quantize("int8")),
    "pairwise": lambda: cf.maxsim_pairwise(Q, D[:2]),
    "pairs": lambda: cf.maxsim_pairs(Q, D, [[0, 2], [1, 0]]),
    "groups": lambda: cf.maxsim_pairwise(Q, torch.stack([D, D]), b_mask=[[[1, 1, 0, 1, 0]]], length_normalize=True),
    "argmax": lambda: cf.maxsim_with_argmax(Q, D, b_mask=MASK)[1],
    "argmax of a list": lambda: cf.maxsim_with_argmax(Q, LIST, b_mask=MASK.tolist())[1],
    "argmax of pairs": lambda: cf.maxsim_with_argmax(Q, LIST, pairs=[[0, 2], [1, 0]])[1],
    "topk": lambda: cf.topk(Q, D, 2)[0],
    "candidates": lambda: cf.topk(Q, D, 2, candidates=[[2, 0], [1]])[0],
    "gradient": lambda: gradient(Q),
}


def gradient(q: Tensor) -> Tensor:
    leaf = q.clone().requires_grad_()
    cf.maxsim(leaf, D).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.fixture(autouse=True)
def no_offsets() -> Iterator[None]:
    """Whatever a test leaves in the cache stays in it."""
    _lowering._shared_offsets.cache_clear()
    yield
    _lowering._shared_offsets.cache_clear()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_default_device_does_not_matter(call: Callable[[], Any]) -> None:
    expected = call()
    with torch.device("meta"):
        scores = call()
    assert torch.equal(scores, expected)


RUN_HERE = [b.name for b in cf.backends() if b.unsupported is None and b.device in (None, "cpu")]
# torch compiles its own formulas of forward mode with torch.jit, and warns of that; the category varies.
IGNORE_JIT = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:Warning")


@pytest.mark.parametrize("backend", RUN_HERE)
def test_autocast_does_not_matter(backend: str) -> None:
    leaf = Q.clone().requires_grad_()
    expected = cf.maxsim(leaf, D, backend=backend)
    (expected_grad,) = torch.autograd.grad(expected.sum(), leaf)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = cf.maxsim(leaf, D, backend=backend)
        (grad,) = torch.autograd.grad(scores.sum(), leaf)
    assert torch.equal(scores, expected)
    assert torch.equal(grad, expected_grad)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    "grad": lambda f: torch.func.grad(f)(torch.ones(())),
    "jvp": lambda f: torch.func.jvp(f, (torch.ones(()),), (torch.ones(()),))[1],
    "vjp": lambda f: torch.func.vjp(f, torch.ones(()))[1](torch.ones(()))[0],
    "functionalize": lambda f: torch.func.functionalize(f)(torch.ones(())),
}


@IGNORE_JIT
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_scores_may_be_constants_of_a_transform(transform: Callable[[Callable[[Tensor], Tensor]], Any]) -> None:
    for score in (lambda: cf.maxsim(Q, D), lambda: cf.maxsim(Q, LIST), lambda: cf.maxsim(Q, D, b_mask=MASK)):
        expected = score().sum()
        torch.testing.assert_close(transform(lambda x, score=score: score().sum() * x), expected)
        assert torch.equal(score().sum(), expected), "it left something behind"


@IGNORE_JIT
@pytest.mark.parametrize("documents", [D, LIST], ids=["padded", "list"])
def test_forward_mode_raises(documents: Any) -> None:
    with pytest.raises(NotImplementedError, match="forward"):
        torch.func.jvp(lambda q: cf.maxsim(q, documents).sum(), (Q,), (torch.ones_like(Q),))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward"):
        cf.maxsim(Q, [forward_ad.make_dual(d, torch.ones_like(d)) for d in documents])


def test_zeros_that_have_no_memory_are_zeros() -> None:
    zeros = torch._efficientzerotensor((3, 5, 8))
    assert zeros.data_ptr() == 0
    assert (cf.maxsim(Q, list(zeros)) == 0).all()
    assert (cf.maxsim(Q, [D[0], zeros[0]])[:, 1] == 0).all()
    assert (cf.maxsim(zeros, D) == 0).all()
    assert (cf.maxsim(Q, cf.PackedTokens.from_padded(zeros)) == 0).all()


def test_nobody_gets_hold_of_the_shared_offsets() -> None:
    expected = cf.maxsim(Q, D)

    def freed(saved: Tensor) -> Tensor:
        copy = saved.clone()
        if not saved.is_floating_point():
            saved.detach().numpy().fill(0)  # torch does not notice this write
        return copy

    with torch.autograd.graph.saved_tensors_hooks(freed, lambda copy: copy):
        cf.maxsim(Q.clone().requires_grad_(), D)
    assert torch.equal(cf.maxsim(Q, D), expected)


@pytest.mark.parametrize("numbers", [np.array([[1, 0], [2, 0]])[:, ::-1], np.array([[0, 1], [0, 2]], ">i8")])
def test_pairs_are_taken_from_any_array(numbers: np.ndarray[Any, Any]) -> None:
    numbers.flags.writeable = False
    expected = cf.maxsim_pairs(Q, D, [[0, 1], [0, 2]])
    assert torch.equal(cf.maxsim_pairs(Q, D, numbers), expected)
    found, _ = cf.topk(Q[:1], D, 2, candidates=[numbers[:, 1]])
    assert torch.equal(found, expected.sort(descending=True).values[None])
    assert torch.equal(cf.topk(Q, D, 2, candidates=numbers)[0], cf.topk(Q, D, 2, candidates=[[0, 1], [0, 2]])[0])


def test_one_long_document_does_not_pad_a_masked_list() -> None:
    items = [torch.randn(2, 8), torch.randn(300, 8), torch.randn(0, 8)]
    keep = torch.rand(3, 300) < 0.5
    lowered, _ = _lowering.lower(items, keep, "b")
    assert lowered.rows == int(keep[0, :2].sum() + keep[1].sum())
    assert torch.equal(lowered[1], items[1][keep[1]])
    assert torch.equal(lowered[0], items[0][keep[0, :2]])


def test_candidates_and_masks_of_known_size_compile() -> None:
    def best(q: Tensor, d: Tensor, candidates: Tensor) -> Tensor:
        return cf.topk(q, d, 2, candidates=candidates)[0]

    def masked(q: Tensor, d: Tensor) -> Tensor:
        return cf.maxsim(q, d, None, torch.ones(3, 5))

    candidates = torch.tensor([[2, 0], [1, 0]])
    compiled = torch.compile(best, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(Q, D, candidates), best(Q, D, candidates))
    compiled_mask = torch.compile(masked, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled_mask(Q, D), masked(Q, D))
