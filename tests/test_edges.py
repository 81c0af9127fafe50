"""Values and shapes at the edges: NaN, infinities, ties, nothing at all."""

from __future__ import annotations

import math

import pytest
import torch
from cases import DTYPES, assert_close, assert_scores, embeddings, planted, score_argmax

import colbert_fast as cf
from colbert_fast import reference

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", [0, 5, 12, 29])
def test_nan_in_a_token_wins(backend: str, row: int, dtype: torch.dtype) -> None:
    q, d, other = embeddings([9, 30, 30], 17, dtype)
    d[row, 3] = NAN
    d[29, 16] = NAN
    scores, argmax = score_argmax(backend, [q], [d, other])
    assert scores[0, 0].isnan()
    assert (argmax[0, 0] == row).all()
    assert_close(scores[:, 1:], reference.maxsim([q], [other]))


def test_nan_in_a_query_token(backend: str) -> None:
    q, d = embeddings([9, 30], 17)
    poisoned = q.clone()
    poisoned[4, 0] = NAN
    scores, argmax = score_argmax(backend, [q, poisoned], [d])
    assert scores.isnan().tolist() == [[False], [True]]
    expected = reference.maxsim_pair(q, d)[1]
    expected[4] = 0
    assert torch.equal(argmax[1, 0].long(), expected)


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_a_masked_token_does_not_leak(backend: str, poison: float) -> None:
    a, b = torch.stack(embeddings([5, 5], 9)), torch.stack(embeddings([7, 7], 9))
    a_mask, b_mask = torch.tensor([[1, 0, 1, 1, 0]] * 2), torch.tensor([[0, 1, 1, 0, 1, 1, 0]] * 2)
    expected = reference.maxsim(list(a[:, a_mask[0] == 1]), list(b[:, b_mask[0] == 1]))
    a[:, a_mask[0] == 0], b[:, b_mask[0] == 0] = poison, poison
    a.requires_grad_(), b.requires_grad_()
    scores = cf.maxsim(a, b, a_mask, b_mask, backend=backend)
    assert_close(scores, expected)
    scores.sum().backward()
    for side, mask in ((a, a_mask), (b, b_mask)):
        assert side.grad.isfinite().all()
        assert (side.grad[mask == 0] == 0).all()


def test_rows_outside_every_item_do_not_leak(backend: str) -> None:
    rows = torch.full((20, 9), NAN)
    rows[3:7], rows[10:19] = embeddings([4, 9], 9)
    packed = cf.PackedTokens(rows, torch.tensor([10, 3]), torch.tensor([9, 4]))
    assert_scores(cf.maxsim(packed, packed, backend=backend), list(packed), list(packed))


@pytest.mark.parametrize(
    ("query", "document", "score", "winner"),
    [
        ([INF, 0.0], [[1.0, 1.0], [2.0, 1.0]], INF, 0),
        ([1.0, 1.0], [[-INF, 1.0], [5.0, 1.0]], 6.0, 1),
        ([1.0, 1.0], [[-INF, 1.0], [-INF, 2.0]], -INF, 0),
        ([1.0, 1.0], [[3.0, 1.0], [INF, 1.0]], INF, 1),
        ([1.0, 1.0], [[3.0, 1.0], [INF, -INF]], NAN, 1),
        ([INF, 1.0], [[3.0, 1.0], [0.0, 1.0]], NAN, 1),
        ([1e38, 1e38], [[1.0, 0.0], [10.0, 10.0]], INF, 1),
        ([1e38, 1e38], [[-10.0, -10.0], [-10.0, -1.0]], -INF, 0),
        ([1e-30, 0.0], [[-1e-12, 0.0], [1e-12, 0.0]], 1e-42, 1),
        ([1e-30, 0.0], [[-1e-30, 0.0], [0.0, 1.0]], 0.0, 0),
        ([1.0, 0.0], [[-0.0, 1.0], [0.0, 1.0]], 0.0, 0),
        ([-0.0, -0.0], [[1.0, 1.0], [2.0, 2.0]], 0.0, 0),
        ([2.0**-126, 0.0], [[0.25, 0.0], [0.5, 0.0]], 2.0**-127, 1),
    ],
)
def test_ieee_arithmetic(
    backend: str, query: list[float], document: list[list[float]], score: float, winner: int
) -> None:
    """Also with the row at the end of a long document, and with the query token among others."""
    q, d = torch.tensor([query]), torch.tensor(document)
    for before, others in ((0, 0), (11, 0), (0, 40)):
        long = torch.cat([d[:1].expand(before, 2), d])
        queries = [q] + [torch.randn(1, 2) for _ in range(others)]
        scores, argmax = score_argmax(backend, queries, [long])
        # A denormal has too few bits for a relative tolerance.
        torch.testing.assert_close(scores[0, 0].item(), score, rtol=1e-5, atol=1e-44, equal_nan=True)
        assert argmax[0, 0].item() == (winner + before if winner else 0)


def test_infinite_scores_of_opposite_sign_add_to_nan(backend: str) -> None:
    q, d = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[INF, -INF]])
    scores = cf.maxsim([q[:1], q[1:]], [d], backend=backend)
    assert scores.isnan().all()  # 0 * inf
    q = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    d = torch.tensor([[INF, INF]])
    assert cf.maxsim([q[:1], q[1:]], [d], backend=backend).tolist() == [[INF], [-INF]]
    assert cf.maxsim([q], [d], backend=backend).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lq", [1, 9, 17, 70])
def test_ties_go_to_the_first(backend: str, lq: int, dtype: torch.dtype) -> None:
    """Copies lie on both sides of the edges of tiles of 4, 6 and 12 rows; queries have one to three panels."""
    q = torch.randint(-3, 4, (lq, 16)).to(dtype)
    best = 40 * torch.ones(1, 16).to(dtype) * q[:1].sign()
    for first, second in ((0, 1), (3, 4), (5, 6), (11, 12), (0, 36), (7, 30), (23, 24), (35, 36)):
        d = torch.randint(-3, 4, (37, 16)).to(dtype)
        d[first], d[second] = best, best
        argmax = score_argmax(backend, [q], [d])[1]
        assert torch.equal(argmax[0, 0].long(), reference.maxsim_pair(q, d)[1])  # exact: small integers


@pytest.mark.parametrize("lq", [1, 16, 33])
def test_all_tokens_identical(backend: str, lq: int) -> None:
    q, token = embeddings([lq, 1], 24)
    scores, argmax = score_argmax(backend, [q], [token.expand(50, 24)])
    assert_close(scores, reference.maxsim([q], [token]))
    if backend != "torch":  # its products may differ by a bit from row to row
        assert (argmax == 0).all()


def test_argmax_of_nothing(backend: str) -> None:
    queries, documents = embeddings([3, 0, 5], 8), embeddings([4, 0, 6], 8)
    with pytest.warns(UserWarning, match="without a token"):
        scores, argmax = score_argmax(backend, queries, documents)
    assert_close(scores, reference.maxsim(queries, documents))
    for i, q in enumerate(queries):
        for j, d in enumerate(documents):
            assert torch.equal(argmax[i, j, : len(q)].long(), reference.maxsim_pair(q, d)[1])
            assert (argmax[i, j, len(q) :] == -1).all()


def test_argmax_of_padding_query_tokens(backend: str) -> None:
    a, b = torch.stack(embeddings([5, 5], 8)), torch.stack(embeddings([6, 6], 8))
    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    scores, argmax = score_argmax(backend, a, b, mask)
    assert (argmax[0, :, :2] >= 0).all() and (argmax[0, :, 2:] == -1).all() and (argmax[1] == -1).all()
    assert (scores[1] == 0).all()
    a[0, 1], a[1] = 0.0, 0.0  # without a mask, a row of zeros keeps its place
    scores, argmax = score_argmax(backend, a, b)
    assert (argmax[0, :, [0, 2, 3, 4]] >= 0).all() and (argmax[0, :, 1] == -1).all() and (argmax[1] == -1).all()
    assert (scores[1] == 0).all()


@pytest.mark.parametrize("form", ["list", "padded", "packed"])
@pytest.mark.parametrize(("nq", "nd"), [(3, 0), (0, 3), (0, 0)])
def test_empty_sets(backend: str, nq: int, nd: int, form: str) -> None:
    make = {
        "list": lambda n: embeddings([4] * n, 8),
        "padded": lambda n: torch.randn(n, 4, 8, requires_grad=True),
        "packed": lambda n: cf.PackedTokens(torch.randn(9, 8), torch.arange(n), torch.full((n,), 4)),
    }[form]
    assert cf.maxsim(make(nq), make(nd), backend=backend).shape == (nq, nd)
    assert cf.maxsim(make(nq), make(nd), length_normalize=True, backend=backend).shape == (nq, nd)
    assert cf.maxsim_pairs(make(nq), make(nd), [], backend=backend).shape == (0,)
    assert cf.maxsim_pairwise(make(0), make(0), backend=backend).shape == (0,)
    scores, numbers = cf.topk(make(nq), make(nd), 2, backend=backend)
    assert (scores == -INF).all() and (numbers == -1).all() and scores.shape == numbers.shape == (nq, 2)
    if form == "padded" and nq != nd:
        a, b = make(nq), make(nd)
        cf.maxsim(a, b, backend=backend).sum().backward()
        assert ((a if nq else b).grad == 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_dim_0_in_three_dimensions(backend: str, masked: bool) -> None:
    """Every row is zeros then: padding without a mask, a token with a mask."""
    a, b = torch.zeros(2, 3, 0), torch.zeros(4, 5, 0)
    if masked:
        assert cf.maxsim(a, b, torch.ones(2, 3), torch.ones(4, 5), backend=backend).tolist() == [[0.0] * 4] * 2
        return
    with pytest.warns(UserWarning, match="without a token"):
        assert cf.maxsim(a, b, backend=backend).tolist() == [[-1e9] * 4] * 2


def test_dim_0_in_a_list(backend: str) -> None:
    scores, argmax = score_argmax(backend, [torch.zeros(3, 0)], [torch.zeros(5, 0), torch.zeros(1, 0)])
    assert scores.tolist() == [[0.0, 0.0]]
    assert (argmax == 0).all()


@pytest.mark.parametrize("lq", [0, 1, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 1024])
def test_query_lengths(backend: str, lq: int) -> None:
    queries = embeddings([lq, 2], 24)
    documents = planted(queries, embeddings([1, 13, 40], 24))
    assert_scores(cf.maxsim(queries, documents, backend=backend), queries, documents)


@pytest.mark.parametrize("ld", [1, 3, 4, 5, 6, 7, 11, 12, 13, 31, 32, 33, 300, 8192])
def test_document_lengths(backend: str, ld: int) -> None:
    queries = embeddings([3, 33], 24)
    documents = embeddings([ld, 7], 24)
    for row in {0, ld // 2, ld - 2, ld - 1} & set(range(ld)):
        documents[0][row] = queries[1][row % 33]
    scores, argmax = score_argmax(backend, queries, documents)
    assert_scores(scores, queries, documents)
    assert torch.equal(argmax[1, 0].long(), reference.maxsim_pair(queries[1], documents[0])[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "dim", [1, 2, 3, 7, 16, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 130, 256, 384, 768, 1024]
)
def test_dims(backend: str, dim: int, dtype: torch.dtype) -> None:
    queries = embeddings([5, 18], dim, dtype)
    documents = planted(queries, embeddings([14, 3], dim, dtype))
    assert_scores(cf.maxsim(queries, documents, backend=backend), queries, documents)


@pytest.mark.parametrize("power", [-40, -10, 10, 40])
def test_very_different_norms(backend: str, power: int) -> None:
    """Each side has one huge and one tiny token: the tolerance is relative to each score."""
    q, d = (x.abs() for x in embeddings([7, 26], 20))  # no cancellation
    q[3] *= 2.0**power
    d[[5, 20]] *= 2.0**power
    d[11] *= 2.0**-power
    queries = [q, q[3:4], q[:1]]
    scores = cf.maxsim(queries, [d, d[5:6]], backend=backend)
    torch.testing.assert_close(scores.double(), reference.maxsim(queries, [d, d[5:6]]), rtol=1e-5, atol=0.0)
