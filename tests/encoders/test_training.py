"""Training: the losses and gradients of neural-cherche 1.4.3, and what goes on around one step."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DATA, DOCUMENTS, METADATA, QUERIES, close
from torch import nn

import colbert_fast as cf
from colbert_fast import losses, train, utils
from colbert_fast.models import ColBERT

NEGATIVES = ["", "of the of the", "berlin " * 30, "paris in france"]
TRIPLES = (QUERIES, DOCUMENTS, NEGATIVES)


def einsum_scores(q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """neural-cherche's score, over padded rows."""
    return torch.einsum("bsh,bth->bst", q, d).max(2).values.sum(1)


def padded_loss(model: ColBERT, in_batch_negatives: bool, **options: Any) -> torch.Tensor:
    """neural-cherche's loss, with every text padded to the maximum length."""
    q, p, n = (model(texts, query_mode=i == 0, **options)["embeddings"] for i, texts in enumerate(map(list, TRIPLES)))
    columns = [einsum_scores(q, p), einsum_scores(q, n)]
    if in_batch_negatives:
        columns.append(einsum_scores(q, p.roll(1, 0)))
    return nn.functional.cross_entropy(torch.stack(columns, 1), torch.zeros(len(q), dtype=torch.int64))


class Kept(torch.optim.Optimizer):
    """An optimizer that counts its steps, and keeps the gradients of the last one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {})
        self.named = dict(model.named_parameters())
        self.steps = 0
        self.gradients: dict[str, torch.Tensor] = {}

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        self.gradients = {name: p.grad.clone() for name, p in self.named.items() if p.grad is not None}


@pytest.fixture(scope="module")
def model(neural_cherche: Path) -> ColBERT:
    return ColBERT(neural_cherche, device="cpu")


def test_the_numbers_equal_the_recorded_ones(minilm_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps; the optimizer steps after the second."""
    monkeypatch.syspath_prepend(str(DATA))
    recorder = importlib.import_module("neural_cherche_training")
    recorded = json.loads((DATA / "neural_cherche_training.json").read_text(encoding="utf-8"))
    for flag in (False, True):
        ours = recorder.trained("colbert_fast", minilm_checkpoint, flag)
        theirs = recorded["in_batch_negatives"][str(flag)]
        assert theirs[0]["loss"] > 2 * theirs[-1]["loss"]
        for mine, expected in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(expected, rel=1e-5)


class TestTrainColbert:
    @pytest.mark.parametrize("in_batch_negatives", [False, True])
    @pytest.mark.parametrize("size", [2, 16])
    def test_loss_and_gradients_equal_the_padded_ones(
        self, make_neural_cherche: Callable[..., Path], size: int, in_batch_negatives: bool
    ) -> None:
        """With two dimensions many similarities are negative, so that the pad rows of short documents win."""
        model = ColBERT(make_neural_cherche(size), device="cpu")
        expected = padded_loss(model, in_batch_negatives)
        expected.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        optimizer = Kept(model)
        loss = train.train_colbert(model, optimizer, *TRIPLES, in_batch_negatives=in_batch_negatives)["loss"]
        close(loss, expected)
        assert loss.grad_fn is not None
        assert optimizer.gradients.keys() == gradients.keys()
        scale = max(float(gradient.abs().max()) for gradient in gradients.values() if gradient is not None)
        for name, gradient in optimizer.gradients.items():
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-5, atol=1e-5 * scale, msg=name)
        assert all(p.grad is None for p in model.parameters())

    @pytest.mark.parametrize("padding", ["longest", True])
    def test_padding_to_the_longest_text(self, model: ColBERT, padding: bool | str) -> None:
        loss = train.train_colbert(model, Kept(model), *TRIPLES, padding=padding)["loss"]
        close(loss, padded_loss(model, False, padding=padding))

    def test_padding_never_scores_with_the_other_kinds(self, pylate: Path) -> None:
        model = ColBERT(pylate, device="cpu")
        scores = [model.scores(QUERIES, texts, tqdm_bar=False) for texts in (DOCUMENTS, NEGATIVES)]
        expected = losses.Ranking()(*scores)
        close(train.train_colbert(model, Kept(model), *TRIPLES)["loss"].detach(), expected)

    def test_a_module_around_the_encoder(self, model: ColBERT) -> None:
        class Around(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, texts: list[str], query_mode: bool) -> dict[str, torch.Tensor]:
                found: dict[str, torch.Tensor] = self.inner(texts, query_mode=query_mode)
                return found

        class Mine(ColBERT):
            def forward(self, texts: Any, query_mode: bool = True, **kwargs: Any) -> dict[str, Any]:
                assert not kwargs
                return super().forward(texts, query_mode, packed=False)

        around = Around(model)
        expected = train.train_colbert(model, Kept(model), *TRIPLES)["loss"]
        close(train.train_colbert(around, Kept(around), *TRIPLES)["loss"], expected)
        mine = Mine(model.model_folder, device="cpu")
        close(train.train_colbert(mine, Kept(mine), *TRIPLES)["loss"], expected)

    def test_the_optimizer_steps_at_the_last_accumulated_step(self, model: ColBERT) -> None:
        optimizer = Kept(model)
        for step in range(5):
            train.train_colbert(model, optimizer, *TRIPLES, step=step, gradient_accumulation_steps=3)
            assert optimizer.steps == (step + 1) // 3
        accumulated = optimizer.gradients["encoder.1.linear.weight"]
        model.zero_grad(set_to_none=True)
        train.train_colbert(model, optimizer, *TRIPLES)
        close(accumulated, optimizer.gradients["encoder.1.linear.weight"])

    def test_one_query_stands_for_all(self, model: ColBERT) -> None:
        one = train.train_colbert(model, Kept(model), ["berlin"], DOCUMENTS, NEGATIVES)["loss"]
        close(one, train.train_colbert(model, Kept(model), ["berlin"] * 4, DOCUMENTS, NEGATIVES)["loss"])

    def test_a_generator_of_texts(self, model: ColBERT) -> None:
        lists = [iter(texts) for texts in TRIPLES]
        close(
            train.train_colbert(model, Kept(model), *lists)["loss"],
            train.train_colbert(model, Kept(model), *TRIPLES)["loss"],
        )

    @pytest.mark.filterwarnings("ignore:.*its own negative")
    def test_one_triple(self, model: ColBERT) -> None:
        triple = [[texts[0]] for texts in TRIPLES]
        assert train.train_colbert(model, Kept(model), *triple)["loss"] > 0
        with_itself = train.train_colbert(model, Kept(model), *triple, in_batch_negatives=True)["loss"]
        assert with_itself > math.log(2)

    def test_one_triple_has_no_other_positive(self, model: ColBERT) -> None:
        with pytest.warns(UserWarning, match="its own negative") as caught:
            train.train_colbert(model, Kept(model), ["a"], ["b"], ["c"], in_batch_negatives=True)
        assert caught[0].filename == __file__

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"anchor": []}, ValueError, "anchor, positive and negative must hold the same number.*got 0, 4 and 4"),
            ({"anchor": [], "positive": [], "negative": []}, ValueError, "at least one.*got 0, 0 and 0"),
            ({"positive": DOCUMENTS[:3]}, ValueError, "got 4, 3 and 4"),
            ({"anchor": QUERIES[:2]}, ValueError, "got 2, 4 and 4"),
            ({"positive": "paris"}, TypeError, "positive must be a list of str; got one str"),
            ({"negative": [None] * 4}, TypeError, r"negative\[0\] is NoneType"),
            ({"anchor": None}, TypeError, "anchor must be a list of str"),
            ({"in_batch_negatives": "yes"}, TypeError, "in_batch_negatives must be True or False"),
            ({"step": -1}, ValueError, "step must be 0 or more"),
            ({"step": 1.0}, TypeError, "step must be an int"),
            ({"gradient_accumulation_steps": 0}, ValueError, "gradient_accumulation_steps must be 1 or more"),
            ({"optimizer": None}, TypeError, "optimizer must be an optimizer of torch; got NoneType"),
            ({"max_len": 5}, TypeError, r"unknown options \['max_len'\]"),
            ({"model": None}, TypeError, "model must be a models.ColBERT or a module around one; got NoneType"),
            ({"model": nn.Sequential()}, TypeError, "got Sequential"),
        ],
    )
    def test_errors(self, model: ColBERT, change: dict[str, Any], error: type[Exception], message: str) -> None:
        given = {
            "model": model,
            "optimizer": Kept(model),
            "anchor": QUERIES,
            "positive": DOCUMENTS,
            "negative": NEGATIVES,
        }
        with pytest.raises(error, match=message):
            train.train_colbert(**{**given, **change})
        assert all(p.grad is None for p in model.parameters())


class TestAWholeTraining:
    def test_it_learns_is_saved_in_the_middle_and_goes_on(self, neural_cherche: Path, tmp_path: Path) -> None:
        model = ColBERT(neural_cherche, device="cpu")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        found = []
        for step in range(12):
            found.append(train.train_colbert(model, optimizer, *TRIPLES, step=step, gradient_accumulation_steps=2))
            if step == 5:
                state = deepcopy(optimizer.state_dict())
                middle = model.save_pretrained(tmp_path).scores(QUERIES, DOCUMENTS, tqdm_bar=False)
        assert found[-1]["loss"] < found[0]["loss"] / 2
        again = ColBERT(tmp_path, device="cpu")
        close(again.scores(QUERIES, DOCUMENTS, tqdm_bar=False), middle)
        optimizer = torch.optim.AdamW(again.parameters(), lr=1e-3)
        optimizer.load_state_dict(state)
        for step in range(6, 12):
            loss = train.train_colbert(again, optimizer, *TRIPLES, step=step, gradient_accumulation_steps=2)["loss"]
            torch.testing.assert_close(loss, found[step]["loss"], rtol=1e-5, atol=1e-5)

    def test_training_mode_is_the_callers_choice(self, neural_cherche: Path) -> None:
        model = ColBERT(neural_cherche, device="cpu")
        for training in (False, True):
            model.train(training)
            a, b = (train.train_colbert(model, Kept(model), *TRIPLES)["loss"] for _ in range(2))
            assert bool(a == b) == (not training)
            assert model.training == training

    def test_in_autocast(self, neural_cherche: Path) -> None:
        model = ColBERT(neural_cherche, device="cpu")
        expected = train.train_colbert(model, Kept(model), *TRIPLES)["loss"]
        optimizer = Kept(model)
        with torch.autocast("cpu", torch.bfloat16):
            loss = train.train_colbert(model, optimizer, *TRIPLES)["loss"]
            assert model(["berlin"])["embeddings"].dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.05)
        assert {gradient.dtype for gradient in optimizer.gradients.values()} == {torch.float32}
        assert all(bool(gradient.isfinite().all()) for gradient in optimizer.gradients.values())

    def test_texts_without_tokens_in_autocast(self, make_neural_cherche: Callable[..., Path]) -> None:
        bare = {"query_prefix": "", "document_prefix": "", "add_special_tokens": False}
        model = ColBERT(make_neural_cherche(metadata={**METADATA, **bare}), device="cpu")
        with torch.autocast("cpu", torch.bfloat16):
            loss = train.train_colbert(model, Kept(model), *TRIPLES)["loss"]
            scores = model.scores(["berlin", "", "a"], ["", "b", "c"], tqdm_bar=False)
        assert bool(loss.isfinite())
        assert scores[:2].tolist() == [0, 0]

    def test_frozen_layers_do_not_change(self, neural_cherche: Path) -> None:
        model = utils.freeze_layers(ColBERT(neural_cherche, device="cpu"), n_layers=1)
        before = deepcopy(model.state_dict())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        train.train_colbert(model, optimizer, *TRIPLES)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        layers = {name.split(".layer.")[1][0] if ".layer." in name else name for name in changed}
        assert layers == {"1", "linear.weight"}


class TestPackedForward:
    def test_it_holds_the_rows_that_score(self, model: ColBERT) -> None:
        packed = model(DOCUMENTS, query_mode=False, packed=True)["embeddings"]
        assert isinstance(packed, cf.PackedTokens) and packed.tokens.requires_grad
        expected = model.encode_documents(DOCUMENTS)
        assert packed.lengths.tolist() == expected.lengths.tolist()
        close(packed.tokens.detach(), expected.tokens)
        padded = model(DOCUMENTS, query_mode=False)["embeddings"]
        q = model(QUERIES, packed=True)["embeddings"]
        close(cf.maxsim_pairwise(q, packed), einsum_scores(model(QUERIES)["embeddings"], padded))

    def test_no_text(self, model: ColBERT) -> None:
        assert len(model([], packed=True)["embeddings"]) == 0

    @pytest.mark.parametrize("packed", [None, 1, "yes"])
    def test_what_is_no_bool(self, model: ColBERT, packed: Any) -> None:
        with pytest.raises(TypeError, match="packed must be True or False"):
            model(QUERIES, packed=packed)


class TestColbertScores:
    @pytest.mark.parametrize("in_batch_negatives", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_numbers_and_gradients(self, dtype: torch.dtype, in_batch_negatives: bool) -> None:
        """Padded documents with rows of zeros, whose other similarities are negative for some query tokens."""
        shapes = {"anchor": (3, 4, 2), "positive": (3, 5, 2), "negative": (3, 7, 2)}
        given = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
        given["positive"][0, 1:] = 0
        given["negative"][:, 5:] = 0
        given["anchor"][1, 2:] = 0
        mine = {f"{name}_embeddings": value.to(dtype).requires_grad_() for name, value in given.items()}
        exact = {name: value.detach().double().requires_grad_() for name, value in mine.items()}
        found = utils.colbert_scores(**mine, in_batch_negatives=in_batch_negatives)
        q, p, n = exact.values()
        negatives = einsum_scores(q, n)
        if in_batch_negatives:
            negatives = torch.stack([negatives, einsum_scores(q, p.roll(1, 0))], dim=1)
        expected = {"positive_scores": einsum_scores(q, p), "negative_scores": negatives}
        assert found.keys() == expected.keys()
        for name, scores in found.items():
            assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch.testing.assert_close(scores.double(), expected[name], rtol=1e-5, atol=1e-5)
        losses.Ranking()(**found).backward()
        losses.Ranking()(**expected).backward()
        for name, value in mine.items():
            assert value.grad is not None and value.grad.dtype == dtype
            expected_grad = exact[name].grad
            if name == "anchor_embeddings":
                expected_grad[1, 2:] = 0
            tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5  # a gradient is rounded to the dtype of its argument
            torch.testing.assert_close(value.grad.double(), expected_grad, rtol=tolerance, atol=tolerance)

    def test_one_query(self) -> None:
        q, p, n = torch.randn(1, 4, 8), torch.randn(3, 5, 8), torch.randn(3, 6, 8)
        for flag in (False, True):
            one, many = utils.colbert_scores(q, p, n, flag), utils.colbert_scores(q.expand(3, 4, 8), p, n, flag)
            assert all(torch.equal(one[name], many[name]) for name in many)

    @pytest.mark.parametrize(
        ("shapes", "error", "message"),
        [
            ([(2, 4, 8), (3, 4, 8), (3, 4, 8)], ValueError, "anchor_embeddings, positive_embeddings and.*2, 3 and 3"),
            ([(3, 4, 8), (3, 4, 8), (2, 4, 8)], ValueError, "got 3, 3 and 2"),
            ([(0, 4, 8), (0, 4, 8), (0, 4, 8)], ValueError, "at least one"),
            ([(3, 4, 8), (3, 4, 8), (3, 4, 9)], ValueError, r"same dim.*\(a is anchor_embeddings, b is negative_emb"),
        ],
    )
    def test_shapes_that_do_not_fit(self, shapes: list[Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            utils.colbert_scores(*(torch.randn(shape) for shape in shapes))

    def test_what_is_no_embedding(self) -> None:
        q = torch.randn(1, 4, 8)
        with pytest.raises(TypeError, match="negative_embeddings must be"):
            utils.colbert_scores(q, q, None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="in_batch_negatives must be"):
            utils.colbert_scores(q, q, q, in_batch_negatives=1)  # type: ignore[arg-type]


class TestRanking:
    def test_numbers(self) -> None:
        p, n = torch.randn(4), torch.randn(4, 3)
        expected = -(p.exp() / (p.exp() + n.exp().sum(1))).log().mean()
        torch.testing.assert_close(losses.Ranking()(positive_scores=p, negative_scores=n), expected)
        torch.testing.assert_close(losses.Ranking()(p, n[:, 0]), losses.Ranking()(p, n[:, :1]))

    @pytest.mark.parametrize(
        ("p", "n", "error", "message"),
        [
            (torch.ones(2), torch.ones(3), ValueError, "got 2 and 3 rows"),
            (torch.ones(0), torch.ones(0), ValueError, "positive_scores must be .n., with n at least 1"),
            (torch.ones(2, 1), torch.ones(2), ValueError, r"positive_scores must be \[n\], .*got \[2, 1\]"),
            (torch.ones(2), torch.ones(2, 1, 1), ValueError, r"negative_scores must be \[n\] or \[n, m\]"),
            (torch.ones(2), torch.ones(()), ValueError, "negative_scores must be"),
            (torch.ones(2), torch.ones(2, 0), ValueError, r"with n and m at least 1; got \[2, 0\]"),
            ([1.0], torch.ones(1), TypeError, "positive_scores must be a floating-point tensor; got list"),
            (torch.ones(1), torch.ones(1, dtype=torch.int64), TypeError, "got torch.int64"),
        ],
    )
    def test_errors(self, p: Any, n: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            losses.Ranking()(p, n)


class TestFreezeLayers:
    @pytest.mark.parametrize("n_layers", [0, 1, 2, 5])
    def test_what_can_learn(self, neural_cherche: Path, n_layers: int) -> None:
        model = ColBERT(neural_cherche, device="cpu")
        assert utils.freeze_layers(model, n_layers) is model
        free = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        layers = {name.split(".layer.")[1][0] for name in free if ".layer." in name}
        assert layers == {str(number) for number in range(2)[max(0, 2 - n_layers) :]}
        assert [name for name in free if ".layer." not in name] == ["encoder.1.linear.weight"]

    def test_a_transformer_alone(self, neural_cherche: Path) -> None:
        model = ColBERT(neural_cherche, device="cpu")
        assert utils.freeze_layers(model.model, 1) is model.model
        same = ColBERT(neural_cherche, device="cpu", freeze_layers_except_last_n=1)
        for (name, a), (_, b) in zip(model.named_parameters(), same.named_parameters(), strict=True):
            assert a.requires_grad == b.requires_grad, name

    def test_what_was_frozen_stays_frozen(self, neural_cherche: Path) -> None:
        model = utils.freeze_layers(ColBERT(neural_cherche, device="cpu"), 0)
        utils.freeze_layers(model, 2)
        assert [name for name, p in model.named_parameters() if p.requires_grad] == ["encoder.1.linear.weight"]

    def test_errors(self, neural_cherche: Path) -> None:
        with pytest.raises(TypeError, match="model must be a ColBERT or a transformer; got str"):
            utils.freeze_layers("model")  # type: ignore[type-var]
        with pytest.raises(ValueError, match="needs a transformer with a list of layers; got Linear"):
            utils.freeze_layers(nn.Linear(2, 2))
        for value, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
            with pytest.raises(error, match="n_layers must be"):
                utils.freeze_layers(nn.Linear(2, 2), value)  # type: ignore[arg-type]
