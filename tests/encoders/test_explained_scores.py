"""cf.explain names the rows of every kind of encoder by the right tokens. Its parts sum to the model's own score."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from tiny import HIDDEN, SIZE, config, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertModel, PreTrainedTokenizerFast

import colbert_fast as cf
from colbert_fast.models import ColBERT

QUERY = "Capital of France?"
DOCUMENT = "Paris is the CAPITAL, bananas!"


@pytest.fixture(scope="module")
def encoder(neural_cherche: Path) -> ColBERT:
    return ColBERT(neural_cherche, device="cpu")


def strings(side: Any, kind: str = "text") -> list[str]:
    return [token.string for token in side.tokens if token.kind == kind]


def of_encoder(model: Any, query: str, document: str) -> float:
    if isinstance(model, ColBERT):
        return float(model.scores([query], [document], tqdm_bar=False))
    return float(model.similarity(model.encode_query([query]), model.encode_document([document])))


def check(model: Any, explanation: cf.Explanation, query: str = QUERY, document: str = DOCUMENT) -> None:
    """The score is the model's own, the shares sum to it, and every row is what the model's embeddings say."""
    assert explanation.score == pytest.approx(of_encoder(model, query, document), rel=1e-5)
    assert sum(row.share for row in explanation.rows) == pytest.approx(explanation.score, rel=1e-5)
    for side, text in ((explanation.query, query), (explanation.document, document)):
        assert side.text == text
        for token in side.tokens:
            assert token.string == text[token.start : token.end] or token.kind != "text"


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("neural_cherche", False),
        *((kind, theirs) for kind in ("pylate", "stanford", "multi_vector") for theirs in (False, True)),
    ],
)
def test_the_score_is_the_models_own(kind: str, theirs: bool, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    model = MultiVectorEncoder(str(folder), device="cpu") if theirs else ColBERT(folder, device="cpu")
    explanation = cf.explain(model, QUERY, DOCUMENT)
    check(model, explanation)
    assert strings(explanation.query) == ["Capital", "of", "France", "?"]
    # "Paris" is a word of the vocabulary, and PyLate's and Stanford's models leave punctuation out.
    expected = ["Paris", "is", "the", "CAPITAL", ",", "bananas", "!"]
    if kind in ("pylate", "stanford"):
        expected = [word for word in expected if unicodedata.category(word[0])[0] != "P"]
    assert strings(explanation.document) == expected


def test_prefixes_and_markers_are_no_text(encoder: ColBERT) -> None:
    explanation = cf.explain(encoder, QUERY, DOCUMENT)
    assert strings(explanation.query, "marker") == ["[CLS]", "[", "q", "]", "[SEP]"]
    assert strings(explanation.document, "marker") == ["[CLS]", "[", "d", "]", "[SEP]"]
    # tokens of the text in the order of the text, behind the prefix
    assert [token.string for token in explanation.query.tokens[4:8]] == ["Capital", "of", "France", "?"]


def test_query_expansion_is_summarised(pylate: Path) -> None:
    explanation = cf.explain(ColBERT(pylate, device="cpu"), QUERY, DOCUMENT)
    assert strings(explanation.query, "marker") == ["[CLS]", "[unused0]", "[SEP]"]
    assert set(strings(explanation.query, "expansion")) == {"[MASK]"}
    count = len(strings(explanation.query, "expansion"))
    assert count == 14 - 4 - 3
    assert f"from {count} tokens of query expansion: [MASK] x {count}\n" in f"{explanation}\n"


def test_a_pad_row_answers_as_padding(encoder: ColBERT) -> None:
    """A short document of a neural-cherche model ends in one row of zeros, which can win with 0."""
    explanation = cf.explain(encoder, QUERY, "in")
    assert explanation.document.tokens[-1].kind == "padding"
    assert not encoder.encode_documents(["in"])[0][-1].any()
    check(encoder, explanation, document="in")
    longer = cf.explain(encoder, QUERY, "paris " * 18)
    assert longer.document.tokens[-1].string == "[SEP]"
    won = explanation.similarities.copy()
    won[:, :-1] = -1  # as if all tokens of the document were unlike the query
    rows = cf.Explanation(explanation.query, explanation.document, won, 0.0, False).rows
    assert {(row.document_token, row.similarity) for row in rows} == {("(padding)", 0.0)}


def test_mean_maxsim(multi_vector: Path) -> None:
    model = MultiVectorEncoder(str(multi_vector), device="cpu", similarity_fn_name="meanmaxsim")
    explanation = cf.explain(model, QUERY, DOCUMENT)
    assert explanation.mean
    check(model, explanation)
    assert explanation.rows[0].share == pytest.approx(explanation.rows[0].similarity / len(explanation.rows))
    assert "the mean of the best similarities" in str(explanation)


def test_a_document_that_was_cut(encoder: ColBERT) -> None:
    with pytest.warns(UserWarning, match="1 of 1 documents were cut"):
        explanation = encoder.explain(QUERY, "paris " * 18 + "berlin berlin")
    assert explanation.document.text[explanation.document.read :].split() == [
        "paris",
        "paris",
        "paris",
        "berlin",
        "berlin",
    ]
    assert '<span class="cut" title=' in explanation.to_html()


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("Paris is the cafe\u0301", "\u0301"),  # the tokenizer removes accents
        ("the capital \u2764\ufe0f", "\u2764\ufe0f"),  # and the sign that makes a heart red
        ("the capital\u200b\ue000 \n", "capital"),  # and what has no width or no meaning
    ],
)
def test_what_a_tokenizer_drops_was_read(encoder: ColBERT, text: str, last: str) -> None:
    explanation = encoder.explain(text, text)
    check(encoder, explanation, text, text)
    for side in (explanation.query, explanation.document):
        assert side.read == len(text)
        assert strings(side)[-1].endswith(last)
    assert "was cut" not in explanation.to_html()


def test_marks_belong_to_the_letter_before(encoder: ColBERT) -> None:
    text = "Zu\u0308rich: a\u0300\u0301 capital"
    letters = "".join(strings(encoder.explain(QUERY, text).document))
    assert letters == text.replace(" ", "")


def test_pieces_of_a_word(encoder: ColBERT) -> None:
    explanation = cf.explain(encoder, "Cab?", DOCUMENT)
    tokens = [token for token in explanation.query.tokens if token.kind == "text"]
    assert [(token.string, token.continues) for token in tokens] == [
        ("C", False),
        ("a", True),
        ("b", True),
        ("?", False),
    ]
    assert "##b" in str(explanation)


def test_indices_number_the_rows_of_the_embedding(encoder: ColBERT) -> None:
    q, d = encoder.encode_queries([QUERY])[0], encoder.encode_documents([DOCUMENT])[0]
    for row in cf.explain(encoder, QUERY, DOCUMENT).rows:
        assert row.similarity == pytest.approx(float(q[row.query_index] @ d[row.document_index]), abs=1e-6)
        assert row.similarity == pytest.approx(float((q[row.query_index] @ d.T).max()), abs=1e-6)


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, as ModernBERT's and RoBERTa's: " word" begins with a sign, an emoji is several tokens."""
    vocab = {
        token: i
        for i, token in enumerate(["<pad>", "<s>", "</s>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    merges = [("i", "n"), ("\u0120", "in")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    inner = Tokenizer(models.BPE(vocab, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    inner.decoder = decoders.ByteLevel()
    ids = [("<s>", vocab["<s>"]), ("</s>", vocab["</s>"])]
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    names = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **names)


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory: pytest.TempPathFactory) -> MultiVectorEncoder:
    folder = tmp_path_factory.mktemp("of_bytes")
    torch.manual_seed(5)
    settings = config()
    settings.vocab_size = len(byte_level())
    BertModel(settings, add_pooling_layer=False).save_pretrained(folder)
    byte_level().save_pretrained(folder)
    modules = [
        Transformer(str(folder), model_kwargs={"add_pooling_layer": False}),
        Dense(HIDDEN, SIZE, bias=False, activation_function=None, module_input_name="token_embeddings"),
        MultiVectorMask(),
        Normalize(module_input_name="token_embeddings"),
    ]
    return MultiVectorEncoder(modules=modules, device="cpu")


def test_tokens_of_bytes_are_shown_as_text(of_bytes: MultiVectorEncoder) -> None:
    text = "caf\u00e9 in \U0001f600 b"
    explanation = cf.explain(of_bytes, text, text)
    check(of_bytes, explanation, text, text)
    named = strings(explanation.query)
    assert "in" in named and "\u00e9" in named and "\U0001f600" in named
    assert "\u0120" not in str(explanation)
    # Each query token answers itself: both texts have the same embedding.
    assert [row.document_index for row in explanation.rows] == [row.query_index for row in explanation.rows]
    page = explanation.to_html()
    # The four bytes of the emoji are one element of the page.
    assert page.count(">\U0001f600</span>") == 2


@pytest.mark.parametrize("prompt", ["b ", "b: ", "b\n", "b"])
def test_the_space_before_the_text_may_be_part_of_its_first_token(
    of_bytes: MultiVectorEncoder, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    monkeypatch.setattr(of_bytes, "prompts", {"query": prompt, "document": prompt})
    explanation = cf.explain(of_bytes, "in b", " in")
    check(of_bytes, explanation, "in b", " in")
    assert "".join(strings(explanation.query)).replace(" ", "") == "inb"
    assert "".join(strings(explanation.document)).strip() == "in"
    assert set("".join(strings(explanation.query, "marker"))) <= set("<s></s>:b\n\u010a\u0120")


def test_a_tokenizer_without_places(neural_cherche: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ColBERT(neural_cherche, device="cpu")
    monkeypatch.setattr(type(encoder.tokenizer), "is_fast", property(lambda self: False))
    explanation = cf.explain(encoder, "capital berlin cab", DOCUMENT)
    assert explanation.score == pytest.approx(of_encoder(encoder, "capital berlin cab", DOCUMENT), rel=1e-5)
    assert explanation.query.text == "[ q ] capital berlin cab"
    assert strings(explanation.query, "marker") == ["[CLS]", "[SEP]"]


def test_a_prompt_that_is_unknown(multi_vector: Path) -> None:
    """The default prompt of an encoder is no prompt of its queries by name; so its tokens match only in part."""
    model = MultiVectorEncoder(str(multi_vector), device="cpu", prompts={"query": "find " * 9, "other": "a b c d "})
    model.encode_query = lambda texts, **options: model.encode(texts, prompt_name="other", task="query", **options)
    explanation = cf.explain(model, QUERY, DOCUMENT)
    check(model, explanation)
    assert strings(explanation.query)[-4:] == ["Capital", "of", "France", "?"]


def test_one_word_many_times(multi_vector: Path) -> None:
    document = "berlin " * 50
    assert strings(cf.explain(ColBERT(multi_vector, device="cpu"), QUERY, document).document) == ["berlin"] * 50


def test_a_model_that_pools_its_tokens(multi_vector: Path) -> None:
    model = MultiVectorEncoder(str(multi_vector), device="cpu")
    model.append(HierarchicalTokenPooling(pool_factor=2))
    with pytest.raises(NotImplementedError, match=r"embeddings for .* tokens: Explanation\.from_embeddings"):
        cf.explain(model, QUERY, DOCUMENT)


def test_the_data_is_json(encoder: ColBERT) -> None:
    data = json.loads(json.dumps(cf.explain(encoder, QUERY, DOCUMENT).to_dict()))
    assert data["query"] == QUERY and data["document"] == DOCUMENT and data["mean"] is False
    assert sum(row["share"] for row in data["rows"]) == pytest.approx(data["score"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([QUERY], DOCUMENT), TypeError, "query must be one text, a str; got list: call explain once for each query"),
        ((QUERY, None), TypeError, "document must be one text, a str; got NoneType"),
        ((b"bytes", DOCUMENT), TypeError, "query must be one text, a str; got bytes"),
        (("", DOCUMENT), ValueError, "query must have text; got ''"),
        ((QUERY, " \n"), ValueError, "document must have text; got"),
        ((QUERY, "\ud800"), ValueError, "lone surrogate"),
    ],
)
def test_errors(encoder: ColBERT, arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encoder.explain(*arguments)
    with pytest.raises(error, match=message):
        cf.explain(encoder, *arguments)


@pytest.mark.parametrize("model", [None, "a folder", torch.nn.Linear(2, 2), tokenizer()])
def test_no_model(model: Any) -> None:
    with pytest.raises(TypeError, match="the model must have encode_queries"):
        cf.explain(model, QUERY, DOCUMENT)
