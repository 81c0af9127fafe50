"""Sums over many dimensions: the contract's 1e-5 holds for any input, and the order of additions is one of dim alone.

The error of one float32 sum grows with the number of its products. These inputs show it: equal products, which all
round to the same side; and a large product before many that are less than half of its last bit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DTYPES, assert_within_products, embeddings, planted, score_argmax
from torch import Tensor

import colbert_fast as cf
from colbert_fast._backends import torch_

BLOCK = 128
DIMS = [1, BLOCK, 129, 256, 257, 768, 2049, 33000]
KINDS = [*DTYPES, torch.int8]
# In these tiers all products but bfloat16 products are fused multiply-adds.
FUSED = [b.name for b in cf.backends() if b.name.startswith("cpu:") and b.name != "cpu:portable" and not b.unsupported]


def given(q: Tensor, documents: list[Tensor], kind: torch.dtype) -> tuple[list[Tensor], Any, list[Tensor]]:
    """Return queries and documents of a kind, and the documents as they are then; int8 for documents only."""
    if kind != torch.int8:
        documents = [d.to(kind) for d in documents]
        return [q.to(kind)], documents, documents
    packed = cf.PackedTokens.from_list(documents).quantize("int8")
    assert packed.scales is not None
    rows = packed.tokens.double() * packed.scales.double().unsqueeze(1)
    return [q], packed, list(rows.split([len(d) for d in documents]))


def assert_contract(backend: str, q: Tensor, documents: list[Tensor], kind: torch.dtype) -> None:
    queries, scored, exact = given(q, documents, kind)
    assert_within_products(cf.maxsim(queries, scored, backend=backend), queries, exact)
    pairs = [[0, j] for j in range(len(documents))]
    assert_within_products(cf.maxsim_pairs(queries, scored, pairs, backend=backend)[None], queries, exact)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_equal_products(backend: str, kind: torch.dtype) -> None:
    for dim in (*DIMS, 262144):
        values = torch.rand(100 if dim < 1000 else 2) * 3 + 0.1
        documents = [value.expand(1, dim).contiguous() for value in values]
        assert_contract(backend, torch.full((1, dim), 0.7), documents, kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_one_large_product_among_tiny_ones(backend: str, kind: torch.dtype) -> None:
    """2.4e-4 squared, or 7.3e-6 / 127 where documents are int8, is less than 2^-24."""
    for dim in DIMS:
        for at in {0, BLOCK % dim, dim - 1}:
            q = torch.full((1, dim), 7.3e-6 if kind == torch.int8 else 2.4e-4)
            d = torch.full((1, dim), 1 / 127 if kind == torch.int8 else 2.4e-4)
            q[0, at] = d[0, at] = 1
            assert_contract(backend, q, [d], kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_products_that_cancel(backend: str, kind: torch.dtype) -> None:
    """What is left is far less than the products, and the error is relative to these."""
    for dim in (2, 256, 300, 1024, 33000):
        q = torch.rand(3, dim) + 0.5
        d = torch.rand(1, dim) + 0.5
        d[:, dim // 2 :] *= -(d[:, : dim // 2].sum() / d[:, dim // 2 :].sum())
        d[:, dim // 4] = 100
        d[:, -1] = -100
        assert_contract(backend, q, [d, d.flip(1), -d], kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_that_are_screened(backend: str, kind: torch.dtype) -> None:
    """Documents of enough rows, whose products are all positive, and which are near to one another."""
    for dim in (129, 256, 768, 4096):
        q = 0.7 + torch.rand(40, 1) * torch.ones(dim)
        documents = [0.5 + torch.rand(rows, 1) + torch.rand(rows, dim) / 1024 for rows in (60, 200)]
        queries, scored, exact = given(q, documents, kind)
        assert_within_products(cf.maxsim(queries, scored, backend=backend), queries, exact)


@pytest.mark.parametrize("dim", [1, 128, 129, 255, 256, 257, 384, 768, 1024, 4096])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != torch.bfloat16], ids=str)
def test_the_same_bits_by_every_tier(threads: Any, dim: int, kind: torch.dtype) -> None:
    if not FUSED:
        pytest.skip("no tier here fuses multiply-adds")
    q = embeddings([40, 5], dim)
    documents = planted(q, embeddings([1, 13, 70, 340], dim))
    queries, scored, _ = given(torch.cat(q), documents, kind)
    expected = None
    for tier in FUSED:
        for n in (1, 2, 3):
            threads(n)
            scores, argmax = score_argmax(tier, queries, scored)
            expected = expected or (scores, argmax)
            assert torch.equal(scores.view(torch.int32), expected[0].view(torch.int32))
            assert torch.equal(argmax, expected[1])


@pytest.mark.parametrize("dim", [1, 128, 129, 257, 768, 2049])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_order_of_a_sum_is_one_of_dim_alone(native: str, threads: Any, dim: int, dtype: torch.dtype) -> None:
    """A row has its bits in any tile, in any place, alone or in a batch, and on any number of threads."""
    q, (d,) = embeddings([1, 16, 33], dim, dtype), embeddings([100], dim, dtype)
    threads(1)
    alone = cf.maxsim(list(torch.cat(q).split(1)), list(d.split(1)), backend=native).amax(1)
    for n in (1, 2, 3):
        threads(n)
        for queries in (q, [torch.cat(q)]):
            expected = [part.double().sum() for part in alone.split([len(x) for x in queries])]
            assert torch.equal(cf.maxsim(queries, [d], backend=native)[:, 0], torch.stack(expected).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [1, 3, 16, 100, 128, 200, 768])
@pytest.mark.parametrize("pairwise", [False, True])
def test_the_first_of_equal_rows_wins(pairwise: bool, dim: int, dtype: torch.dtype) -> None:
    """A product of matrices may give equal rows different bits, above all in the last ones."""
    for backend in ["torch"] if dtype == torch.float64 else ["torch", *FUSED]:
        for lq in (1, 5, 32):
            q = [torch.randn(lq, dim, dtype=dtype) for _ in range(3)]
            rows = [torch.randn(3, dim, dtype=dtype) for _ in range(3)]
            order = [torch.randint(3, (n,)) for n in (7, 18, 131)]
            documents = [r[o] for r, o in zip(rows, order, strict=True)]
            documents[2][40] = 0.0
            documents[2][41] = -0.0
            if pairwise:
                d = [x.clone().requires_grad_() for x in documents]
                cf.maxsim_pairwise(q, d, backend=backend).sum().backward()
                winners = [x.grad.ne(0).any(1).nonzero().flatten() for x in d if x.grad is not None]
            else:
                winners = list(score_argmax(backend, q, documents)[1].transpose(0, 1).flatten(1))
            for document, won in zip(documents, winners, strict=True):
                for winner in set(won.tolist()):
                    assert not (document[:winner] == document[winner]).all(1).any(), (backend, lq, winner)


def test_equal_rows_of_other_documents_and_near_ties_are_left_alone() -> None:
    q = torch.eye(4)[:1]
    rows = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 2.0**-30], [1.0, 0, 0, 0], [1.0, 0, 0, 2.0**-30]])
    argmax = score_argmax("torch", [q], [rows[1:], rows[[3, 2, 1, 0]], rows])[1]
    assert argmax.flatten().tolist() == [0, 0, 0]
    where = torch.tensor([[[2], [3]]])
    d = torch.stack([rows, rows.flip(0)])
    similarity = torch.ones(1, 2, 1, 4)
    first = torch_._first_of_equals(q[None], d, similarity, torch.ones(1, 2, 1), where)
    assert first.flatten().tolist() == [0, 1]
    moved = torch_._first_of_equals(q[None], d.expand(2, 4, 4) * 1.0, similarity, torch.ones(1, 2, 1), where * 0 + 1)
    assert moved.flatten().tolist() == [1, 1]


@pytest.mark.parametrize("dim", [128, 129, 1000, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_similarities_of_a_chunk_are_bounded(dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Similarities that wait to be added count, too."""
    largest = 0
    product = torch_._product

    def watched(a: Tensor, b: Tensor) -> Tensor:
        nonlocal largest
        result = product(a, b)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(torch_, "_product", watched)
    q, d = torch.randn(6, 20, dim, dtype=dtype), torch.randn(50, 30, dim, dtype=dtype)
    elements = 200_000
    cf.maxsim(q, d, chunk_elements=elements, backend="torch")
    blocks = 1 if dtype == torch.float64 else -(-dim // BLOCK)
    assert 0 < largest * (1 + (blocks - 1).bit_length()) <= elements
