"""Queries of one dtype and documents of another: each is scored as given, and gets a gradient in its own dtype."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cases import SHAPES, assert_close, assert_scores, embeddings, planted
from torch import Tensor

import colbert_fast as cf
from colbert_fast import reference

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
PAIRS = list(itertools.permutations(FLOATS, 2))
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def sides(q: torch.dtype, d: torch.dtype, dim: int = 24) -> tuple[list[Tensor], list[Tensor]]:
    queries = embeddings([4, 1, 7], dim)
    return [x.to(q) for x in queries], [x.to(d) for x in planted(queries, embeddings([9, 40, 3], dim))]


@pytest.mark.parametrize(("lq", "ld", "dim"), SHAPES)
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_float32_queries_of_documents_in_half(
    backend: str, lq: list[int], ld: list[int], dim: int, half: torch.dtype
) -> None:
    """The queries keep their last bits: rounded to the documents' dtype they would be off by 1e-3."""
    queries = embeddings(lq, dim)
    documents = [d.to(half) for d in planted(queries, embeddings(ld, dim))]
    assert_scores(cf.maxsim(queries, documents, backend=backend), queries, documents)
    packed = cf.PackedTokens.from_list(documents)
    assert_scores(cf.maxsim(queries, packed, backend=backend), queries, documents)


@pytest.mark.parametrize(("q", "d"), PAIRS, ids=str)
def test_every_function_takes_every_pair(q: torch.dtype, d: torch.dtype) -> None:
    queries, documents = sides(q, d)
    expected = reference.maxsim(queries, documents)
    scores = cf.maxsim(queries, documents)
    assert scores.dtype == (torch.float64 if torch.float64 in (q, d) else torch.float32)
    assert_close(scores, expected)
    if scores.dtype == torch.float64:
        torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
    assert_close(cf.maxsim_pairwise(queries, documents), expected.diagonal())
    assert_close(cf.maxsim_pairs(queries, documents, [[0, 2], [1, 1]]), expected[[0, 1], [2, 1]])
    best = expected.sort(1, descending=True)
    found, numbers = cf.topk(queries, cf.PackedTokens.from_list(documents), 2)
    assert_close(found, best.values[:, :2])
    assert torch.equal(numbers, best.indices[:, :2])


@pytest.mark.parametrize(("q", "d"), PAIRS, ids=str)
@pytest.mark.parametrize("form", ["padded", "mask", "nested"])
def test_every_layout_takes_every_pair(form: str, q: torch.dtype, d: torch.dtype) -> None:
    a, b = torch.randn(2, 3, 8).to(q), torch.randn(3, 5, 8).to(d)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    kept = [row[keep] for row, keep in zip(b, mask, strict=True)] if form == "mask" else list(b)
    documents = torch.nested.as_nested_tensor(list(b), layout=torch.jagged) if form == "nested" else b
    scores = cf.maxsim(a, documents, b_mask=mask if form == "mask" else None)
    assert_close(scores, reference.maxsim(list(a), kept))


def numpy_dtype(dtype: torch.dtype) -> bool:
    return dtype != torch.bfloat16


@pytest.mark.parametrize(("q", "d"), [pair for pair in PAIRS if all(map(numpy_dtype, pair))], ids=str)
def test_arrays(q: torch.dtype, d: torch.dtype) -> None:
    queries, documents = sides(q, d)
    assert_close(
        cf.maxsim([x.numpy() for x in queries], [x.numpy() for x in documents]), reference.maxsim(queries, documents)
    )


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize(("q", "d"), PAIRS, ids=str)
def test_gradients_in_the_dtype_of_each_side(backend: str, pairwise: bool, q: torch.dtype, d: torch.dtype) -> None:
    if torch.float64 in (q, d):
        backend = "torch"
    queries, documents = sides(q, d)
    a, b = (cf.PackedTokens.from_list(side) for side in (queries, documents))
    leaves = [side.tokens.clone().requires_grad_() for side in (a, b)]
    function = cf.maxsim_pairwise if pairwise else cf.maxsim
    scores = function(a.with_tokens(leaves[0]), b.with_tokens(leaves[1]), backend=backend)
    weight = torch.randn(scores.shape, dtype=scores.dtype)
    (scores * weight).sum().backward()
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    function(a.with_tokens(wide[0]), b.with_tokens(wide[1]), backend="torch").mul(weight).sum().backward()
    for leaf, exact in zip(leaves, wide, strict=True):
        assert leaf.grad is not None and exact.grad is not None
        assert leaf.grad.dtype == leaf.dtype
        # A narrow gradient has one rounding of its own.
        bound = 1e-5 + torch.finfo(leaf.dtype).eps
        torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=bound, atol=1e-5)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_the_same_bits_as_of_widened_documents(native: str, threads: Any, half: torch.dtype) -> None:
    """A half is exact in float32; and no number of threads changes a bit."""
    queries, documents = embeddings([32], 128), [x.to(half) for x in embeddings([300, 1500, 12], 128)]
    widened = cf.maxsim(queries, [x.float() for x in documents], backend=native)
    for number in (1, 2, 3):
        threads(number)
        assert torch.equal(cf.maxsim(queries, documents, backend=native), widened)


def test_int8_documents_take_queries_of_any_dtype(backend: str) -> None:
    queries, documents = sides(torch.float32, torch.float16)
    small = cf.PackedTokens.from_list(documents).quantize()
    stand_for = list(small.to(dtype=torch.float64))
    for q in FLOATS[:3]:
        given = [x.to(q) for x in queries]
        assert_close(cf.maxsim(given, small, backend=backend), reference.maxsim(given, stand_for))


@pytest.mark.parametrize(("q", "d"), PAIRS, ids=str)
def test_compiled(q: torch.dtype, d: torch.dtype) -> None:
    a, b = torch.randn(2, 3, 8).to(q), torch.randn(3, 5, 8).to(d)
    mask = torch.arange(5) < torch.tensor([[2], [5], [4]])

    def scores(a: Tensor, b: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return cf.maxsim(a, b), cf.maxsim(a, b, b_mask=mask), *cf.topk(a, b, 2)

    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(a, b, mask), scores(a, b, mask))
    meta = cf.maxsim(a.to("meta"), b.to("meta"))
    assert (meta.dtype, meta.shape) == (cf.maxsim(a, b).dtype, (2, 3))


@pytest.mark.parametrize(("q", "d"), [(torch.float32, half) for half in HALVES] + [(torch.float64, torch.float32)])
def test_the_op_takes_narrower_documents(backend: str, q: torch.dtype, d: torch.dtype) -> None:
    if q == torch.float64:
        backend = "torch"
    queries, documents = (cf.PackedTokens.from_list(side) for side in sides(q, d))
    numbers = (None, queries.max_length, documents.max_length, False, False, 2**24)
    of_q = (queries.tokens, queries.starts, queries.lengths)
    args = (*of_q, documents.tokens, None, documents.starts, documents.lengths, *numbers)
    ops = torch.ops.colbert_fast
    torch.library.opcheck(ops.score.default, (*args, backend))
    torch.library.opcheck(ops.score_argmax.default, (*args, backend))
    scores, argmax = ops.score_argmax(*args, backend)
    grads = ops.backward(*args, torch.ones(scores.numel(), dtype=scores.dtype), argmax, True, True, backend)
    assert [grad.dtype for grad in grads] == [q, d]
    torch.library.opcheck(ops.backward.default, (*args, torch.ones(scores.numel()), argmax, True, True, backend))
    swapped = (args[3], *args[5:7], args[0], None, *args[1:3], *numbers[:1], numbers[2], numbers[1], *numbers[3:])
    with pytest.raises(TypeError, match="d_tokens must have the dtype of q_tokens, a narrower one beside float32"):
        ops.score(*swapped, backend)


def test_what_is_no_such_dtype() -> None:
    q, d = torch.randn(2, 3, 8), torch.randn(2, 3, 8).to(torch.float8_e4m3fn)
    for a, b in ((q, d), (d, q)):
        with pytest.raises(TypeError, match="a and b must be float32, bfloat16, float16 or float64, or of one dtype"):
            cf.maxsim(a, b)
