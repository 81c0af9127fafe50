"""What the tests of the encoder share: the parts of a tiny transformer, texts, and the tolerance of a comparison."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedConfig, PreTrainedTokenizerFast

DATA = Path(__file__).parent.parent / "data"
HIDDEN, SIZE = 32, 16
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
METADATA = {
    "max_length_query": 12,
    "max_length_document": 20,
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "padding": "max_length",
    "truncation": True,
    "add_special_tokens": True,
}
QUERIES = ["berlin", "what is the capital of france?", "", "rich bananas, rich in potassium and more and more"]
DOCUMENTS = ["berlin is the capital.", "", "paris! " * 30, "bananas: a fruit"]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # Embeddings are unit vectors, so this is 1e-5 of their norm.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def tokenizer() -> PreTrainedTokenizerFast:
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    words = ["berlin", "paris", "capital", "france", "the", "of", "is", "in", "bananas"]
    vocab = {piece: index for index, piece in enumerate([*SPECIAL, *string.punctuation, *letters, *words])}
    wordpiece = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = [("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    wordpiece.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    names = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=wordpiece,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    )


def config(kind: type[PreTrainedConfig] = BertConfig) -> PreTrainedConfig:
    return kind(
        vocab_size=len(tokenizer()),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        # With the usual 0.02 all tokens of a random model would be nearly equal.
        initializer_range=0.5,
        pad_token_id=0,
    )


def save_model(folder: Path, seed: int = 0) -> Path:
    """Write a transformer with random weights, and its tokenizer. There is no projection."""
    torch.manual_seed(seed)
    BertModel(config(), add_pooling_layer=False).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
