"""In one environment with colpali-engine: the same scores and losses. `make test-colpali` makes it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from cases import assert_close, embeddings
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import colbert_fast as cf
from colbert_fast.integrations import colpali as ours

if find_spec("colpali_engine") is None:
    pytest.skip("colpali-engine is not installed; `make test-colpali` installs it", allow_module_level=True)


@pytest.fixture(scope="module")
def score_multi_vector() -> Callable[..., Tensor]:
    from colpali_engine.utils.processing_utils import BaseVisualRetrieverProcessor

    return BaseVisualRetrieverProcessor.score_multi_vector


@pytest.fixture(scope="module")
def scoring() -> Any:
    from colpali_engine.utils import maxsim

    return maxsim


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of our kernels' functions, once for each call that the door makes."""
    found: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (found.append(name), function(*args, **kwargs))[1]

    for name in ("maxsim", "maxsim_pairwise"):
        monkeypatch.setattr(ours, name, counted(name, getattr(ours, name)))
    return found


def pages(lengths: list[int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Pages. Every second page has negative elements, and negative similarities to queries of positive elements."""
    return [((-1) ** i * torch.rand(length, 16)).to(dtype) for i, length in enumerate(lengths)]


LENGTHS = [9, 3, 7, 5, 9, 4, 1]


class TestScoreMultiVector:
    @pytest.mark.parametrize("batch_size", [1, 2, 3, 128])
    def test_the_same_scores(self, score_multi_vector: Any, batch_size: int) -> None:
        queries = [q.abs() for q in embeddings([4, 1, 6], 16)]
        documents = pages(LENGTHS)
        expected = score_multi_vector(queries, documents, batch_size, device="cpu")
        found = ours.score_multi_vector(queries, documents, batch_size, device="cpu")
        assert (found.dtype, found.device, found.shape) == (expected.dtype, expected.device, expected.shape)
        assert_close(found, expected)
        padded = pad_sequence(queries, batch_first=True), pad_sequence(documents, batch_first=True)
        for sides in (padded, (queries, padded[1]), (padded[0], documents)):
            assert_close(ours.score_multi_vector(*sides, batch_size), score_multi_vector(*sides, batch_size))

    def test_the_same_bits_where_no_sum_is_rounded(self, score_multi_vector: Any) -> None:
        """So exactly their rows of zeros enter each maximum, whatever the batch."""
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            queries = [torch.randint(0, 3, (length, 16)).to(dtype) for length in (2, 1, 3)]
            documents = [(-1) ** i * torch.randint(0, 2, (n, 16)).to(dtype) for i, n in enumerate(LENGTHS)]
            different = set()
            for batch_size in range(1, 9):
                expected = score_multi_vector(queries, documents, batch_size)
                assert torch.equal(ours.score_multi_vector(queries, documents, batch_size), expected)
                different.add(tuple(expected.flatten().tolist()))
            assert len(different) > 2  # the scores do depend on the batch

    def test_skip_is_each_page_alone(self, score_multi_vector: Any) -> None:
        queries, documents = [q.abs() for q in embeddings([4, 1, 6], 16)], pages(LENGTHS)
        alone = torch.cat([score_multi_vector(queries, [page]) for page in documents], dim=1)
        padded = pad_sequence(documents, batch_first=True)
        for given in (documents, padded):
            assert_close(ours.score_multi_vector(queries, given, 2, padding="skip"), alone)
        assert not torch.allclose(alone, score_multi_vector(queries, documents))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_scored_in_float32(self, score_multi_vector: Any, dtype: torch.dtype) -> None:
        """colpali-engine rounds each similarity and the sum. We give its float32 scores of the same numbers."""
        queries, documents = pages([4, 1, 6], dtype), pages(LENGTHS, dtype)
        wide = [[item.float() for item in side] for side in (queries, documents)]
        found = ours.score_multi_vector(queries, documents, 3)
        assert_close(found, score_multi_vector(*wide, 3))
        torch.testing.assert_close(found, score_multi_vector(queries, documents, 3), rtol=0.02, atol=0.1)

    def test_errors(self, score_multi_vector: Any) -> None:
        some = embeddings([3], 16)
        for args in (([], some), (some, [])):
            with pytest.raises(ValueError) as theirs:
                score_multi_vector(*args)
            with pytest.raises(ValueError, match=f"^{theirs.value}$"):
                ours.score_multi_vector(*args)

    def test_transformers_processors(self) -> None:
        """Their score_retrieval gives the same scores."""
        from transformers.models.colpali.processing_colpali import ColPaliProcessor

        queries, documents = pages([4, 1, 6]), pages(LENGTHS)
        expected = ColPaliProcessor.score_retrieval(None, queries, documents, batch_size=3)
        assert_close(ours.score_multi_vector(queries, documents, batch_size=3), expected)


class TestMaxsim:
    @pytest.mark.parametrize("name", ["maxsim_inbatch", "maxsim_kd"])
    def test_scores_and_gradients(self, scoring: Any, name: str) -> None:
        q, d = torch.randn(3, 4, 16), -torch.rand(3, 5, 9, 16)
        q[0, 2:], d[:, 1:3, 6:] = 0, 0
        sides = q, (d[:, 1] if name == "maxsim_inbatch" else d)
        leaves = [side.clone().requires_grad_() for side in sides]
        found, expected = getattr(ours, name)(*leaves), getattr(scoring, name)(*leaves)
        assert_close(found, expected)
        gradients = [torch.autograd.grad(scores.square().sum(), leaves) for scores in (found, expected)]
        # Rows of zeros are left out here. A query's row has equal maxima, and gets no gradient from us. Among equal
        # rows of a document theirs divide the gradient, and ours give it to the first.
        for side, our, their in zip(sides, *gradients, strict=True):
            real = side.ne(0).any(-1)
            assert_close(our[real], their[real])

    def test_single_items_go_with_every_item_of_the_other_side(self, scoring: Any) -> None:
        q, d = torch.randn(3, 4, 16), torch.randn(3, 2, 9, 16)
        for sides in ((q[:1], d), (q, d[:1])):
            assert_close(ours.maxsim_kd(*sides), scoring.maxsim_kd(*sides))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_scored_in_float32(self, scoring: Any, dtype: torch.dtype) -> None:
        q, d = torch.randn(3, 4, 16, dtype=dtype), torch.randn(3, 2, 9, 16, dtype=dtype)
        assert_close(ours.maxsim_inbatch(q, d[:, 0]), scoring.maxsim_inbatch(q.float(), d[:, 0].float()))
        assert_close(ours.maxsim_kd(q, d), scoring.maxsim_kd(q.float(), d.float()))
        assert ours.maxsim_inbatch(q, d[:, 0]).dtype == torch.float32


def loss_and_gradients(loss: Any, sides: list[Tensor]) -> list[Tensor]:
    leaves = [side.clone().requires_grad_() for side in sides]
    found = loss(*leaves)
    return [found.detach(), *torch.autograd.grad(found, leaves)]


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "ColbertLoss",
        "ColbertNegativeCELoss",
        "ColbertPairwiseCELoss",
        "ColbertPairwiseNegativeCELoss",
        "ColbertSigmoidLoss",
    ],
)
def test_losses(calls: list[str], name: str, filtered: bool) -> None:
    from colpali_engine import loss

    make = getattr(loss, name, None) or getattr(loss.late_interaction_losses, name)
    module = make(temperature=1.0, pos_aware_negative_filtering=filtered)
    q, d, negatives = (torch.nn.functional.normalize(torch.rand(*shape, 16), dim=-1) for shape in SHAPES)
    d[1, 6:], negatives[:, 1, 7:] = 0, 0
    sides = [q, d, negatives] if "Negative" in name else [q, d]
    expected = loss_and_gradients(module, sides)
    assert not calls
    with ours.patched():
        found = loss_and_gradients(module, sides)
    assert set(calls) == ({"maxsim", "maxsim_pairwise"} if "Negative" in name else {"maxsim"})
    for our, their in zip(found, expected, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-6)


SHAPES = [(4, 5), (4, 9), (4, 3, 8)]


class TestPatch:
    def test_processors(self, calls: list[str]) -> None:
        from colpali_engine.models import ColPaliProcessor, ColQwen2Processor

        queries, documents = pages([4, 1, 6]), pages(LENGTHS)
        processors = [kind.__new__(kind) for kind in (ColPaliProcessor, ColQwen2Processor)]
        scored = [lambda p=p: p.score(queries, documents, device="cpu", batch_size=3) for p in processors]
        scored.append(lambda: ColPaliProcessor.score_multi_vector(queries, documents, batch_size=3))
        expected = [score() for score in scored]
        assert not calls
        with ours.patched():
            found = [score() for score in scored]
        assert len(calls) == 9  # three batches of pages each
        for our, their in zip(found, expected, strict=True):
            assert_close(our, their)

    def test_a_named_backend_is_theirs(
        self, scoring: Any, score_multi_vector: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from colpali_engine.utils._lik_backend import LIKUnsupportedError

        q, d = torch.randn(2, 4, 16), torch.randn(2, 7, 16)
        with ours.patched():
            monkeypatch.setenv("COLPALI_SCORES_BACKEND", "torch")
            scoring.maxsim_inbatch(q, d)
            monkeypatch.setenv("COLPALI_SCORES_BACKEND", "lik")
            with pytest.raises(LIKUnsupportedError):
                scoring.maxsim_kd(q, d[:, None])
            assert not calls
            monkeypatch.setenv("COLPALI_SCORES_BACKEND", "auto")
            scoring.maxsim_inbatch(q, d)
            assert calls == ["maxsim"]

    def test_everything_is_put_back(self, scoring: Any) -> None:
        from colpali_engine.loss import late_interaction_losses
        from colpali_engine.models import ColPaliProcessor
        from colpali_engine.utils import processing_utils

        def functions() -> list[Any]:
            return [
                scoring.maxsim_inbatch,
                scoring.maxsim_kd,
                late_interaction_losses.maxsim_kd,
                processing_utils.maxsim_inbatch,
                ColPaliProcessor.score_multi_vector,
            ]

        before, single = functions(), ColPaliProcessor.score_single_vector
        raw = vars(processing_utils.BaseVisualRetrieverProcessor)["score_multi_vector"]
        with pytest.raises(ZeroDivisionError), ours.patched(), ours.patched():
            assert not any(new is old for new, old in zip(functions(), before, strict=True))
            assert ColPaliProcessor.score_single_vector is single
            raise ZeroDivisionError
        assert all(new is old for new, old in zip(functions(), before, strict=True))
        assert vars(processing_utils.BaseVisualRetrieverProcessor)["score_multi_vector"] is raw


def test_pages_as_they_are(score_multi_vector: Any) -> None:
    """Where all pages have one length, as ColPali's have, no padding is there, and cf.maxsim gives the scores too."""
    queries, documents = pages([4, 6]), pages([9] * 5)
    assert_close(cf.maxsim(queries, documents), score_multi_vector(queries, documents))
