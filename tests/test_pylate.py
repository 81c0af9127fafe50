"""In one environment with PyLate: both install, and give the same scores. `make test-pylate` makes it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from cases import assert_close, embeddings
from torch import Tensor

import colbert_fast as cf
from colbert_fast.integrations import pylate as ours

if find_spec("pylate") is None:
    pytest.skip("pylate is not installed; `make test-pylate` installs it", allow_module_level=True)


@pytest.fixture(scope="module")
def scores() -> Any:
    from pylate import scores

    return scores


def padded(lengths: list[int], longest: int) -> tuple[Tensor, Tensor]:
    """Tokens with positive elements, with rows behind them that must not score; and the mask."""
    tokens = torch.rand(len(lengths), longest, 16)
    mask = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    return torch.where(mask.unsqueeze(2), tokens, 100.0), mask


def signed(lengths: list[int], longest: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Tokens, and the mask. Many tokens have only negative similarities, so that masked tokens win."""
    tokens, mask = padded(lengths, longest)
    signs = torch.randint(0, 2, (len(lengths), 1, 1)) * 2 - 1
    # Half precision would overflow where padding meets padding.
    return ((tokens.clamp(max=10) - 0.2) * signs).to(dtype), mask


class TestCore:
    """cf.maxsim gives PyLate's scores wherever no padding wins."""

    def test_padded_batches_with_masks(self, scores: Any) -> None:
        q, q_mask = padded([4, 1, 6], 6)
        d, d_mask = padded([9, 3, 1, 7], 9)
        assert_close(cf.maxsim(q, d, q_mask, d_mask), scores.colbert_scores(q, d, q_mask, d_mask))
        assert_close(cf.maxsim(q, d), scores.colbert_scores(q, d))
        as_floats = scores.colbert_scores(q, d, q_mask.float(), d_mask.float())
        assert_close(cf.maxsim(q, d, q_mask.float(), d_mask.float()), as_floats)
        arrays = (q.numpy(), d.numpy())
        assert_close(cf.maxsim(*arrays, q_mask, d_mask), scores.colbert_scores(*arrays, q_mask, d_mask))

    def test_pairs_of_any_length(self, scores: Any) -> None:
        queries, documents = embeddings([4, 1, 6], 16), embeddings([9, 3, 1], 16)
        assert_close(cf.maxsim_pairwise(queries, documents), scores.colbert_scores_pairwise(queries, documents))
        q, d = torch.randn(5, 4, 16), torch.randn(5, 7, 16)
        assert_close(cf.maxsim_pairwise(q, d), scores.colbert_scores_pairwise(q, d))

    def test_groups_of_candidates(self, scores: Any) -> None:
        q, q_mask = padded([4, 1], 4)
        d, d_mask = padded([9, 3, 1, 7, 2, 5], 9)
        expected = scores.colbert_kd_scores(q, d.view(2, 3, 9, 16), q_mask, d_mask.view(2, 3, 9))
        pairs = torch.tensor([[i, 3 * i + j] for i in range(2) for j in range(3)])
        sides = cf.PackedTokens.from_padded(q, q_mask), cf.PackedTokens.from_padded(d, d_mask)
        assert_close(cf.maxsim_pairs(*sides, pairs).view(2, 3), expected)

    def test_gradients(self, scores: Any) -> None:
        q, q_mask = padded([4, 6], 6)
        d, d_mask = padded([9, 3, 7], 9)
        leaves = [side.requires_grad_() for side in (q, d)]
        our_grads = torch.autograd.grad(cf.maxsim(q, d, q_mask, d_mask).square().sum(), leaves)
        theirs = torch.autograd.grad(scores.colbert_scores(q, d, q_mask, d_mask).square().sum(), leaves)
        for our, their in zip(our_grads, theirs, strict=True):
            assert_close(our, their)

    def test_padding_is_no_token_of_similarity_zero(self, scores: Any) -> None:
        """To PyLate it is one, which wins where all tokens of a document have negative similarities."""
        q, d = torch.ones(1, 2, 16), -torch.ones(1, 5, 16)
        mask = torch.arange(5).unsqueeze(0) < 3
        alone = scores.colbert_scores(q, d[:, :3])
        assert_close(cf.maxsim(q, d, b_mask=mask), alone)
        assert alone.item() == -32
        assert scores.colbert_scores(q, d, documents_mask=mask).item() == 0
        assert ours.colbert_scores(q, d, documents_mask=mask).item() == 0

    def test_models_say_what_they_need(self) -> None:
        """PyLate 1.6 holds sentence-transformers back at a version that our encoder cannot use."""
        with pytest.raises(ImportError, match=r"colbert-fast\[models\]"):
            from colbert_fast.models import ColBERT  # noqa: F401


MASKS: list[Callable[[Tensor], Any]] = [
    lambda mask: mask,
    lambda mask: mask.float(),
    lambda mask: mask.long(),
    lambda mask: mask.numpy(),
    lambda mask: mask * torch.rand(mask.shape),  # weights
    lambda mask: mask & False,  # every token is masked: empty documents
    lambda mask: mask[:1],  # one for all
    lambda mask: None,
]


class TestFunctions:
    """Our function beside PyLate's of the same name, with the same arguments."""

    @pytest.mark.parametrize("form", range(len(MASKS)))
    def test_masks(self, scores: Any, form: int) -> None:
        q, q_mask = signed([4, 1, 6, 6], 6)
        d, d_mask = signed([9, 3, 1, 7, 9, 8], 9)
        masks = [MASKS[form](mask) for mask in (q_mask, d_mask)]
        expected = scores.colbert_scores(q, d, *masks)
        assert_close(ours.colbert_scores(q, d, *masks), expected)
        arrays = q.numpy(), d.numpy()
        assert_close(ours.colbert_scores(*arrays, *masks), scores.colbert_scores(*arrays, *masks))
        lists = list(q), list(d)
        assert_close(ours.colbert_scores(*lists, *masks), scores.colbert_scores(*lists, *masks))
        if form != 6:
            groups = d.view(2, 3, 9, 16)
            group_mask = None if masks[1] is None else masks[1].reshape(2, 3, 9)
            args = q[:2], groups, None if masks[0] is None else masks[0][:2], group_mask
            assert_close(ours.colbert_kd_scores(*args), scores.colbert_kd_scores(*args))
            args = q, groups, masks[0], group_mask
            assert_close(ours.ColBERTScores()(*args), scores.ColBERTScores()(*args))

    def test_lists_of_masks_and_single_items(self, scores: Any) -> None:
        q, q_mask = signed([4, 1, 6], 6)
        d, d_mask = signed([9, 3, 1, 7, 9, 8], 9)
        groups, group_mask = d.view(3, 2, 9, 16), d_mask.view(3, 2, 9)
        for form in (list, lambda mask: list(mask.float().numpy()), Tensor.tolist):
            args = q, d, form(q_mask), form(d_mask)
            assert_close(ours.colbert_scores(*args), scores.colbert_scores(*args))
            for sides in ((q, groups), (q[:1], groups), (q, groups[:1])):
                masks = form(q_mask[: len(sides[0])]), form(group_mask[: len(sides[1])])
                assert_close(ours.colbert_kd_scores(*sides, *masks), scores.colbert_kd_scores(*sides, *masks))

    def test_the_masked_tokens_win_in_these_inputs(self, scores: Any) -> None:
        """Otherwise the test above could not tell the two conventions apart."""
        q, q_mask = signed([4, 1, 6, 6], 6)
        d, d_mask = signed([9, 3, 1, 7, 9, 8], 9)
        assert not torch.allclose(cf.maxsim(q, d, q_mask, d_mask), scores.colbert_scores(q, d, q_mask, d_mask))

    def test_rows_of_zeros_and_lists_of_numbers(self, scores: Any) -> None:
        q, d = torch.randn(2, 3, 16), -torch.rand(4, 5, 16)
        q[:, 2], d[1:, 3:] = 0, 0
        for args in ((q, d), (list(q), list(d)), (q.tolist(), d.tolist())):
            assert_close(ours.colbert_scores(*args), scores.colbert_scores(*args))
        assert_close(ours.colbert_scores_pairwise(q, d[1:3]), scores.colbert_scores_pairwise(q, d[1:3]))

    def test_pairs_of_any_length(self, scores: Any) -> None:
        queries, documents = embeddings([4, 1, 6], 16), embeddings([9, 3, 1], 16)
        documents[1] = -documents[1].abs()
        expected = scores.colbert_scores_pairwise(queries, documents)
        assert_close(ours.colbert_scores_pairwise(queries, documents), expected)
        arrays = [q.numpy() for q in queries], [d.numpy() for d in documents]
        assert_close(ours.colbert_scores_pairwise(*arrays), scores.colbert_scores_pairwise(*arrays))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_half_precision_is_scored_in_float32(self, scores: Any, dtype: torch.dtype) -> None:
        """PyLate rounds each similarity and the sum to half precision. We give its float32 scores of these numbers."""
        q, q_mask = signed([4, 1, 6, 6], 6, dtype)
        d, d_mask = signed([9, 3, 1, 7, 9, 8], 9, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        found = ours.colbert_scores(q, d, q_mask, d_mask)
        assert found.dtype == wide
        assert_close(found, scores.colbert_scores(q.to(wide), d.to(wide), q_mask, d_mask))
        theirs = scores.colbert_scores(q, d, q_mask, d_mask)
        assert theirs.dtype == dtype
        torch.testing.assert_close(found, theirs.to(wide), rtol=0.02, atol=0.1)

    def test_gradients(self, scores: Any) -> None:
        q, q_mask = signed([4, 1, 6], 6)
        d, d_mask = signed([9, 3, 1, 7, 9, 8], 9)
        leaves = [side.requires_grad_() for side in (q, d)]
        groups, group_mask = d.view(3, 2, 9, 16), d_mask.view(3, 2, 9)
        for name, args in (
            ("colbert_scores", (q, d, q_mask, d_mask)),
            ("colbert_scores", (q, d, q_mask.float() / 2, d_mask.float() * 3)),
            ("colbert_scores_pairwise", (q, d[:3])),
            ("colbert_kd_scores", (q, groups, q_mask, group_mask)),
        ):
            found, expected = getattr(ours, name)(*args), getattr(scores, name)(*args)
            for our, their in zip(grads(found, leaves), grads(expected, leaves), strict=True):
                assert_close(our, their)
        args = q, groups, q_mask, group_mask
        found, expected = ours.ColBERTScores()(*args), scores.ColBERTScores()(*args)
        for our, their in zip(grads(found, leaves), grads(expected, leaves), strict=True):
            assert_close(our, their)


def grads(scores: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(scores.square().sum(), leaves)


class TestRerank:
    def test_the_same_ids_and_scores(self) -> None:
        from pylate.rank import rerank

        queries, documents = embeddings([4, 6], 16), embeddings([9, 3, 12, 7, 5], 16)
        documents[1] = -documents[1].abs()
        ids, groups = [["a", "b"], [3, 1, 2]], [documents[:2], documents[2:]]
        arrays = [query.numpy() for query in queries], [[d.numpy() for d in group] for group in groups]
        for sides in ((queries, groups), arrays, (queries, [torch.rand(2, 5, 16), torch.rand(3, 4, 16)])):
            for device in (None, "cpu"):
                found, expected = ours.rerank(ids, *sides, device), rerank(ids, *sides, device)
                assert [[r["id"] for r in results] for results in found] == [[r["id"] for r in e] for e in expected]
                for results, others in zip(found, expected, strict=True):
                    scores = [result["score"] for result in results]
                    assert scores == pytest.approx([result["score"] for result in others], rel=1e-5, abs=1e-5)
        one = ours.rerank([["a", "b"]], queries[0], groups[:1])
        assert one == ours.rerank(ids, queries, groups)[:1]

    def test_a_short_candidate_scores_at_least_zero(self) -> None:
        from pylate.rank import rerank

        query, short, long = torch.ones(2, 4), -torch.ones(2, 4), torch.ones(3, 4)
        args = [[0, 1]], [query], [[short, long]]
        assert ours.rerank(*args) == rerank(*args) == [[{"id": 1, "score": 8.0}, {"id": 0, "score": 0.0}]]

    def test_no_candidates(self) -> None:
        from pylate import rank

        args = [[]], [torch.ones(2, 4)], [[]]
        with pytest.raises(RuntimeError):
            rank.rerank(*args)
        with ours.patched():
            assert rank.rerank(*args) == [[]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An encoder of PyLate with random weights."""
    from encoders import tiny
    from pylate import models

    folder = tiny.save_model(tmp_path_factory.mktemp("model"))
    lengths = {"query_length": 12, "document_length": 20}
    return models.ColBERT(str(folder), embedding_size=16, device="cpu", do_query_expansion=False, **lengths).eval()


@pytest.fixture(scope="module")
def features(model: Any) -> list[dict[str, Tensor]]:
    """Queries, positives and negatives, which differ in length."""
    queries = ["berlin", "what is the capital of france?", "bananas"]
    positives = ["berlin is the capital.", "paris! paris!", "bananas: a fruit, in france"]
    negatives = ["paris", "of, the, in!", "capital"]
    return [
        model.tokenize(queries, is_query=True),
        *(model.tokenize(texts, is_query=False, pad=True) for texts in (positives, negatives)),
    ]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of our kernels' functions, once for each call that the door makes."""
    found: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (found.append(name), function(*args, **kwargs))[1]

    for name in ("maxsim", "maxsim_pairwise"):
        monkeypatch.setattr(ours, name, counted(name, getattr(ours, name)))
    return found


def loss_and_gradients(model: Any, loss: Any, features: Any, labels: Any) -> list[Tensor]:
    model.zero_grad()
    found = loss(features, labels)
    found.backward()
    return [found.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", ["Contrastive", "CachedContrastive", "Distillation"])
def test_losses(model: Any, features: Any, calls: list[str], name: str) -> None:
    """The same loss and gradients, given as score_metric, and patched in whether the loss is made before or inside."""
    from pylate import losses

    def make(**metric: Any) -> Any:
        chunks = {"mini_batch_size": 2} if name == "CachedContrastive" else {}
        return getattr(losses, name)(model=model, **chunks, **metric)

    given, labels = features, None
    metric: Any = ours.ColBERTScores()
    if name == "Distillation":
        # Three candidates for each query, as its collator lays them out.
        documents = {key: torch.cat([features[1][key]] * 3) for key in features[1]}
        given, labels, metric = [features[0], documents], torch.rand(3, 3), ours.colbert_kd_scores
    made_before = make()
    expected = loss_and_gradients(model, made_before, given, labels)
    assert len(expected) > 10
    runs = [loss_and_gradients(model, make(score_metric=metric), given, labels)]
    calls.clear()
    for make_it in (lambda: made_before, make):
        with ours.patched():
            runs.append(loss_and_gradients(model, make_it(), given, labels))
        assert calls
        calls.clear()
    loss_and_gradients(model, made_before, given, labels)
    assert not calls
    for run in runs:
        for our, their in zip(run, expected, strict=True):
            torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)


class TestPatch:
    def test_the_models_similarity(self, model: Any, calls: list[str]) -> None:
        """A model keeps the functions with which it was made."""
        queries, documents = torch.randn(2, 4, 16), torch.randn(3, 7, 16)
        expected = model.similarity(queries, documents), model.similarity_pairwise(queries, documents[:2])
        assert not calls
        with ours.patched():
            found = model.similarity(queries, documents), model.similarity_pairwise(queries, documents[:2])
        assert calls == ["maxsim", "maxsim_pairwise"]
        for our, their in zip(found, expected, strict=True):
            assert_close(our, their)
        model.similarity(queries, documents)
        assert len(calls) == 2

    def test_evaluators(self, model: Any, calls: list[str]) -> None:
        from pylate import evaluation

        texts = ["berlin is", "paris"], ["in berlin", "of paris"], ["bananas", "france"]
        triplet = evaluation.ColBERTTripletEvaluator(*texts)
        distillation = evaluation.ColBERTDistillationEvaluator(
            queries=texts[0], documents=[[a, b] for a, b in zip(*texts[1:], strict=True)], scores=[[0.9, 0.1]] * 2
        )
        expected = triplet(model), distillation(model)
        with ours.patched():
            found = triplet(model), distillation(model)
        assert calls == ["maxsim_pairwise"] * 3
        for our, their in zip(found, expected, strict=True):
            assert our == pytest.approx(their, rel=1e-4)

    def test_a_named_backend_is_pylates(self, scores: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        q, d = torch.randn(2, 4, 16), torch.randn(2, 7, 16)
        with ours.patched():
            scores.colbert_scores(q, d, backend="torch")
            scores.colbert_scores(q, d, None, None, "TORCH")
            scores.colbert_scores_pairwise(q, d, "torch")
            with pytest.raises(ValueError, match="backend must be one of"):
                scores.colbert_scores(q, d, backend="nope")
            with pytest.raises(RuntimeError, match="requires CUDA"):
                scores.ColBERTScores()(q, d[None], backend="lik")
            monkeypatch.setenv("PYLATE_SCORES_BACKEND", "torch")
            scores.colbert_kd_scores(q, d[:, None])
            assert not calls
            scores.colbert_scores(q, d, backend="auto")
            scores.colbert_scores(q, d, backend="AUTO")
            assert calls == ["maxsim", "maxsim"]

    def test_everything_is_put_back(self, scores: Any) -> None:
        from pylate import losses, rank, retrieve
        from pylate.losses import distillation

        def functions() -> list[Any]:
            return [
                scores.colbert_scores,
                scores.colbert_scores_pairwise,
                distillation.colbert_kd_scores,
                losses.Distillation.__init__.__defaults__[0],
                vars(scores.ColBERTScores)["__call__"],
                scores.SimilarityFunction.to_similarity_fn("MaxSim"),
                rank.rerank,
                retrieve.colbert.rerank,
            ]

        before = functions()
        with pytest.raises(ZeroDivisionError), ours.patched(), ours.patched():
            assert not any(new is old for new, old in zip(functions(), before, strict=True))
            raise ZeroDivisionError
        assert all(new is old for new, old in zip(functions(), before, strict=True))
