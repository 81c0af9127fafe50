"""How many tokens of one text a transformer can take."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Transformer
from torch import nn

# Names under which transformers' models keep their table of absolute positions.
_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe", "pos_emb", "positions_embed")
# Parts of a model that see no text have tables of their own.
_NOT_TEXT = ("vision", "visual", "image", "audio", "pixel", "entity", "query")

# What each model declared, and what it holds.
_known: weakref.WeakKeyDictionary[nn.Module, tuple[int | None, int | None]] = weakref.WeakKeyDictionary()


def positions(encoder: MultiVectorEncoder) -> int | None:
    """Tokens, special tokens included, that the transformer of an encoder can take in one text.

    The configuration tells how many rows the table of positions has. Models of RoBERTa's kind, whose table has a
    padding row, count from behind it and therefore hold fewer: 512 of 514. A model with rotary positions has no
    table; its limit is what its configuration declares, the length that it was trained for.

    Returns
    -------
    int or None
        None where the model has no limit: relative positions, as in T5, XLNet or DeBERTa. The limit of the
        tokenizer, `model_max_length`, is not looked at.
    """
    # Not every module: there are hundreds, and every call asks. A Router holds its transformers further down.
    parts = [
        part
        for child in encoder.children()
        for part in ([child] if isinstance(child, Transformer) else child.modules())
    ]
    limits = [_limit(part.model) for part in parts if isinstance(part, Transformer)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(model: Any) -> int | None:
    config = model.config
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    declared = getattr(config, "max_position_embeddings", None)
    if not isinstance(declared, int) or declared < 1:  # XLNet declares -1
        declared = None
    if not isinstance(model, nn.Module):  # exported to ONNX or OpenVINO
        return declared
    known = _known.get(model)
    if known is None or known[0] != declared:
        known = _known[model] = declared, _held(model, declared)
    return known[1]


def _held(model: nn.Module, declared: int | None) -> int | None:
    tables = list(_tables(model))
    if declared is None:
        return min((_rows(table) for table in tables if table is not None), default=None)
    if tables and all(table is None for table in tables):  # a model that can do without, as DeBERTa
        return None
    # A table that is smaller than what the configuration declares counts something else, such as patches.
    counted = [table for table in tables if table is not None and table.weight.shape[0] >= declared]
    return min([declared, *map(_rows, counted)])


def _tables(model: nn.Module) -> Iterator[Any]:
    """Tables of absolute positions of tokens; None for one that the model declares and leaves out."""
    for path, module in model.named_modules():
        if any(word in path.lower() for word in _NOT_TEXT):
            continue
        for name in _TABLES:
            table = getattr(module, name, module)
            if table is None:
                yield None
            elif isinstance(table, nn.Module) and table is not module:
                weight = getattr(table, "weight", None)
                if isinstance(weight, torch.Tensor) and weight.dim() == 2:
                    yield table


def _rows(table: Any) -> int:
    """Rows of a table that stand for positions."""
    rows: int = table.weight.shape[0]
    padding = getattr(table, "padding_idx", None)
    # BART's kind has rows in front of the first position without a padding row.
    return rows - (padding + 1 if isinstance(padding, int) else getattr(table, "offset", 0))
