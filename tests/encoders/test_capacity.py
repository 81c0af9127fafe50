"""The number of tokens that a transformer can take is found from the transformer itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Transformer
from tiny import tokenizer

from colbert_fast.models.capacity import positions

SIZES = {
    "vocab_size": len(tokenizer()),
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
BART = {
    **{key: SIZES[key] for key in ("vocab_size", "max_position_embeddings", "pad_token_id")},
    **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 1), ("ffn_dim", 37))},
    **{"d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
}
RELATIVE = {"position_biased_input": False, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
T5 = {"vocab_size": SIZES["vocab_size"], "d_model": 32, "d_kv": 16, "num_layers": 1, "num_heads": 2, "d_ff": 37}
XLNET = {"vocab_size": SIZES["vocab_size"], "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 37}
WITH_TABLE = [
    *((kind, {}, 40) for kind in ("Bert", "Electra", "Nystromformer", "RoFormer", "GPT2")),
    *((kind, {}, 38) for kind in ("Roberta", "XLMRoberta", "Camembert", "MPNet", "Data2VecText", "IBert")),
    ("Roberta", {"pad_token_id": 0}, 39),
    ("Longformer", {"attention_window": 4}, 38),
    ("Esm", {"position_embedding_type": "absolute"}, 38),
    ("Bart", BART, 40),
]
WITHOUT_LIMIT = [("XLNet", XLNET), ("T5", T5), ("DebertaV2", RELATIVE)]


def encoder_of(kind: str, options: dict[str, Any], folder: Path) -> MultiVectorEncoder:
    sizes = options if "d_model" in options else {**SIZES, **options}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return MultiVectorEncoder(modules=[Transformer(str(folder))], device="cpu")


def run(encoder: MultiVectorEncoder, length: int) -> None:
    transformer: Any = encoder[0]
    ids = torch.randint(7, 40, (1, length))
    with torch.no_grad():
        transformer.model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize(("kind", "options", "expected"), WITH_TABLE)
def test_the_last_position_that_the_model_can_take(
    kind: str, options: dict[str, Any], expected: int, tmp_path: Path
) -> None:
    encoder = encoder_of(kind, options, tmp_path)
    assert positions(encoder) == expected
    run(encoder, expected)
    with pytest.raises((RuntimeError, IndexError)):
        run(encoder, expected + 1)


@pytest.mark.parametrize(("kind", "options"), WITHOUT_LIMIT)
# transformers 5.1 uses torch.jit.script for parts of DeBERTa.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_relative_positions_have_no_limit(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    encoder = encoder_of(kind, options, tmp_path)
    assert positions(encoder) is None
    run(encoder, 100)


def test_rotary_positions_end_where_the_configuration_says(tmp_path: Path) -> None:
    assert positions(encoder_of("ModernBert", {}, tmp_path)) == 40
