"""models.ColBERT is an encoder and a torch module."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DOCUMENTS, HIDDEN, QUERIES, SIZE, close

from colbert_fast.models import ColBERT, colbert, embedding, tokens


@pytest.fixture
def encoder(neural_cherche: Path) -> ColBERT:
    return ColBERT(neural_cherche, device="cpu")


def scores_of(encoder: ColBERT, queries: Any = QUERIES, documents: Any = DOCUMENTS, **kwargs: Any) -> torch.Tensor:
    return encoder.scores(queries, documents, tqdm_bar=False, **kwargs)


def count_texts(encoder: ColBERT) -> list[int]:
    """Return a list to which each pass through the transformer from now on adds its number of texts."""
    passes: list[int] = []
    encoder.model.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return passes


class TestEmbeddings:
    def test_rows_are_unit_vectors_then_zeros(self, encoder: ColBERT) -> None:
        embeddings = encoder(["berlin", "the capital of france"])["embeddings"]
        assert embeddings.shape == (2, 12, SIZE)
        norms = embeddings.norm(dim=2)
        # [CLS] [ q ] berlin [SEP]
        assert norms[0].round(decimals=5).tolist() == [1.0] * 6 + [0.0] * 6

    def test_documents_have_their_own_length(self, encoder: ColBERT) -> None:
        assert encoder(DOCUMENTS, query_mode=False)["embeddings"].shape == (4, 20, SIZE)

    def test_no_texts_give_no_embeddings(self, encoder: ColBERT) -> None:
        assert encoder([])["embeddings"].shape == (0, 12, SIZE)
        assert encoder([], padding=True)["embeddings"].shape == (0, 0, SIZE)

    def test_order_and_company_change_nothing(self, encoder: ColBERT) -> None:
        together = encoder.encode(DOCUMENTS, query_mode=False)["embeddings"]
        alone = [encoder.encode([text], query_mode=False)["embeddings"] for text in reversed(DOCUMENTS)]
        close(together.flip(0), torch.cat(alone))

    @pytest.mark.parametrize(("chunk", "most"), [(1, 1024), (3, 1), (2, 30), (1024, 25)])
    def test_batches_change_nothing(
        self, encoder: ColBERT, monkeypatch: pytest.MonkeyPatch, chunk: int, most: int
    ) -> None:
        expected = encoder.encode(DOCUMENTS * 3, query_mode=False)["embeddings"]
        monkeypatch.setattr(tokens, "_CHUNK_TEXTS", chunk)
        monkeypatch.setattr(embedding, "_CPU_BATCH_TOKENS", most)
        close(encoder.encode(DOCUMENTS * 3, query_mode=False)["embeddings"], expected)

    def test_a_batch_keeps_its_token_budget(self, encoder: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedding, "_CPU_BATCH_TOKENS", 40)
        shapes: list[tuple[int, ...]] = []
        encoder.model.embeddings.register_forward_pre_hook(
            lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
        )
        encoder.encode(["berlin"] * 20 + ["paris " * n for n in range(12)], query_mode=False)
        assert sum(shape[0] for shape in shapes) == 32
        assert all(shape.numel() <= 40 for shape in shapes)

    def test_forward_records_gradients_and_encode_does_not(self, encoder: ColBERT) -> None:
        assert encoder(QUERIES)["embeddings"].requires_grad
        encoded = encoder.encode(QUERIES)["embeddings"]
        assert not encoded.requires_grad
        # Autograd would refuse an inference tensor.
        assert not encoded.is_inference()

    def test_encode_is_forward(self, encoder: ColBERT) -> None:
        assert torch.equal(encoder.encode(QUERIES)["embeddings"], encoder(QUERIES)["embeddings"])

    def test_options_of_one_call(self, encoder: ColBERT) -> None:
        assert encoder.encode(["berlin"], add_special_tokens=False, padding=True)["embeddings"].shape[1] == 4
        assert encoder.encode(["a " * 50], max_length=9, padding="longest")["embeddings"].shape[1] == 9
        assert encoder.encode(["a " * 50], truncation=False)["embeddings"].shape[1] == 55
        assert encoder.encode(["berlin"])["embeddings"].shape[1] == 12

    def test_attributes_set_later_are_heard(self, encoder: ColBERT) -> None:
        encoder.query_prefix, encoder.max_length_query = "", 5
        embeddings = encoder.encode(["berlin"])["embeddings"]
        assert (embeddings.norm(dim=2) > 0.5).tolist() == [[True, True, True, False, False]]

    def test_a_text_may_have_no_token(self, encoder: ColBERT) -> None:
        encoder.query_prefix = encoder.document_prefix = ""
        embeddings = encoder.encode(["", "berlin", ""], add_special_tokens=False)["embeddings"]
        assert embeddings.any(2).sum(1).tolist() == [0, 1, 0]
        assert not encoder.encode([""], add_special_tokens=False)["embeddings"].any()
        assert scores_of(encoder, ["", "berlin"], ["berlin", ""], add_special_tokens=False).tolist() == [0.0, 0.0]

    def test_bfloat16_weights_when_asked(self, encoder: ColBERT, neural_cherche: Path) -> None:
        half = ColBERT(neural_cherche, device="cpu", model_kwargs={"dtype": torch.bfloat16})
        assert half(QUERIES)["embeddings"].dtype == torch.bfloat16
        scores = scores_of(half)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, scores_of(encoder), rtol=0.05, atol=0.1)

    def test_packed_documents_end_in_a_zero_row_unless_full(self, encoder: ColBERT) -> None:
        padded = encoder.encode(DOCUMENTS, query_mode=False)["embeddings"]
        packed = encoder.encode_documents(DOCUMENTS)
        real = padded.any(2).sum(1)
        assert real[2] == 20
        for i, rows in enumerate(packed):
            assert len(rows) == min(int(real[i]) + 1, 20)
            close(rows, padded[i, : len(rows)])

    def test_packed_queries_are_their_tokens(self, encoder: ColBERT) -> None:
        packed = encoder.encode_queries(QUERIES)
        assert packed.lengths.tolist() == encoder.encode(QUERIES)["embeddings"].any(2).sum(1).tolist()
        assert not packed.tokens.requires_grad


class TestScores:
    def test_scores_are_the_padded_maxsim(self, encoder: ColBERT) -> None:
        queries, documents = QUERIES * 4, [text for text in DOCUMENTS for _ in QUERIES]
        q = encoder.encode(queries)["embeddings"]
        d = encoder.encode(documents, query_mode=False)["embeddings"]
        scores = scores_of(encoder, queries, documents)
        assert scores.dtype == torch.float32
        close(scores, torch.einsum("bsh,bth->bst", q, d).max(2).values.sum(1))

    @pytest.mark.parametrize("batch_size", [1, 3, 1000])
    def test_batch_size_changes_nothing(self, encoder: ColBERT, batch_size: int) -> None:
        assert torch.equal(scores_of(encoder, batch_size=batch_size), scores_of(encoder))

    def test_one_text_meets_every_other(self, encoder: ColBERT) -> None:
        one = scores_of(encoder, QUERIES[:1], DOCUMENTS)
        close(one, scores_of(encoder, QUERIES[:1] * 4, DOCUMENTS))
        close(scores_of(encoder, QUERIES, DOCUMENTS[:1]), scores_of(encoder, QUERIES, DOCUMENTS[:1] * 4))

    def test_equal_texts_are_encoded_once(self, encoder: ColBERT) -> None:
        passes = count_texts(encoder)
        scores_of(encoder, QUERIES * 5, DOCUMENTS[:1] * 20)
        assert sum(passes) == len(QUERIES) + 1

    @pytest.mark.parametrize("held", [1, 1000, 5000])
    def test_windows_change_nothing(self, encoder: ColBERT, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
        queries, documents = QUERIES * 4, [text for text in DOCUMENTS for _ in QUERIES]
        expected = scores_of(encoder, queries, documents)
        monkeypatch.setattr(colbert, "_HELD_BYTES", held)
        close(scores_of(encoder, queries, documents), expected)

    def test_no_pairs_give_no_scores(self, encoder: ColBERT) -> None:
        for queries, documents in (([], []), (["berlin"], []), ([], ["berlin"])):
            scores = scores_of(encoder, queries, documents)
            assert scores.shape == (0,)
            assert scores.dtype == torch.float32

    @pytest.mark.parametrize(("nq", "nd"), [(2, 3), (3, 2), (0, 2), (2, 0)])
    def test_lists_that_do_not_pair_up_are_refused(self, encoder: ColBERT, nq: int, nd: int) -> None:
        with pytest.raises(ValueError, match=f"got {nq} queries and {nd} documents"):
            scores_of(encoder, ["a"] * nq, ["b"] * nd)

    def test_tuples_and_generators_are_lists(self, encoder: ColBERT) -> None:
        close(scores_of(encoder, tuple(QUERIES), (text for text in DOCUMENTS)), scores_of(encoder))

    @pytest.mark.parametrize("shown", [True, False])
    def test_progress_bar(self, encoder: ColBERT, shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
        encoder.scores(QUERIES, DOCUMENTS, tqdm_bar=shown)
        assert ("Computing scores." in capsys.readouterr().err) == shown


class TestTraining:
    def test_a_new_encoder_is_in_eval_mode_and_scores_without_graph(self, encoder: ColBERT) -> None:
        assert not any(module.training for module in encoder.modules())
        assert not scores_of(encoder).requires_grad

    def test_scores_are_differentiable_in_training_mode(self, encoder: ColBERT) -> None:
        encoder.train()
        scores_of(encoder).sum().backward()
        assert encoder.linear is not None
        assert encoder.linear.weight.grad is not None
        assert encoder.linear.weight.grad.abs().sum() > 0
        assert encoder.model.embeddings.word_embeddings.weight.grad.abs().sum() > 0
        with torch.no_grad():
            assert not scores_of(encoder).requires_grad

    def test_gradients_are_those_of_the_padded_maxsim(self, encoder: ColBERT) -> None:
        assert encoder.linear is not None
        encoder.train()
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for layer in encoder.model.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        ours = torch.autograd.grad(scores_of(encoder).sum(), encoder.linear.weight)[0]
        q, d = encoder(QUERIES)["embeddings"], encoder(DOCUMENTS, query_mode=False)["embeddings"]
        dense = torch.einsum("bsh,bth->bst", q, d).max(2).values.sum()
        expected = torch.autograd.grad(dense, encoder.linear.weight)[0]
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)

    def test_dropout_is_active_in_training_mode(self, encoder: ColBERT) -> None:
        expected = scores_of(encoder)
        encoder.train()
        assert not torch.allclose(scores_of(encoder), expected, rtol=1e-3)
        encoder.eval()
        close(scores_of(encoder), expected)

    @pytest.mark.parametrize(("last_n", "layers"), [(0, []), (1, ["1"]), (5, ["0", "1"])])
    def test_freezing_leaves_the_last_layers(self, neural_cherche: Path, last_n: int, layers: list[str]) -> None:
        encoder = ColBERT(neural_cherche, device="cpu", freeze_layers_except_last_n=last_n)
        names = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        assert sorted({name.split("layer.")[1].split(".")[0] for name in names if "layer." in name}) == layers
        assert [name for name in names if "layer." not in name] == ["encoder.1.linear.weight"]


class TestModule:
    # Before 2.6 torch warns when pickle loads a tensor.
    @pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")
    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder))])
    def test_copies_score_alike_and_apart(self, encoder: ColBERT, clone: Callable[[ColBERT], ColBERT]) -> None:
        expected = scores_of(encoder)
        twin = clone(encoder)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.zero_()
        assert torch.equal(scores_of(twin), expected)

    def test_to_moves_and_casts(self, encoder: ColBERT) -> None:
        assert encoder.device == "cpu"
        assert encoder.to(torch.float64)(QUERIES)["embeddings"].dtype == torch.float64
        assert encoder.to("meta").device == "meta"

    def test_state_dict_has_the_names_of_neural_cherche(self, encoder: ColBERT) -> None:
        names = encoder.state_dict().keys()
        assert "linear.weight" in names
        assert "model.bert.encoder.layer.0.output.dense.weight" in names
        assert all(name.startswith(("model.bert.", "linear.")) for name in names)
        nested = torch.nn.ModuleDict({"inner": encoder}).state_dict()
        assert list(nested) == [f"inner.{name}" for name in names]

    def test_state_dict_returns(self, encoder: ColBERT) -> None:
        twin = copy.deepcopy(encoder)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        torch.nn.ModuleDict({"inner": twin}).load_state_dict(torch.nn.ModuleDict({"inner": encoder}).state_dict())
        assert torch.equal(scores_of(twin), scores_of(encoder))

    def test_a_state_dict_of_neural_cherche_loads(self, encoder: ColBERT, neural_cherche: Path) -> None:
        """neural-cherche's transformer is a masked-language model. An encoder does not need the head of this model."""
        from transformers import BertForMaskedLM

        theirs = torch.nn.Module()
        theirs.model = BertForMaskedLM.from_pretrained(neural_cherche)
        theirs.linear = torch.nn.Linear(HIDDEN, SIZE, bias=False)
        with torch.no_grad():
            theirs.linear.weight.copy_(encoder.state_dict()["linear.weight"])
        expected = scores_of(encoder)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.zero_()
        encoder.load_state_dict(theirs.state_dict())
        assert torch.equal(scores_of(encoder), expected)
        assert theirs.load_state_dict(encoder.state_dict(), strict=False).unexpected_keys == []

    def test_a_state_dict_of_something_else_is_refused(self, encoder: ColBERT) -> None:
        state = encoder.state_dict()
        state.pop("linear.weight")
        state["elsewhere"] = torch.zeros(1)
        with pytest.raises(RuntimeError, match=r"elsewhere"):
            encoder.load_state_dict(state)

    def test_importing_the_package_does_not_import_transformers(self) -> None:
        code = "import sys, colbert_fast.models as m; assert 'transformers' not in sys.modules; dir(m), m.ColBERT"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestErrors:
    @pytest.mark.parametrize(
        "texts",
        [
            "berlin",
            b"berlin",
            None,
            3,
            [None],
            ["a", 3],
            [["a"]],
            {"id": 1}.values(),
            {"a": "b"},
            {"a"},
            frozenset("a"),
        ],
    )
    def test_texts_must_be_a_list_of_str(self, encoder: ColBERT, texts: Any) -> None:
        with pytest.raises(TypeError, match="texts must be a list of str"):
            encoder(texts)
        with pytest.raises(TypeError, match="queries must be a list of str"):
            scores_of(encoder, texts, DOCUMENTS)
        with pytest.raises(TypeError, match="documents must be a list of str"):
            scores_of(encoder, QUERIES, texts)

    def test_options_must_exist(self, encoder: ColBERT) -> None:
        with pytest.raises(TypeError, match=r"unknown options \['pading'\]; valid ones are"):
            encoder(QUERIES, pading=True)
        with pytest.raises(ValueError, match="padding must be"):
            encoder(QUERIES, padding="right")
        with pytest.raises(ValueError, match="max_length must be 1 or more; got 0"):
            encoder(QUERIES, max_length=0)

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_batch_size_must_be_positive(self, encoder: ColBERT, batch_size: int) -> None:
        with pytest.raises(ValueError, match=f"batch_size must be 1 or more; got {batch_size}"):
            scores_of(encoder, batch_size=batch_size)

    def test_a_text_must_fit_the_positions(self, encoder: ColBERT) -> None:
        with pytest.raises(ValueError, match=r"a document must have at most 64 tokens.*got 105.*max_length_document"):
            encoder(["a " * 100], query_mode=False, truncation=False)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"embedding_size": 0}, ValueError, "embedding_size must be 1 or more; got 0"),
            ({"embedding_size": 1.5}, TypeError, "embedding_size must be an int; got 1.5"),
            ({"max_length_query": 0}, ValueError, "max_length_query must be 1 or more; got 0"),
            ({"max_length_document": -3}, ValueError, "max_length_document must be 1 or more; got -3"),
            ({"max_length_document": "long"}, TypeError, "max_length_document must be an int; got 'long'"),
            ({"query_prefix": None}, TypeError, "query_prefix must be a str; got None"),
            ({"padding": False}, ValueError, "padding must be"),
            ({"freeze_layers_except_last_n": -1}, ValueError, "freeze_layers_except_last_n must be"),
            ({"n_gpu": 2}, TypeError, r"unknown keyword arguments \['n_gpu'\].*model_kwargs"),
        ],
    )
    def test_arguments_are_checked(
        self, neural_cherche: Path, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            ColBERT(neural_cherche, device="cpu", **arguments)
