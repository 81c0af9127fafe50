"""The embedding of a text does not depend on the other texts of the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import HIDDEN, close, config, tokenizer
from transformers import (
    AutoModel,
    BertConfig,
    BigBirdConfig,
    ConvBertConfig,
    DistilBertConfig,
    FNetConfig,
    GPT2Config,
    ModernBertConfig,
    NystromformerConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
    XLNetConfig,
)

from colbert_fast.models import ColBERT, embedding

TEXTS = ["berlin", "the capital of france is paris", "bananas " * 12, "", "in berlin, paris", "a b c d e f g h"]
SIZES: dict[str, int] = {"vocab_size": len(tokenizer()), "pad_token_id": 0}
SHAPE: dict[str, Any] = {
    **SIZES,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}
KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: config(BertConfig),
    "convbert": lambda: ConvBertConfig(**SHAPE, embedding_size=HIDDEN, head_ratio=1, conv_kernel_size=5),
    "fnet": lambda: FNetConfig(**{k: v for k, v in SHAPE.items() if k != "num_attention_heads"}),
    "nystromformer": lambda: NystromformerConfig(**SHAPE, num_landmarks=4, segment_means_seq_len=4),
    "gpt2": lambda: GPT2Config(vocab_size=SIZES["vocab_size"], n_embd=HIDDEN, n_layer=2, n_head=2, n_positions=64),
    "modernbert": lambda: ModernBertConfig(**SHAPE, local_attention=8, global_attn_every_n_layers=2),
    "distilbert": lambda: DistilBertConfig(**SIZES, dim=HIDDEN, n_layers=2, n_heads=2, hidden_dim=64),
    "t5": lambda: T5Config(**SIZES, d_model=HIDDEN, d_kv=16, d_ff=64, num_layers=2, num_heads=2),
    "roberta": lambda: RobertaConfig(**SHAPE),
    "xlnet": lambda: XLNetConfig(**SIZES, d_model=HIDDEN, n_layer=2, n_head=2, d_inner=64),
}
SEE_PADDING = {"convbert", "fnet", "nystromformer"}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ColBERT]:
    def encoder_of(kind: str, padding_side: str = "right", **kwargs: Any) -> ColBERT:
        torch.manual_seed(0)
        AutoModel.from_config(KINDS[kind]()).save_pretrained(tmp_path)
        words = tokenizer()
        words.padding_side = padding_side
        words.save_pretrained(tmp_path)
        return ColBERT(tmp_path, embedding_size=None, device="cpu", max_length_document=30, **kwargs)

    return encoder_of


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_together_are_as_alone(make: Callable[..., ColBERT], kind: str, padding_side: str) -> None:
    encoder = make(kind, padding_side)
    together = encoder.encode_documents(TEXTS)
    for text, rows in zip(TEXTS, together, strict=True):
        close(rows, encoder.encode_documents([text])[0])
        # Compare with the transformer itself, without any padding.
        inputs = encoder.tokenizer([encoder.document_prefix + text], return_tensors="pt", return_token_type_ids=False)
        states = encoder.model(input_ids=inputs["input_ids"][:, :30]).last_hidden_state
        real = min(len(rows), states.shape[1])
        close(rows[:real], torch.nn.functional.normalize(states[0, :real], dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_only_encoders_that_see_padding_take_texts_of_one_length(make: Callable[..., ColBERT], kind: str) -> None:
    encoder = make(kind)
    as_documents = encoder._encoding(False, {})
    assert embedding.sees_padding(encoder.encoder, as_documents) == (kind in SEE_PADDING)
    passes: list[int] = []
    encoder.encoder.register_forward_pre_hook(lambda module, args: passes.append(len(args[0]["input_ids"])))
    # Two more texts, as long as two others.
    encoder.encode_documents([*TEXTS, "the capital of paris is france", "in paris, berlin"])
    assert (passes == [8]) == (kind not in SEE_PADDING)
    assert sum(passes) == 8


def test_training_uses_batches_of_one_length_too(make: Callable[..., ColBERT]) -> None:
    encoder = make("convbert")
    alone = [encoder(TEXTS[i : i + 1])["embeddings"] for i in range(2)]
    together = encoder(TEXTS[:2])["embeddings"]
    assert together.requires_grad
    close(together, torch.cat(alone))


def test_big_bird_attends_as_to_the_text_alone(tmp_path: Path) -> None:
    """BigBird itself changes to full attention at its first short text, and never changes back."""
    torch.manual_seed(0)
    shape = {**SHAPE, "max_position_embeddings": 256, "block_size": 4, "num_random_blocks": 1}
    AutoModel.from_config(BigBirdConfig(**shape)).save_pretrained(tmp_path)
    words = tokenizer()
    words.model_max_length = 256
    words.save_pretrained(tmp_path)
    encoder = ColBERT(tmp_path, embedding_size=None, device="cpu", max_length_document=200)
    texts = ["paris " * 100, "berlin"]
    (alone,) = ColBERT(tmp_path, embedding_size=None, device="cpu", max_length_document=200).encode_documents(texts[:1])
    for _ in range(2):
        close(encoder.encode_documents(texts)[0], alone)


def test_a_tokenizer_without_a_token_for_padding(tmp_path: Path) -> None:
    AutoModel.from_config(KINDS["gpt2"]()).save_pretrained(tmp_path)
    words = tokenizer()
    words.pad_token = None
    words.save_pretrained(tmp_path)
    encoder = ColBERT(tmp_path, embedding_size=None, device="cpu", max_length_document=30)
    assert encoder.tokenizer.pad_token is None
    for text, rows in zip(TEXTS, encoder.encode_documents(TEXTS), strict=True):
        close(rows, encoder.encode_documents([text])[0])
    assert encoder.tokenizer.pad_token is None
