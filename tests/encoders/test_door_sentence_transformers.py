"""integrations.sentence_transformers instead of the library's own functions: the same arguments, the same answers."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import torch
from cases import assert_close
from sentence_transformers import util
from sentence_transformers.multi_vector_encoder import evaluation, losses
from sentence_transformers.multi_vector_encoder import scoring as theirs
from sentence_transformers.util import similarity_fct_name
from tiny import DOCUMENTS, QUERIES
from torch import Tensor

import colbert_fast.integrations.sentence_transformers as ours

DIM = 12
GROUPED = ["colbert_scores", "colbert_kd_scores", "mean_colbert_scores", "mean_colbert_kd_scores"]
PAIRED = ["colbert_scores_pairwise", "mean_colbert_scores_pairwise"]
PLAIN = ["maxsim", "maxsim_pairwise", "mean_maxsim", "mean_maxsim_pairwise"]
EMPTY = logging.getLogger("sentence_transformers.util.similarity")


def their(name: str) -> Callable[..., Tensor]:
    return getattr(util if name in PLAIN else theirs, name)


def inputs(name: str, sign: float = -1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, documents and their masks. With -1 all similarities are negative, so padding would win."""
    q = torch.rand(3, 5, DIM) + 0.1
    d = sign * (torch.rand(*((3, 4, 7) if name in GROUPED else (3, 7)), DIM) + 0.1)
    q_mask, d_mask = torch.rand(3, 5) < 0.6, torch.rand(d.shape[:-1]) < 0.6
    q_mask[:, 1] = d_mask[..., 2] = True
    return q, d, q_mask, d_mask


def masks_of(name: str, q_mask: Any, d_mask: Any) -> dict[str, Any]:
    names = ("a_mask", "b_mask") if name in PLAIN else ("queries_mask", "documents_mask")
    return {key: mask for key, mask in zip(names, (q_mask, d_mask), strict=True) if mask is not None}


def assert_same(name: str, *args: Any, **kwargs: Any) -> Tensor:
    expected = their(name)(*args, **kwargs)
    actual = getattr(ours, name)(*args, **kwargs)
    assert actual.shape == expected.shape
    assert_close(actual, expected)
    return actual


@pytest.mark.parametrize("name", GROUPED + PAIRED + PLAIN)
def test_signature_and_name_are_theirs(name: str) -> None:
    mine, yours = (inspect.signature(function).parameters for function in (getattr(ours, name), their(name)))
    assert [(p.name, p.default, p.kind) for p in mine.values()] == [(p.name, p.default, p.kind) for p in yours.values()]
    bound = functools.partial(getattr(ours, name), chunk_elements=5)
    assert similarity_fct_name(bound) == similarity_fct_name(functools.partial(their(name), chunk_elements=5))


@pytest.mark.parametrize("name", GROUPED + PAIRED + PLAIN)
def test_scores_equal_theirs(name: str) -> None:
    q, d, q_mask, d_mask = inputs(name)
    for form in (Tensor.bool, Tensor.float, Tensor.numpy):
        for masks in ((None, None), (q_mask, None), (None, d_mask), (q_mask, d_mask)):
            if form is Tensor.numpy and name == "colbert_scores" and masks[1] is not None:
                continue  # theirs needs a tensor here
            assert_same(name, q, d, **masks_of(name, *(m if m is None else form(m) for m in masks)))
    for chunk_elements in (1, 150, 10**9):
        for length_normalize in (False, True):
            options = {"chunk_elements": chunk_elements, "length_normalize": length_normalize}
            assert_same(name, q, d, **masks_of(name, q_mask, d_mask), **options)
    q[1, 3:], d[1, ..., 4:, :], d[2, ..., :2, :] = 0.0, 0.0, 0.0  # rows of zeros are padding
    assert (assert_same(name, q, d) < 0).all()
    assert_same(name, q.numpy(), d.numpy())
    # Of sentence-transformers 6.0, the functions of groups fail with lists, so theirs get tensors here.
    expected = their(name)(q, d) if name in GROUPED else their(name)(list(q), list(d))
    assert_close(getattr(ours, name)(list(q), list(d)), expected)
    for dtype in (torch.float16, torch.bfloat16):
        # Theirs rounds every similarity to the dtype of the inputs, so it gets the rounded inputs in float32.
        low = getattr(ours, name)(q.to(dtype), d.to(dtype))
        assert low.dtype == torch.float32
        assert_close(low, their(name)(q.to(dtype).float(), d.to(dtype).float()))


@pytest.mark.parametrize("name", GROUPED + PAIRED + PLAIN)
def test_gradients_equal_theirs(name: str) -> None:
    q, d, q_mask, d_mask = inputs(name)
    q[0, 2], d[2, ..., 1, :] = 0.0, 0.0
    for masks in (masks_of(name, None, None), masks_of(name, q_mask, d_mask)):
        gradients = []
        for function in (getattr(ours, name), their(name)):
            sides = q.clone().requires_grad_(), d.clone().requires_grad_()
            scores = function(*sides, **masks)
            (scores * torch.arange(1.0, scores.numel() + 1).view(scores.shape)).sum().backward()
            gradients.append([side.grad for side in sides])
        for actual, expected in zip(*gradients, strict=True):
            assert_close(actual, expected)


@pytest.mark.parametrize("name", GROUPED + PAIRED + PLAIN)
def test_empty_document_is_logged_and_not_warned_of(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Their loggers write it once in a process, so the records of earlier tests are forgotten first."""
    q, d, q_mask, d_mask = inputs(name)
    d_mask[1] = False
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level("WARNING"):
        scores = [getattr(ours, name)(q, d, **masks_of(name, q_mask, d_mask)) for _ in range(2)]
    (record,) = caplog.records
    assert record.name == EMPTY.name and "keep_only_token_ids" in record.message and "skiplist_words" in record.message
    assert_close(scores[0], their(name)(q, d, **masks_of(name, q_mask, d_mask)))
    d.requires_grad_()
    getattr(ours, name)(q, d, **masks_of(name, q_mask, d_mask)).sum().backward()
    assert (d.grad[1] == 0).all() and d.grad.isfinite().all()


def test_the_core_still_warns_after_a_call_of_theirs() -> None:
    import colbert_fast as cf

    with pytest.raises(ValueError, match="same dim"):
        ours.maxsim(torch.ones(1, 2, 3), torch.ones(1, 2, 4))
    with pytest.warns(UserWarning, match="without a token"):
        cf.maxsim(torch.ones(1, 2, 3), [torch.ones(0, 3)])


def test_documents_without_groups() -> None:
    """What evaluators hand in: one query, and a list of documents of any lengths."""
    query, documents = torch.randn(4, DIM), [torch.randn(n, DIM) for n in (3, 1, 6)]
    assert_close(ours.colbert_scores([query], documents), util.maxsim([query], documents))
    assert_close(ours.mean_colbert_scores(query, documents), util.mean_maxsim([query], documents))
    groups = torch.randn(2, 3, 5, DIM)
    for form in (list, Tensor.numpy, Tensor.tolist, lambda embeddings: list(embeddings.numpy())):
        for name in ("colbert_scores", "colbert_kd_scores"):
            assert_close(getattr(ours, name)(groups[:, 0], form(groups)), their(name)(groups[:, 0], groups))
            mask = torch.rand(2, 3, 5) < 0.6
            mask[..., 2] = True
            found = getattr(ours, name)(groups[:, 0], form(groups), documents_mask=form(mask))
            assert_close(found, their(name)(groups[:, 0], groups, documents_mask=mask))


def test_what_does_not_fit_is_refused() -> None:
    q, d = torch.randn(2, 4, DIM), torch.randn(2, 3, 5, DIM)
    for name in ("colbert_scores", "colbert_kd_scores"):
        for mask in (torch.ones(2, 3, 6), torch.ones(2, 5), torch.ones(2, 3, 5, 1), torch.ones(3, 3, 5)):
            with pytest.raises(ValueError, match=r"b_mask must be \[2, 3, 5\]"):
                getattr(ours, name)(q, d, documents_mask=mask)
        with pytest.raises(ValueError, match="documents_embeddings must hold items of one shape"):
            getattr(ours, name)(q, [d[0], d[1, :2]])
        with pytest.raises(TypeError, match="documents_embeddings"):
            getattr(ours, name)(q, [[[["a"]]]])
    for documents in (d[0], [], list(d[0]), None, "texts"):
        with pytest.raises(ValueError, match=r"documents_embeddings must be \[B, n_ways, tokens, dim\]"):
            ours.colbert_kd_scores(q, documents)
    with pytest.raises(ValueError, match="got 2 and 1"):
        ours.colbert_kd_scores(q, d[:1])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_whole() -> None:
    torch._dynamo.reset()
    q, d, q_mask, d_mask = inputs("colbert_scores")
    for name in ("colbert_scores", "colbert_kd_scores"):
        compiled = torch.compile(getattr(ours, name), fullgraph=True, backend="eager")
        assert_close(compiled(q, d, q_mask, d_mask), getattr(ours, name)(q, d, q_mask, d_mask))


@pytest.fixture(scope="module")
def model(multi_vector: Path) -> sentence_transformers.MultiVectorEncoder:
    return sentence_transformers.MultiVectorEncoder(str(multi_vector), device="cpu")


def features(model: Any, *columns: list[str]) -> list[dict[str, Any]]:
    tasks = ["query", *["document"] * (len(columns) - 1)]
    return [{**model.preprocess(texts, task=task), "task": task} for texts, task in zip(columns, tasks, strict=True)]


@pytest.mark.parametrize(
    ("loss", "score", "labels"),
    [
        (losses.MultiVectorMultipleNegativesRankingLoss, "colbert_scores", None),
        (losses.CachedMultiVectorMultipleNegativesRankingLoss, "colbert_scores", None),
        (losses.MultiVectorDistillKLDivLoss, "colbert_kd_scores", [[3.0, 1.0], [2.0, 2.5], [0.0, 1.0], [4.0, 0.0]]),
        (losses.MultiVectorMarginMSELoss, "colbert_scores_pairwise", [1.0, -0.5, 2.0, 0.0]),
    ],
)
@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
def test_losses_and_their_gradients_equal_theirs(model: Any, loss: Any, score: str, labels: Any, mean: bool) -> None:
    name = f"mean_{score}" if mean else score
    found = []
    for function in (getattr(ours, name), their(name), functools.partial(getattr(ours, name), chunk_elements=500)):
        measure = loss(model, similarity_fct=function)
        model.zero_grad()
        value = measure(
            features(model, QUERIES, DOCUMENTS, DOCUMENTS[::-1]), None if labels is None else torch.tensor(labels)
        )
        value.backward()
        found.append((value.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        assert measure.get_config_dict()["similarity_fct"].startswith(name)
    for value, gradients in found[::2]:
        assert_close(value, found[1][0])
        largest = max(float(gradient.abs().max()) for gradient in found[1][1])
        assert largest > 0
        for actual, expected in zip(gradients, found[1][1], strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * largest)


def evaluators(own: bool, model: Any) -> dict[str, Any]:
    """Every evaluator that takes a function. With `own`, it takes ours."""
    names = [f"{i}" for i in range(4)]
    queries, corpus = dict(zip(names, QUERIES, strict=True)), dict(zip(names, DOCUMENTS, strict=True))
    samples = [{"query": q, "positive": [DOCUMENTS[0]], "negative": DOCUMENTS[2:]} for q in QUERIES[:2]]
    pairwise = {"similarity_fct": ours.colbert_scores_pairwise} if own else {}
    return {
        "retrieval": evaluation.MultiVectorInformationRetrievalEvaluator(
            queries,
            corpus,
            {name: {name} for name in names},
            write_csv=False,
            **({"score_functions": ours.score_functions(model)} if own else {}),
        ),
        "reranking": evaluation.MultiVectorRerankingEvaluator(
            samples, write_csv=False, **({"similarity_fct": ours.colbert_scores} if own else {})
        ),
        "distillation": evaluation.MultiVectorDistillationEvaluator(
            QUERIES, DOCUMENTS, [3.0, 1.0, 2.0, 0.5], write_csv=False, **pairwise
        ),
        "candidates": evaluation.MultiVectorDistillationEvaluator(
            QUERIES[:2], [DOCUMENTS, DOCUMENTS[::-1]], [[4.0, 3.0, 2.0, 1.0]] * 2, write_csv=False, **pairwise
        ),
        "triplets": evaluation.MultiVectorTripletEvaluator(QUERIES, DOCUMENTS, DOCUMENTS[::-1], write_csv=False),
    }


def test_evaluators_give_the_same_metrics(model: Any) -> None:
    expected = {name: run(model) for name, run in evaluators(False, model).items()}
    accelerated = ours.accelerate(copy.deepcopy(model))
    for own in (False, True):
        for name, run in evaluators(own, accelerated).items():
            assert run(accelerated) == pytest.approx(expected[name], rel=1e-5), name


def test_score_functions_follow_the_model(model: Any) -> None:
    q, d = torch.randn(2, 3, DIM), [torch.randn(4, DIM), torch.randn(2, DIM)]
    for kind in ("maxsim", "meanmaxsim"):
        twin = copy.deepcopy(model)
        twin.similarity_fn_name = kind
        for chunk_elements in (None, 10):
            ((name, function),) = ours.score_functions(twin, chunk_elements).items()
            assert name == kind
            assert_close(function(q, d), util.SimilarityFunction.to_similarity_fn(kind)(q, d))
    with pytest.raises(TypeError, match=r"must be a sentence_transformers\.MultiVectorEncoder; got str"):
        ours.score_functions("model")


class Own(sentence_transformers.MultiVectorEncoder):
    """A user's own encoder."""

    def greet(self) -> str:
        return "hello"


class Deaf(Own):
    def similarity(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(1, 1)


def assert_ours(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both methods give the library's scores without a call of its functions, whatever the name of the similarity."""
    q, d = [torch.randn(3, DIM), torch.randn(2, DIM)], [torch.randn(4, DIM), torch.randn(5, DIM)]
    for kind in ("maxsim", "meanmaxsim", None, util.SimilarityFunction.MAXSIM):
        model.similarity_fn_name = kind
        mean = "mean_" if kind == "meanmaxsim" else ""
        expected = getattr(util, f"{mean}maxsim")(q, d), getattr(util, f"{mean}maxsim_pairwise")(q, d)
        with monkeypatch.context() as patch:
            for name in ("_maxsim_score_documents", "_maxsim_score_pairs"):
                patch.delattr(f"sentence_transformers.util.similarity.{name}")
            assert_close(model.similarity(q, d, chunk_elements=30), expected[0])
            assert_close(model.similarity_pairwise(q, d), expected[1])
        assert similarity_fct_name(model.similarity) == f"{mean}maxsim"


def test_encoder_keeps_its_similarities(multi_vector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ours.MultiVectorEncoder(str(multi_vector), device="cpu", similarity_fn_name="meanmaxsim")
    assert model.similarity_fn_name == "meanmaxsim"
    model.save_pretrained(str(tmp_path), create_model_card=False)
    again = ours.MultiVectorEncoder(str(tmp_path), device="cpu")
    assert again.similarity_fn_name == "meanmaxsim"
    # The library reads the folder too, and gives the same embeddings.
    library = sentence_transformers.MultiVectorEncoder(str(tmp_path), device="cpu")
    assert library.similarity_fn_name == "meanmaxsim"
    for actual, expected in zip(again.encode_query(QUERIES), library.encode_query(QUERIES), strict=True):
        assert_close(torch.as_tensor(actual), torch.as_tensor(expected))
    for encoder in (model, again, ours.MultiVectorEncoder(modules=list(library), device="cpu")):
        assert_ours(encoder, monkeypatch)


@pytest.mark.parametrize("kind", [sentence_transformers.MultiVectorEncoder, Own])
def test_accelerate_and_restore(model: Any, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = kind(modules=list(model), device="cpu")
    weights = dict(encoder.named_parameters())
    assert ours.accelerate(encoder) is encoder
    accelerated = type(encoder)
    assert ours.accelerate(encoder) is encoder and type(encoder) is accelerated
    assert isinstance(encoder, kind) and isinstance(encoder, ours.MultiVectorEncoder)
    assert type(encoder).__name__ == kind.__name__
    # The processes of a pool get the class too.
    assert pickle.loads(pickle.dumps(accelerated)) is accelerated
    for twin in (encoder, copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert type(twin) is accelerated
        assert twin.state_dict().keys() == encoder.state_dict().keys()
        assert_ours(twin, monkeypatch)
    assert ours.restore(encoder) is encoder and type(encoder) is kind
    assert ours.restore(encoder) is encoder
    assert all(weights[name] is weight for name, weight in encoder.named_parameters())
    assert type(copy.deepcopy(encoder)) is kind


def test_what_cannot_be_accelerated(model: Any) -> None:
    with pytest.raises(TypeError, match="Deaf defines similarity itself"):
        ours.accelerate(Deaf(modules=list(model), device="cpu"))
    for other in (torch.nn.Linear(1, 1), None):
        for function in (ours.accelerate, ours.restore):
            with pytest.raises(TypeError, match=r"must be a sentence_transformers\.MultiVectorEncoder; got"):
                function(other)

    class Derived(ours.MultiVectorEncoder):
        pass

    with pytest.raises(TypeError, match="Derived is a subclass that was defined so"):
        ours.restore(Derived(modules=list(model), device="cpu"))
