"""Rows of zeros: padding in a padded tensor without a mask, tokens everywhere else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import DTYPES, assert_close, assert_scores, score_argmax
from torch import Tensor

import colbert_fast as cf
from colbert_fast import reference
from colbert_fast._backends import triton_

INF, NAN = math.inf, math.nan


def without_zero_rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores and argmax by the definition for 3-D tensors without a mask; rows of zeros count in the argmax."""
    scores = torch.empty(len(a), len(b), dtype=torch.float64)
    argmax = torch.full((len(a), len(b), a.shape[1]), -1)
    for i, q in enumerate(a):
        for j, d in enumerate(b):
            q_rows, d_rows = q.any(-1).nonzero()[:, 0], d.any(-1).nonzero()[:, 0]
            scores[i, j], winners = reference.maxsim_pair(q[q_rows], d[d_rows])
            if len(d_rows):
                argmax[i, j, q_rows] = d_rows[winners]
    return scores, argmax


def assert_without_zero_rows(backend: str, a: Tensor, b: Tensor) -> None:
    expected, expected_argmax = without_zero_rows(a, b)
    scores, argmax = score_argmax(backend, a, b)
    assert_close(scores, expected)
    assert torch.equal(argmax.long(), expected_argmax)
    pairs = torch.cartesian_prod(torch.arange(len(a)), torch.arange(len(b)))
    assert_close(cf.maxsim_pairs(a, b, pairs, backend=backend), expected.view(-1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", ["mixed", "negative"])
@pytest.mark.parametrize("dim", [1, 16, 19])
def test_zero_rows_anywhere(backend: str, dim: int, sign: str, dtype: torch.dtype) -> None:
    """Small integers, so that the argmax is exact: real maxima of 0, ties and negative maxima, with holes of zeros."""
    low = 1 if sign == "negative" else -2
    a = -torch.randint(low, 3, (6, 11, dim)).to(dtype)
    b = torch.randint(low, 3, (9, 40, dim)).to(dtype)
    a[torch.rand(6, 11) < 0.3] = 0
    b[torch.rand(9, 40) < 0.4] = -0.0
    b[0, :13], b[1, 20:], b[2, 1:], b[3, :39], a[0, 4:], a[1, :9] = 0, 0, 0, 0, 0, 0
    b[:, 39] = torch.arange(1, dim + 1)
    assert_without_zero_rows(backend, a, b)


def test_zero_row_beside_nan(backend: str) -> None:
    a = -torch.rand(2, 3, 5) - 0.1
    b = torch.rand(3, 30, 5) + 0.1
    b[0, :7], b[0, 14], b[0, 20, 2] = 0.0, 0.0, NAN
    b[1, 3:] = 0.0
    b[2, 0, 0], b[2, 1:] = NAN, 0.0
    assert_without_zero_rows(backend, a, b)
    a[1, 1, 4] = NAN
    assert_without_zero_rows(backend, a, b)


@pytest.mark.parametrize("infinity", [INF, -INF])
def test_zero_row_against_an_infinite_query(backend: str, infinity: float) -> None:
    """inf * 0 is NaN, and padding must not bring it in."""
    a, b = torch.rand(3, 4, 5) + 0.1, torch.rand(4, 26, 5) + 0.1
    a[1, 2, 0] = infinity
    b[0, 5:], b[1, :12], b[2, ::2] = 0.0, 0.0, 0.0
    scores = cf.maxsim(a, b, backend=backend)
    assert scores[1].tolist() == [infinity] * 4
    assert_without_zero_rows(backend, a, b)


def test_smallest_numbers_are_no_zeros(backend: str) -> None:
    for dtype, tiny in ((torch.float32, 1e-45), (torch.bfloat16, 1e-40), (torch.float16, 6e-8)):
        a, b = -torch.ones(1, 2, 3, dtype=dtype), torch.ones(1, 9, 3, dtype=dtype)
        b[0, 4] = torch.tensor([0.0, 0.0, tiny], dtype=dtype)
        a[0, 1] = torch.tensor([0.0, -tiny, 0.0], dtype=dtype)
        b[0, 6] = 0.0
        assert b[0, 4].any() and a[0, 1].any()
        scores, argmax = score_argmax(backend, a, b)
        assert argmax[0, 0, 0] == 4
        # The parts of float32 numbers that a GPU multiplies lose numbers that are not normal.
        on_gpu = backend == "triton" and not triton_.INTERPRETED and dtype == torch.float32
        lost = torch.finfo(torch.float32).tiny if on_gpu else 0
        assert abs(scores[0, 0] + b[0, 4, 2].float()) <= lost


def test_document_of_zeros_only(backend: str) -> None:
    a, b = torch.randn(3, 4, 5), torch.randn(2, 30, 5)
    a[1], b[1] = 0.0, 0.0
    a.requires_grad_(), b.requires_grad_()
    with pytest.warns(UserWarning, match="without a token") as warned:
        scores = cf.maxsim(a, b, backend=backend)
    assert len(warned) == 1
    assert (scores[:, 1] == -1e9).all() and scores[1, 0] == 0
    scores.sum().backward()
    assert (b.grad[1] == 0).all() and (a.grad[1] == 0).all() and a.grad.isfinite().all()
    with pytest.warns(UserWarning, match="without a token"):
        assert (score_argmax(backend, a.detach(), b.detach())[1][:, 1] == -1).all()


def test_zero_rows_get_no_gradient(backend: str) -> None:
    a, b = -torch.rand(2, 6, 5) - 0.1, torch.rand(3, 17, 5) + 0.1
    a[0, 2], a[1, 4:], b[0, 3:], b[1, :9], b[2, 8] = 0.0, 0.0, 0.0, 0.0, 0.0
    argmax = without_zero_rows(a, b)[1]
    weight = torch.randn(2, 3)
    expected_a, expected_b = torch.zeros(a.shape).double(), torch.zeros(b.shape).double()
    for i, j, t in (argmax >= 0).nonzero().tolist():
        expected_a[i, t] += weight[i, j].double() * b[j, argmax[i, j, t]]
        expected_b[j, argmax[i, j, t]] += weight[i, j].double() * a[i, t]
    a.requires_grad_(), b.requires_grad_()
    (cf.maxsim(a, b, backend=backend) * weight).sum().backward()
    for side, expected in ((a, expected_a), (b, expected_b)):
        assert_close(side.grad, expected)
        assert (side.grad[~side.detach().any(-1)] == 0).all()


def test_zero_query_rows_are_not_counted(backend: str) -> None:
    a, b = torch.rand(3, 4, 5) + 0.1, torch.rand(2, 3, 5) + 0.1
    a[0, 1:], a[1, 2] = 0.0, 0.0
    expected = without_zero_rows(a, b)[0]
    tokens = torch.tensor([[1.0], [3.0], [4.0]])
    assert_close(cf.maxsim(a, b, length_normalize=True, backend=backend), expected / tokens)
    pairwise = cf.maxsim_pairwise(a[:2], b, length_normalize=True, backend=backend)
    assert_close(pairwise, (expected[:2] / tokens[:2]).diagonal())


PAIRS = torch.tensor([[0, 1], [2, 0], [1, 1]])


def every_score(a: Any, b: Any, **options: Any) -> dict[str, Tensor]:
    """Return the scores of each function: all pairs, ``PAIRS``, the best of all and the best of some."""
    n = min(len(a), len(b))
    return {
        "maxsim": cf.maxsim(a, b, **options),
        "pairwise": cf.maxsim_pairwise(a[:n], b[:n], **options),
        "pairs": cf.maxsim_pairs(a, b, PAIRS, **options),
        "topk": cf.topk(a, b, 2, **options)[0],
        "candidates": cf.topk(a, b, 1, candidates=torch.tensor([[1], [0], [1]]), **options)[0],
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_rows_as_tokens(backend: str, dtype: torch.dtype) -> None:
    """With pad="zero" a row of zeros of a document counts as in a list; a row of zeros of a query adds 0 anyway."""
    a, b = -torch.rand(3, 4, 5).to(dtype) - 0.1, torch.rand(2, 9, 5).to(dtype) + 0.1
    a[0, 1:], b[1, 2], b[1, 6:] = 0, 0, 0
    a[2, 3] = -a[2, 3]
    actual = every_score(a, b, pad="zero", backend=backend)
    skipped = every_score(a, b, backend=backend)
    for name, expected in every_score(list(a), list(b), backend=backend).items():
        assert_close(actual[name], expected)
        assert not torch.allclose(actual[name], skipped[name])
    assert_scores(actual["maxsim"], list(a), list(b))
    assert actual["maxsim"][:2, 1].tolist() == [0, 0] and (actual["maxsim"][:2, 0] < 0).all()
    mean = every_score(a, b, pad="zero", length_normalize=True, backend=backend)
    tokens = torch.tensor([1, 4, 4])
    assert_close(mean["maxsim"], actual["maxsim"] / tokens[:, None])
    assert_close(mean["pairwise"], actual["pairwise"] / tokens[:2])
    assert_close(mean["pairs"], actual["pairs"] / tokens[PAIRS[:, 0]])


def test_a_document_of_zeros_as_tokens(backend: str) -> None:
    """It has tokens: no warning, and no -1e9."""
    a, b = torch.randn(3, 4, 5), torch.zeros(2, 7, 5, requires_grad=True)
    scores = cf.maxsim(a, b, pad="zero", backend=backend)
    assert (scores == 0).all()
    scores.sum().backward()
    assert_close(b.grad[:, 0], a.sum((0, 1)).expand(2, 5))


def test_gradient_of_zero_rows_as_tokens(backend: str) -> None:
    a, b = -torch.rand(2, 3, 5), torch.rand(2, 6, 5)
    b[0, 4:] = 0
    leaves = [side.clone().requires_grad_() for side in (a, b)]
    cf.maxsim(*leaves, pad="zero", backend=backend).sum().backward()
    as_lists = [side.clone().requires_grad_() for side in (a, b)]
    cf.maxsim(list(as_lists[0]), list(as_lists[1]), backend=backend).sum().backward()
    for leaf, other in zip(leaves, as_lists, strict=True):
        assert_close(leaf.grad, other.grad)
    assert leaves[1].grad[0, 4].any()


def test_lists_and_packed_tokens_have_no_padding() -> None:
    a, b = torch.randn(3, 4, 5), torch.randn(2, 7, 5)
    b[0, 3:] = 0
    for documents in (list(b), cf.PackedTokens.from_padded(b), cf.PackedTokens.from_padded(b).quantize("int8")):
        assert torch.equal(cf.maxsim(a, documents, pad="zero"), cf.maxsim(a, documents))


def test_zero_rows_as_tokens_compile() -> None:
    a, b = -torch.rand(3, 4, 5), torch.rand(2, 9, 5)
    b[1, 4:] = 0
    compiled = torch.compile(lambda a, b: every_score(a, b, pad="zero"), fullgraph=True, backend="aot_eager")
    for name, expected in every_score(a, b, pad="zero").items():
        torch.testing.assert_close(compiled(a, b)[name], expected)


def test_pad_is_one_of_two() -> None:
    a, b = torch.randn(2, 4, 5), torch.randn(2, 7, 5)
    for pad in ("Zero", "", None, True, 0, b, ["zero"]):
        for call in (cf.maxsim, cf.maxsim_pairwise):
            with pytest.raises(ValueError, match=r'^pad must be "skip" or "zero"; got '):
                call(a, b, pad=pad)
        with pytest.raises(ValueError, match=r'^pad must be "skip" or "zero"; got '):
            cf.maxsim_pairs(a, b, PAIRS[:1], pad=pad)
        with pytest.raises(ValueError, match=r'^pad must be "skip" or "zero"; got '):
            cf.topk(a, b, 1, pad=pad)
    for call in (cf.maxsim, cf.maxsim_pairwise):
        with pytest.raises(ValueError, match=r'b_mask cannot go with pad="zero".*: leave the mask out'):
            call(a, b, b_mask=torch.ones(2, 7), pad="zero")
        call(a, b, a_mask=torch.ones(2, 4), pad="zero")
        call(a, b, b_mask=torch.ones(2, 7), pad="skip")


@pytest.mark.parametrize("form", ["list", "packed", "nested", "mask"])
def test_a_zero_row_that_is_a_token(backend: str, form: str) -> None:
    """Only in a padded tensor without a mask is padding guessed."""
    a, b = torch.stack([-torch.ones(3, 4), -torch.ones(3, 4)]), torch.rand(2, 15, 4) + 0.1
    a[0, 1], b[0, 13] = 0.0, 0.0
    a.requires_grad_(), b.requires_grad_()
    lower_to: Any = {
        "list": list,
        "packed": lambda x: cf.PackedTokens.from_list(list(x)),
        "nested": lambda x: torch.nested.as_nested_tensor(list(x), layout=torch.jagged),
        "mask": lambda x: x,
    }[form]
    masks = [torch.ones(1, 3), torch.ones(1, 15)] if form == "mask" else [None, None]
    scores = cf.maxsim(lower_to(a), lower_to(b), *masks, backend=backend)
    assert_scores(scores.detach(), list(a.detach()), list(b.detach()))
    assert (scores[:, 0] == 0).all()
    argmax = score_argmax(backend, lower_to(a.detach()), lower_to(b.detach()), *masks)[1]
    assert (argmax[1, 0] == 13).all() and argmax[0, 0].tolist() == [13, 0, 13]
    normalized = cf.maxsim(lower_to(a), lower_to(b), *masks, length_normalize=True, backend=backend)
    assert_close(normalized, scores / 3)
    scores[1, 0].backward()
    assert (b.grad[0, 13] == -3).all()


@pytest.mark.parametrize("form", ["zero-rows", "mask"])
def test_padding_does_not_tie_with_minus_infinity(backend: str, form: str) -> None:
    a = torch.full((1, 2, 3), -INF, requires_grad=True)
    b = torch.ones(1, 20, 3)
    b[0, :13], b[0, 16] = 0.0, 0.0
    mask = b.any(-1) if form == "mask" else None
    b.requires_grad_()
    scores, argmax = score_argmax(backend, a.detach(), b.detach(), None, mask)
    assert scores.tolist() == [[-INF]]
    assert form == "mask" or (argmax == 13).all()  # rows under a mask are moved before they are numbered
    cf.maxsim(a, b, None, mask, backend=backend).sum().backward()
    assert (b.grad[0, 13] == -INF).all() and (b.grad[0, :13] == 0).all() and (b.grad[0, 14:] == 0).all()
    assert (a.grad == 1).all()


def test_topk_leaves_zero_rows_out(backend: str) -> None:
    a, b = -torch.rand(2, 3, 4) - 0.1, torch.rand(5, 8, 4) + 0.1
    b[:, 5:] = 0.0
    b[1, 1] = 0.0
    best = without_zero_rows(a, b)[0].sort(1, descending=True)
    scores, numbers = cf.topk(a, b, 3, backend=backend)
    assert_close(scores, best.values[:, :3])
    assert torch.equal(numbers, best.indices[:, :3])
