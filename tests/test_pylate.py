"""In one environment with PyLate: both install, and give the same scores. `make test-pylate` makes it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from cases import assert_close, embeddings

import colbert_fast as cf

if find_spec("pylate") is None:
    pytest.skip("pylate is not installed; `make test-pylate` installs it", allow_module_level=True)


@pytest.fixture(scope="module")
def scores() -> Any:
    from pylate import scores

    return scores


def padded(lengths: list[int], longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens with positive elements, and what must not be heard in the rows behind them; and the mask."""
    tokens = torch.rand(len(lengths), longest, 16)
    mask = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    return torch.where(mask.unsqueeze(2), tokens, 100.0), mask


def test_padded_batches_with_masks(scores: Any) -> None:
    q, q_mask = padded([4, 1, 6], 6)
    d, d_mask = padded([9, 3, 1, 7], 9)
    assert_close(cf.maxsim(q, d, q_mask, d_mask), scores.colbert_scores(q, d, q_mask, d_mask))
    assert_close(cf.maxsim(q, d), scores.colbert_scores(q, d))
    as_floats = scores.colbert_scores(q, d, q_mask.float(), d_mask.float())
    assert_close(cf.maxsim(q, d, q_mask.float(), d_mask.float()), as_floats)
    arrays = (q.numpy(), d.numpy())
    assert_close(cf.maxsim(*arrays, q_mask, d_mask), scores.colbert_scores(*arrays, q_mask, d_mask))


def test_pairs_of_any_length(scores: Any) -> None:
    queries, documents = embeddings([4, 1, 6], 16), embeddings([9, 3, 1], 16)
    assert_close(cf.maxsim_pairwise(queries, documents), scores.colbert_scores_pairwise(queries, documents))
    q, d = torch.randn(5, 4, 16), torch.randn(5, 7, 16)
    assert_close(cf.maxsim_pairwise(q, d), scores.colbert_scores_pairwise(q, d))


def test_groups_of_candidates(scores: Any) -> None:
    q, q_mask = padded([4, 1], 4)
    d, d_mask = padded([9, 3, 1, 7, 2, 5], 9)
    expected = scores.colbert_kd_scores(q, d.view(2, 3, 9, 16), q_mask, d_mask.view(2, 3, 9))
    pairs = torch.tensor([[i, 3 * i + j] for i in range(2) for j in range(3)])
    sides = cf.PackedTokens.from_padded(q, q_mask), cf.PackedTokens.from_padded(d, d_mask)
    assert_close(cf.maxsim_pairs(*sides, pairs).view(2, 3), expected)


def test_gradients(scores: Any) -> None:
    q, q_mask = padded([4, 6], 6)
    d, d_mask = padded([9, 3, 7], 9)
    leaves = [side.requires_grad_() for side in (q, d)]
    ours = torch.autograd.grad(cf.maxsim(q, d, q_mask, d_mask).square().sum(), leaves)
    theirs = torch.autograd.grad(scores.colbert_scores(q, d, q_mask, d_mask).square().sum(), leaves)
    for our, their in zip(ours, theirs, strict=True):
        assert_close(our, their)


def test_padding_is_no_token_of_similarity_zero(scores: Any) -> None:
    """To PyLate it is one, which wins where all tokens of a document have negative similarities."""
    q, d = torch.ones(1, 2, 16), -torch.ones(1, 5, 16)
    mask = torch.arange(5).unsqueeze(0) < 3
    alone = scores.colbert_scores(q, d[:, :3])
    assert_close(cf.maxsim(q, d, b_mask=mask), alone)
    assert alone.item() == -32
    assert scores.colbert_scores(q, d, documents_mask=mask).item() == 0


def test_models_say_what_they_need() -> None:
    """PyLate 1.6 holds sentence-transformers back at a version that our encoder cannot use."""
    with pytest.raises(ImportError, match=r"colbert-fast\[models\]"):
        from colbert_fast.models import ColBERT  # noqa: F401
