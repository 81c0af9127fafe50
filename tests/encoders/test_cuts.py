"""Texts that are longer than the encoder takes: which are cut, what the warning says, and which are refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import HIDDEN, SIZE, config, tokenizer
from transformers import AutoModel, RobertaConfig, XLNetConfig

from colbert_fast.models import ColBERT

# "[D] " is three tokens. [CLS] and [SEP] are two more.
LONG = ["paris " * 30, "paris " * 15, "paris " * 16, "berlin"]


@pytest.fixture
def encoder(neural_cherche: Path) -> ColBERT:
    return ColBERT(neural_cherche, device="cpu")


def said(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


CALLS: dict[str, Callable[[ColBERT], Any]] = {
    "forward": lambda encoder: encoder(LONG, query_mode=False),
    "encode": lambda encoder: encoder.encode(LONG, query_mode=False),
    "encode_documents": lambda encoder: encoder.encode_documents(LONG),
    "encode_packed": lambda encoder: encoder.encode_packed(LONG, query_mode=False),
}


@pytest.mark.parametrize("name", CALLS)
def test_one_warning_counts_the_texts_that_were_cut(encoder: ColBERT, name: str) -> None:
    (message,) = said(lambda: CALLS[name](encoder))
    expected = "2 of 4 documents were cut to 20 tokens: the longest has 35"
    assert message == f"{expected}. To keep more, raise max_length_document."


def test_scores_warns_once_for_both_sides(encoder: ColBERT) -> None:
    (message,) = said(lambda: encoder.scores(["berlin " * 50, "paris"] * 2, LONG, tqdm_bar=False))
    assert message.startswith("1 of 2 queries were cut to 12 tokens: the longest has 55; 2 of 4 documents were cut to")
    assert message.endswith(". To keep more, raise max_length_query and max_length_document.")


def test_what_is_advised_can_be_done(encoder: ColBERT) -> None:
    (message,) = said(lambda: encoder.encode_documents(["a " * 100], max_length=30))
    assert message.endswith("cut to 30 tokens: the longest has 105. To keep more, raise max_length.")
    for length in (64, 350):  # as many tokens as there are positions, and more
        encoder.max_length_document = length
        (message,) = said(lambda: encoder.encode_documents(["a " * 100]))
        assert message.endswith("were cut to 64 tokens, all that the transformer holds: the longest has 105.")


def test_nothing_is_said_where_nothing_is_cut(encoder: ColBERT) -> None:
    assert not said(lambda: encoder.encode_documents(LONG[1:2] + LONG[3:]))
    assert not said(lambda: encoder.encode_documents(LONG, truncation=False))
    assert not said(lambda: encoder.encode_documents(LONG, max_length=35))


def test_many_texts_are_counted_across_chunks(encoder: ColBERT) -> None:
    texts = [f"{'paris ' * (n % 40)}" for n in range(2500)]
    (message,) = said(lambda: encoder.encode_documents(texts))
    assert message.startswith(f"{sum(n % 40 + 5 > 20 for n in range(2500))} of 2500 documents were cut to 20 tokens")
    assert "the longest has 44" in message


@pytest.mark.parametrize("kind", ["pylate", "stanford"])
def test_expanded_queries_are_counted_too(kind: str, request: pytest.FixtureRequest) -> None:
    encoder = ColBERT(request.getfixturevalue(kind), device="cpu")
    (message,) = said(lambda: encoder.encode_queries(["berlin", "paris " * 30]))
    assert message.startswith(f"1 of 2 queries were cut to {encoder.max_length_query} tokens")
    assert not said(lambda: encoder.encode_queries(["berlin", "paris"]))


@pytest.mark.parametrize("kind", ["pylate", "stanford"])
def test_an_expanded_query_has_the_length_of_the_call(kind: str, request: pytest.FixtureRequest) -> None:
    encoder = ColBERT(request.getfixturevalue(kind), device="cpu")
    expansion = encoder.encoder[0].query_expansion
    assert encoder.encode_queries(["berlin"], max_length=25).lengths.tolist() == [25]
    assert encoder.encoder[0].query_expansion == expansion
    encoder.max_length_query = 9
    assert encoder.encode_queries(["berlin", "paris is in france"]).lengths.tolist() == [9, 9]
    with pytest.raises(ValueError, match=r"at most 9 tokens, the length to which .* got \d+ for texts\[1\]"):
        encoder.encode_queries(["berlin", "paris " * 30], truncation=False)


@pytest.mark.parametrize("last", [False, True])
def test_a_text_that_does_not_fit_is_named_before_any_is_embedded(encoder: ColBERT, last: bool) -> None:
    passes: list[int] = []
    encoder.encoder.register_forward_pre_hook(lambda module, args: passes.append(1))
    texts = ["berlin"] * 9
    texts.insert(9 if last else 0, "a " * 100)
    message = rf"a document must have at most 64 tokens.*got 105 for texts\[{9 if last else 0}\]"
    with pytest.raises(ValueError, match=message):
        encoder.encode_documents(texts, truncation=False)
    with pytest.raises(ValueError, match=r"got 105 for documents\[0\]"):
        encoder.scores(["berlin"], ["a " * 100], truncation=False, tqdm_bar=False)
    assert not passes
    encoder.encode_documents(texts[:1] if last else texts[1:2])
    assert passes


@pytest.mark.parametrize("text", ["\ud800", "berlin \udcff", "a" * 100 + "\udfff\ud800"])
def test_a_text_that_is_not_unicode_is_named(encoder: ColBERT, text: str) -> None:
    place = next(i for i, letter in enumerate(text) if "\ud800" <= letter <= "\udfff")
    message = rf"texts\[2\] must be Unicode text; it has the lone surrogate .* at character {place}"
    for call in (encoder, encoder.encode, encoder.encode_queries, encoder.encode_documents):
        with pytest.raises(ValueError, match=message):
            call(["berlin", "é", text])
    with pytest.raises(ValueError, match=r"documents\[1\] must be Unicode text"):
        encoder.scores(["a"], ["b", text], tqdm_bar=False)


@pytest.mark.parametrize("side", ["query", "document"])
def test_a_prefix_must_be_unicode(side: str, neural_cherche: Path, plain: Path) -> None:
    message = f"{side}_prefix must be Unicode text; it has the lone surrogate"
    with pytest.raises(ValueError, match=message):
        ColBERT(plain, embedding_size=None, device="cpu", **{f"{side}_prefix": "\ud800"})
    encoder = ColBERT(neural_cherche, device="cpu")
    for wrong, error, words in (("\ud800", ValueError, message), (3, TypeError, f"{side}_prefix must be a str; got 3")):
        setattr(encoder, f"{side}_prefix", wrong)
        with pytest.raises(error, match=words):
            encoder.encode_packed(["berlin"], query_mode=side == "query")


@pytest.mark.parametrize("mode", ["document", 1, None])
def test_the_side_is_a_bool(encoder: ColBERT, mode: Any) -> None:
    for call in (encoder, encoder.encode, encoder.encode_packed):
        with pytest.raises(TypeError, match=r"query_mode must be True \(queries\) or False \(documents\); got"):
            call(["berlin"], query_mode=mode)


class TestLength:
    def test_special_tokens_must_fit(self, encoder: ColBERT) -> None:
        expected = r"max_length of queries must be at least 2, the number of special tokens .* got 1"
        with pytest.raises(ValueError, match=expected):
            encoder.encode_queries(["berlin"], max_length=1)
        assert said(lambda: encoder.encode_queries(["berlin"], max_length=2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lengths = encoder.encode_queries(["berlin", "a b"], max_length=1, add_special_tokens=False).lengths
        assert lengths.tolist() == [1, 1]

    def test_a_call_may_not_ask_for_more_than_the_positions(self, encoder: ColBERT) -> None:
        expected = "max_length must be at most 64, the number of the transformer's positions; got 65"
        with pytest.raises(ValueError, match=expected):
            encoder.encode_documents(["berlin"], max_length=65)
        assert len(encoder.encode_documents(["a " * 59], max_length=64)[0]) == 64

    @pytest.mark.parametrize(("kind", "capacity"), [(RobertaConfig, 39), (XLNetConfig, None)])
    def test_the_default_length_is_what_the_model_holds(self, tmp_path: Path, kind: Any, capacity: int | None) -> None:
        if kind is RobertaConfig:
            shape = {**config().to_dict(), "max_position_embeddings": 40, "model_type": "roberta"}
            model = AutoModel.from_config(RobertaConfig(**shape))
        else:
            shape = {"d_model": HIDDEN, "n_layer": 2, "n_head": 2, "d_inner": 64}
            model = AutoModel.from_config(XLNetConfig(vocab_size=len(tokenizer()), pad_token_id=0, **shape))
        model.save_pretrained(tmp_path)
        words = tokenizer()
        words.model_max_length = 10**30
        words.save_pretrained(tmp_path)
        encoder = ColBERT(tmp_path, embedding_size=None, device="cpu")
        text = "a " * 400
        (message,) = said(lambda: encoder.encode_documents(["berlin", text]))
        limit = f"cut to {capacity} tokens, all that the transformer holds:" if capacity else "cut to 350 tokens:"
        assert limit in message
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len(encoder.encode_documents([text])[0]) == (capacity or 350)
            assert encoder.encode([text, "berlin"], query_mode=False)["embeddings"].shape[1] == (capacity or 350)

    @pytest.mark.parametrize("name", ["truncation", "add_special_tokens"])
    def test_a_switch_is_a_bool(self, encoder: ColBERT, name: str) -> None:
        with pytest.raises(TypeError, match=f"{name} must be True or False; got 'no'"):
            encoder.encode_documents(["berlin"], **{name: "no"})


def test_the_side_must_be_said(encoder: ColBERT) -> None:
    with pytest.raises(TypeError, match="query_mode"):
        encoder.encode_packed(["berlin"])  # type: ignore[call-arg]
    q, d = encoder.encode_queries(["berlin"]), encoder.encode_documents(["berlin"])
    assert torch.equal(q.tokens, encoder.encode_packed(["berlin"], query_mode=True).tokens)
    assert torch.equal(d.tokens, encoder.encode_packed(["berlin"], query_mode=False).tokens)
    assert (len(q.tokens), len(d.tokens), q.dim) == (6, 7, SIZE)
