"""Candidates [B, N, length, dim]: each query against its own documents, in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, assert_close, embeddings, planted
from torch import Tensor

import colbert_fast as cf
from colbert_fast import reference


def candidates(b: int, n: int, length: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return queries ``[b, 7, dim]`` and candidates ``[b, n, length, dim]`` whose best rows are spread."""
    queries = embeddings([7] * b, dim, dtype)
    documents = planted(queries, embeddings([length] * (b * n), dim, dtype))
    return torch.stack(queries), torch.stack(documents).view(b, n, length, dim)


def one_by_one(a: Tensor, b: Tensor, a_mask: Tensor, b_mask: Tensor) -> Tensor:
    """The definition, in float64."""
    scores = torch.zeros(b.shape[:2], dtype=torch.float64)
    for i in range(len(b)):
        for n in range(b.shape[1]):
            scores[i, n] = reference.maxsim_pair(a[i][a_mask[i]], b[i, n][b_mask[i, n]])[0]
    return scores


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_scores_with_masks(extension: str, dtype: torch.dtype) -> None:
    a, b = candidates(3, 4, 21, 24, dtype)
    a_mask, b_mask = torch.rand(3, 7) < 0.7, torch.rand(3, 4, 21) < 0.6
    b_mask[:, :, 20] = True
    scores = cf.maxsim_pairwise(a, b, a_mask, b_mask)
    assert scores.shape == (3, 4) and scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(scores, one_by_one(a, b, a_mask, b_mask))
    mean = cf.maxsim_pairwise(a, b, a_mask, b_mask, length_normalize=True)
    assert_close(mean, scores / a_mask.sum(1, keepdim=True))


def test_every_backend(backend: str) -> None:
    a, b = candidates(3, 4, 21, 24)
    mask = torch.rand(3, 4, 21) < 0.6
    mask[:, :, 0] = True
    every = torch.ones(3, 7, dtype=torch.bool)
    assert_close(cf.maxsim_pairwise(a, b, None, mask, backend=backend), one_by_one(a, b, every, mask))
    grads = []
    for call in (cf.maxsim_pairwise, column_by_column):
        leaves = [side.clone().requires_grad_() for side in (a, b)]
        (call(*leaves, b_mask=mask, backend=backend) * torch.arange(12.0).view(3, 4)).sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs)
    assert (grads[0][1][~mask] == 0).all()


def column_by_column(a: Tensor, b: Tensor, b_mask: Tensor, backend: str) -> Tensor:
    columns = range(b.shape[1])
    return torch.stack([cf.maxsim_pairwise(a, b[:, n], None, b_mask[:, n], backend=backend) for n in columns], dim=1)


def test_zero_rows_and_layouts_of_queries() -> None:
    a, b = candidates(3, 4, 9, 8)
    a, b = a.abs(), -b.abs() - 0.1
    a[0, 3:], b[1, 2, 5:] = 0, 0
    every = torch.ones(3, 4, 9, dtype=torch.bool)
    skipped = cf.maxsim_pairwise(a, b)
    assert_close(skipped, one_by_one(a, b, a.any(-1), b.any(-1)))
    counted = cf.maxsim_pairwise(a, b, pad="zero")
    assert_close(counted, one_by_one(a, b, a.any(-1), every))
    assert counted[1, 2] == 0 and skipped[1, 2] < 0
    mean = cf.maxsim_pairwise(a, b, length_normalize=True)
    assert_close(mean, skipped / torch.tensor([[3.0], [7], [7]]))
    queries = [a[0, :3], a[1], a[2]]
    jagged = torch.nested.as_nested_tensor(queries, layout=torch.jagged)
    for form in (queries, cf.PackedTokens.from_list(queries), jagged, [query.tolist() for query in queries]):
        assert_close(cf.maxsim_pairwise(form, b), skipped)
        assert_close(cf.maxsim_pairwise(form, b, length_normalize=True), mean)
    assert torch.equal(cf.maxsim_pairwise(a.numpy(), b.numpy()), skipped)
    backwards = np.flip(b.numpy(), 1)
    assert torch.equal(cf.maxsim_pairwise(a, backwards), skipped.flip(1))
    assert torch.equal(cf.maxsim_pairwise(a[1], b[1:2]), skipped[1:2])  # one query alone
    assert torch.equal(cf.maxsim_pairwise(a, b.transpose(2, 3).contiguous().transpose(2, 3)), skipped)


@pytest.mark.parametrize("shape", [(1, 1, 9), (3, 1, 9), (1, 4, 9)])
@pytest.mark.parametrize("kind", ["bool", "float", "numpy", "numbers", "list", "arrays"])
def test_kinds_of_masks(shape: tuple[int, ...], kind: str) -> None:
    a, b = candidates(3, 4, 9, 8)
    mask = torch.rand(shape) < 0.7
    mask[..., 0] = True
    turn: dict[str, Any] = {
        "bool": lambda m: m,
        "float": Tensor.float,
        "numpy": Tensor.numpy,
        "numbers": Tensor.tolist,
        "list": list,
        "arrays": lambda m: list(m.numpy()),
    }
    expected = cf.maxsim_pairwise(a, b, None, mask.expand(3, 4, 9))
    assert torch.equal(cf.maxsim_pairwise(a, b, None, turn[kind](mask)), expected)


def test_nothing_to_score() -> None:
    a, b = candidates(3, 4, 9, 8)
    none = torch.zeros(3, 4, 9)
    none[1, 2] = 1
    with pytest.warns(UserWarning, match="without a token") as warned:
        scores = cf.maxsim_pairwise(a, b.clone().requires_grad_(), None, none)
    assert len(warned) == 1 and (scores == -1e9).sum() == 11
    for x, y, shape in ((a, b[:, :0], (3, 0)), (a[:0], b[:0], (0, 4)), ([], b[:0], (0, 4)), (a[:0], b[:0, :0], (0, 0))):
        mask = torch.ones(y.shape[:3])
        for options in ({}, {"b_mask": mask}, {"length_normalize": True}):
            assert cf.maxsim_pairwise(x, y, **options).shape == shape
    with pytest.warns(UserWarning, match="without a token"):
        assert (cf.maxsim_pairwise(a, b[:, :, :0]) == -1e9).all()
    assert (cf.maxsim_pairwise(a[:, :0], b) == 0).all()


def test_errors() -> None:
    a, b = candidates(3, 4, 9, 8)
    for x, y in ((a[:2], b), (a, b[:1]), (a[0], b)):
        with pytest.raises(ValueError, match="the same number of items to be scored in pairs; got"):
            cf.maxsim_pairwise(x, y)
    for mask in (torch.ones(3, 9), torch.ones(3, 4, 8), torch.ones(2, 4, 9), torch.ones(12, 9), torch.ones(9), True):
        with pytest.raises((ValueError, TypeError), match=r"b_mask must be"):
            cf.maxsim_pairwise(a, b, None, mask)
    with pytest.raises(ValueError, match='b_mask cannot go with pad="zero"'):
        cf.maxsim_pairwise(a, b, None, torch.ones(3, 4, 9), pad="zero")
    with pytest.raises(ValueError, match="the same dim"):
        cf.maxsim_pairwise(a, b[..., :5])
    with pytest.raises(ValueError, match=r"a must be .* got shape \[3, 4, 9, 8\]$"):
        cf.maxsim_pairwise(b, b)
    with pytest.raises(ValueError, match=r"got shape \[1, 3, 4, 9, 8\]$"):
        cf.maxsim_pairwise(a, b[None])
    for call in (cf.maxsim, cf.maxsim_with_argmax, lambda q, d: cf.topk(q, d, 1)):
        with pytest.raises(ValueError, match=r"maxsim_pairwise scores every query .* b.flatten\(0, 1\) holds"):
            call(a, b)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles() -> None:
    a, b = candidates(3, 4, 9, 8)
    mask = torch.rand(3, 4, 9) < 0.7
    mask[:, :, 1] = True

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return cf.maxsim_pairwise(a, b, None, mask, length_normalize=True)

    compiled = torch.compile(mean, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), mean(a, b))
    compiled(a.requires_grad_(), b).sum().backward()
    assert a.grad is not None
    assert cf.maxsim_pairwise(a.to("meta"), b.to("meta"), device="meta").shape == (3, 4)


@pytest.mark.needs("models")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_sentence_transformers(dtype: torch.dtype) -> None:
    """On inputs of a half dtype it rounds the similarities, so it gets the same values in float32."""
    from sentence_transformers.multi_vector_encoder.scoring import colbert_kd_scores, colbert_scores

    a, b = candidates(3, 4, 21, 24)
    a, b = (-a.abs()).to(dtype), (b.abs() + 0.1).to(dtype)
    a[1, 5:], b[0, 1, 15:], b[2, 3, 1:] = 0, 0, 0
    masks = torch.rand(3, 7) < 0.8, torch.rand(3, 4, 21) < 0.7
    masks[1][:, :, 0] = True
    for a_mask, b_mask in ((None, None), masks):
        for mean in (False, True):
            theirs = colbert_kd_scores(a.float(), b.float(), a_mask, b_mask, length_normalize=mean)
            assert_close(cf.maxsim_pairwise(a, b, a_mask, b_mask, length_normalize=mean), theirs)
            theirs = colbert_scores(a.float(), b.float(), a_mask, b_mask, length_normalize=mean)
            flat = None if b_mask is None else b_mask.flatten(0, 1)
            assert_close(cf.maxsim(a, b.flatten(0, 1), a_mask, flat, length_normalize=mean), theirs)
