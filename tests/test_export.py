"""torch.export with open sizes, and torch.compile(dynamic=True): one program for every size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

import colbert_fast as cf
from colbert_fast._environment import release

A, B, LQ, LD = Dim("A"), Dim("B"), Dim("LQ"), Dim("LD")
QUERIES, DOCUMENTS, NUMBERS = {0: A, 1: LQ}, {0: B, 1: LD}, {0: Dim("P")}
# The program is made for 3 queries of 4 tokens and 5 documents of 6 tokens, and run with these sizes.
SIZES = [(3, 4, 5, 6), (1, 9, 1, 2), (7, 1, 3, 1), (2, 3, 5000, 2), (4500, 2, 3, 3)]
PACKED = cf.PackedTokens.from_list([torch.randn(n, 8) for n in (3, 0, 7)])
SMALL = PACKED.quantize()


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


class Case:
    def __init__(self, function: Callable[..., Any], inputs: Callable[..., tuple[Tensor, ...]], *open_sizes: Any):
        self.function = function
        self.inputs = inputs
        self.open_sizes = open_sizes


def padded(nq: int, lq: int, nd: int, ld: int) -> tuple[Tensor, ...]:
    return torch.randn(nq, lq, 8), torch.randn(nd, ld, 8)


def documents_masked(nq: int, lq: int, nd: int, ld: int) -> tuple[Tensor, ...]:
    keep = torch.rand(nd, ld) < 0.7
    keep[:, 0] = True
    return *padded(nq, lq, nd, ld), keep


def both_masked(nq: int, lq: int, nd: int, ld: int) -> tuple[Tensor, ...]:
    q, d, keep = documents_masked(nq, lq, nd, ld)
    return q, d, torch.rand(nq, lq) < 0.7, keep


def as_many(nq: int, lq: int, nd: int, ld: int) -> tuple[Tensor, ...]:
    q, d, keep = documents_masked(nq, lq, nq, ld)
    return q, d, keep


def listed(nq: int, lq: int, nd: int, ld: int) -> tuple[Tensor, ...]:
    pairs = torch.stack([torch.randint(nq, (11,)), torch.randint(nd, (11,))], dim=1)
    return *padded(nq, lq, nd, ld), pairs


def with_candidates(nq: int, lq: int, nd: int, ld: int) -> tuple[Tensor, ...]:
    return *padded(nq, lq, nd, ld), torch.randint(nd, (nq, ld + 1))


CASES = {
    "maxsim": Case(cf.maxsim, padded, QUERIES, DOCUMENTS),
    "normalized": Case(lambda q, d: cf.maxsim(q, d, length_normalize=True), padded, QUERIES, DOCUMENTS),
    "zero rows": Case(lambda q, d: cf.maxsim(q, d, pad="zero"), padded, QUERIES, DOCUMENTS),
    "mixed dtypes": Case(lambda q, d: cf.maxsim(q, d.half()), padded, QUERIES, DOCUMENTS),
    "mask": Case(lambda q, d, keep: cf.maxsim(q, d, None, keep), documents_masked, QUERIES, DOCUMENTS, DOCUMENTS),
    "masks": Case(
        lambda q, d, *keep: cf.maxsim(q, d, *keep, length_normalize=True),
        both_masked,
        *(QUERIES, DOCUMENTS, QUERIES, DOCUMENTS),
    ),
    "packed": Case(lambda q: cf.maxsim(q, PACKED), lambda *sizes: padded(*sizes)[:1], QUERIES),
    "int8": Case(lambda q: cf.maxsim(q, SMALL), lambda *sizes: padded(*sizes)[:1], QUERIES),
    "pairwise": Case(cf.maxsim_pairwise, lambda *sizes: as_many(*sizes)[:2], QUERIES, {0: A, 1: LD}),
    "pairwise, mask": Case(
        lambda q, d, keep: cf.maxsim_pairwise(q, d, None, keep, length_normalize=True),
        as_many,
        *(QUERIES, {0: A, 1: LD}, {0: A, 1: LD}),
    ),
    "pairs": Case(
        lambda q, d, pairs: cf.maxsim_pairs(q, d, pairs, length_normalize=True),
        listed,
        *(QUERIES, DOCUMENTS, NUMBERS),
    ),
    "groups": Case(
        lambda q, d: cf.maxsim_pairwise(q, d.unsqueeze(1).expand(-1, 3, -1, -1), length_normalize=True),
        lambda *sizes: as_many(*sizes)[:2],
        *(QUERIES, {0: A, 1: LD}),
    ),
    "argmax": Case(cf.maxsim_with_argmax, both_masked, QUERIES, DOCUMENTS, QUERIES, DOCUMENTS),
    "argmax of pairs": Case(
        lambda q, d, pairs: cf.maxsim_with_argmax(q, d, pairs=pairs), listed, *(QUERIES, DOCUMENTS, NUMBERS)
    ),
    "topk": Case(lambda q, d: cf.topk(q, d, 7, length_normalize=True), padded, QUERIES, DOCUMENTS),
    "topk of many": Case(lambda q, d: cf.topk(q, d, 2000), padded, QUERIES, DOCUMENTS),
    "candidates": Case(
        lambda q, d, numbers: cf.topk(q, d, 3, candidates=numbers),
        with_candidates,
        *(QUERIES, DOCUMENTS, {0: A, 1: Dim("C")}),
    ),
}


class Scorer(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


@pytest.mark.filterwarnings("ignore:a document without a token")
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_exported_program_takes_every_size(case: Case, strict: bool) -> None:
    if case is CASES["groups"] and not strict and release(torch.__version__) < release("2.13"):
        pytest.skip("torch 2.11 restricts an expanded tensor to the sizes that it was traced with; 2.12 was not tried")
    program = export(
        Scorer(case.function), case.inputs(*SIZES[0]), dynamic_shapes=(case.open_sizes,), strict=strict
    ).module()
    for sizes in SIZES:
        inputs = case.inputs(*sizes)
        torch.testing.assert_close(program(*inputs), case.function(*inputs))


class Projected(torch.nn.Module):
    """The inputs are parameters here, so that the scores have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 4)

    def forward(self, q: Tensor, d: Tensor) -> Tensor:
        return cf.maxsim(self.linear(q), self.linear(d), length_normalize=True)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
# torch itself makes an instance of an autograd.Function while it traces it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_module_with_parameters_is_exported(strict: bool) -> None:
    module = Projected()
    open_sizes = {"q": QUERIES, "d": DOCUMENTS}
    program = export(module, padded(*SIZES[0]), dynamic_shapes=open_sizes, strict=strict).module()
    for sizes in SIZES:
        inputs = padded(*sizes)
        torch.testing.assert_close(program(*inputs), module(*inputs))


@pytest.mark.filterwarnings("ignore:a document without a token")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_compiled_once_for_every_size(case: Case) -> None:
    compiled = 0

    def count(graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1
        return graph.forward

    function = torch.compile(case.function, backend=count, fullgraph=True, dynamic=True)
    # No two sizes of one call are equal, because torch would make a rule of it; none is 1, a special case of torch.
    for sizes in ((5, 9, 13, 6), (2, 4, 7, 5), (12, 7, 17, 2), (4, 5, 5000, 9)):
        inputs = case.inputs(*sizes)
        torch.testing.assert_close(function(*inputs), case.function(*inputs))
    assert compiled == 1
