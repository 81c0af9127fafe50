"""Gradients of every backend against autograd through the float64 definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DTYPES, SHAPES, embeddings, planted
from torch import Tensor

import colbert_fast as cf
from colbert_fast import reference

# A gradient is a float32 sum, rounded once to the dtype of its input.
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11 + 1e-5}


def expected_gradients(
    queries: list[Tensor], documents: list[Tensor], weights: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    q64 = [q.detach().double().requires_grad_() for q in queries]
    d64 = [d.detach().double().requires_grad_() for d in documents]
    total = torch.zeros((), dtype=torch.float64)
    for (i, j), weight in zip(((i, j) for i in range(len(q64)) for j in range(len(d64))), weights, strict=True):
        if len(d64[j]):
            total = total + weight.double() * reference.maxsim_pair(q64[i], d64[j])[0]
    total.backward()
    return ([zero_if_none(q) for q in q64], [zero_if_none(d) for d in d64])


def zero_if_none(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("lq", "ld", "dim"), SHAPES[:10])
def test_gradients(backend: str, lq: list[int], ld: list[int], dim: int, dtype: torch.dtype) -> None:
    queries = [q.requires_grad_() for q in embeddings(lq, dim, dtype)]
    documents = planted([q.detach() for q in queries], embeddings(ld, dim, dtype))
    # A token that is planted twice ties, and the first one wins in both. But rounding may decide differently between
    # nearly equal rows, so the planted rows are made distinct.
    documents = [(d.float() * torch.linspace(1, 1.5, max(1, len(d)))[: len(d), None]).to(dtype) for d in documents]
    documents = [d.requires_grad_() for d in documents]
    weights = torch.randn(len(queries) * len(documents))
    scores = cf.maxsim(queries, documents, backend=backend)
    scores.backward(weights.view_as(scores))
    expected = expected_gradients(queries, documents, weights)
    for tensors, grads in zip((queries, documents), expected, strict=True):
        for tensor, grad in zip(tensors, grads, strict=True):
            actual = zero_if_none(tensor)
            assert actual.dtype == dtype
            tolerance = GRADIENT_TOLERANCE[dtype]
            torch.testing.assert_close(actual.double(), grad, rtol=tolerance, atol=1e-5)


def test_pairs_accumulate_over_repetition(backend: str) -> None:
    queries, documents = torch.randn(2, 3, 8, requires_grad=True), torch.randn(3, 4, 8, requires_grad=True)
    pairs = torch.tensor([[0, 2], [1, 0], [0, 2], [1, 2]])
    scores = cf.maxsim_pairs(queries, documents, pairs, backend=backend)
    scores.sum().backward()
    weights = torch.zeros(2, 3)
    weights[0, 2], weights[1, 0], weights[1, 2] = 2, 1, 1
    expected = expected_gradients(list(queries), list(documents), weights.view(-1))
    torch.testing.assert_close(queries.grad, torch.stack(expected[0]).float())
    torch.testing.assert_close(documents.grad, torch.stack(expected[1]).float())


def test_items_that_share_rows(backend: str) -> None:
    """Several items may be views of the same rows; their gradients add up."""
    rows = torch.randn(10, 8, requires_grad=True)
    documents = cf.PackedTokens(rows, torch.tensor([0, 2, 0, 5]), torch.tensor([6, 6, 6, 5]))
    queries = torch.randn(2, 3, 8)
    weights = torch.randn(8)
    scores = cf.maxsim(queries, documents, backend=backend)
    scores.backward(weights.view_as(scores))
    copy = rows.detach().double().requires_grad_()
    items = [copy[0:6], copy[2:8], copy[0:6], copy[5:10]]
    pairs = [reference.maxsim_pair(q.double(), d)[0] for q in queries for d in items]
    (torch.stack(pairs) * weights.double()).sum().backward()
    assert copy.grad is not None
    torch.testing.assert_close(rows.grad, copy.grad.float())


@pytest.mark.parametrize("side", ["queries", "documents"])
def test_only_one_side_wants_gradients(backend: str, side: str) -> None:
    queries = torch.randn(2, 3, 8, requires_grad=side == "queries")
    documents = torch.randn(3, 4, 8, requires_grad=side == "documents")
    cf.maxsim(queries, documents, backend=backend).sum().backward()
    assert (queries.grad is None) == (side == "documents")
    assert (documents.grad is None) == (side == "queries")


def test_empty_document_has_a_zero_gradient(backend: str) -> None:
    queries, documents = torch.randn(1, 3, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.tensor([[True] * 4, [False] * 4])
    with pytest.warns(UserWarning, match="without a token"):
        scores = cf.maxsim(queries, documents, b_mask=mask, backend=backend)
    scores[0, 1].backward()
    assert scores[0, 1] == -1e9
    assert torch.equal(queries.grad, torch.zeros_like(queries))
    assert torch.equal(documents.grad, torch.zeros_like(documents))


def test_masked_and_zero_rows_have_zero_gradients(backend: str) -> None:
    queries, documents = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    queries[0, 2], documents[1, 1] = 0, 0
    queries.requires_grad_()
    documents.requires_grad_()
    cf.maxsim(queries, documents, backend=backend).sum().backward()
    assert torch.equal(queries.grad[0, 2], torch.zeros(8))
    assert torch.equal(documents.grad[1, 1], torch.zeros(8))
    mask = torch.tensor([[True, True, False]]).expand(2, 3)
    queries.grad = None
    cf.maxsim(queries, documents, a_mask=mask, backend=backend).sum().backward()
    assert torch.equal(queries.grad[:, 2], torch.zeros(2, 8))


def test_no_graph_without_need(backend: str) -> None:
    queries, documents = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    assert not cf.maxsim(queries, documents, backend=backend).requires_grad
    queries.requires_grad_()
    assert cf.maxsim(queries, documents, backend=backend).requires_grad
    with torch.no_grad():
        assert not cf.maxsim(queries, documents, backend=backend).requires_grad
    with torch.inference_mode():
        assert not cf.maxsim(queries, documents, backend=backend).requires_grad


def test_only_the_argmax_is_saved(backend: str) -> None:
    """[pairs, query tokens] int32, never [pairs, query tokens, document tokens]."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    queries, documents = torch.randn(4, 8, 16, requires_grad=True), torch.randn(5, 50, 16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        cf.maxsim(queries, documents, backend=backend)
    bytes_per_pair = max(t.nbytes for t in saved if t.dtype == torch.int32) / (4 * 5)
    assert bytes_per_pair == 8 * 4
    inputs = {queries.untyped_storage().data_ptr(), documents.untyped_storage().data_ptr()}
    others = [t for t in saved if t.is_floating_point() and t.untyped_storage().data_ptr() not in inputs]
    assert others == []


def test_second_derivatives_are_refused(backend: str) -> None:
    queries = torch.randn(1, 3, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(
        cf.maxsim(queries, torch.randn(1, 4, 8), backend=backend).sum(), queries, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        grad.sum().backward()


def test_an_optimiser_learns(backend: str) -> None:
    queries, documents = torch.randn(4, 3, 8), torch.randn(4, 5, 8)
    projection = torch.nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.Adam(projection.parameters(), lr=0.05)

    def loss() -> Any:
        scores = cf.maxsim(projection(queries), projection(documents), backend=backend)
        return torch.nn.functional.cross_entropy(scores, torch.arange(4))

    before = loss().item()
    for _ in range(20):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < before / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("q", "d"),
    [
        ((0, 5, 8), (3, 6, 8)),
        ((2, 0, 8), (3, 6, 8)),
        ((2, 5, 8), (0, 6, 8)),
        ((2, 5, 8), (3, 0, 8)),
        ((2, 0, 8), (3, 0, 8)),
        ((0, 0, 3), (3, 6, 8)),
        ((2, 5, 8), (0, 0, 3)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:a document without a token")
def test_a_side_without_rows_has_an_empty_gradient(q: tuple[int, ...], d: tuple[int, ...], dtype: torch.dtype) -> None:
    for both in (True, False):
        a = torch.randn(q, dtype=dtype, requires_grad=both or 0 in q)
        b = torch.randn(d, dtype=dtype, requires_grad=both or 0 in d)
        cf.maxsim(a, b).sum().backward()
        for side in (a, b):
            if side.requires_grad:
                assert side.grad is not None
                assert side.grad.shape == side.shape
                assert side.grad.dtype == dtype


def test_items_without_rows_have_empty_gradients() -> None:
    documents = [torch.randn(3, 8), torch.zeros(0, 8), torch.zeros(0), torch.zeros(0, 5).double()]
    for d in documents:
        d.requires_grad_()
    with pytest.warns(UserWarning, match="a document without a token"):
        cf.maxsim(torch.randn(2, 4, 8), documents).sum().backward()
    for d in documents:
        assert d.grad is not None
        assert d.grad.shape == d.shape
