"""How many tokens of one text a transformer can take, which its positions limit."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Transformer
from torch import nn

# The names that models of transformers use for their table of absolute positions.
_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe", "pos_emb", "positions_embed")
# The parts of a model that see no text have tables of their own. A part is one of these if its path has such a word.
_NOT_TEXT = ("vision", "visual", "image", "audio", "pixel", "entity", "query")

# For each model: the number of positions that its configuration declares, and the number of tokens that it can take.
_known: weakref.WeakKeyDictionary[nn.Module, tuple[int | None, int | None]] = weakref.WeakKeyDictionary()


def positions(encoder: MultiVectorEncoder) -> int | None:
    """Return how many tokens the transformer of an encoder can take in one text, special tokens included.

    The configuration says how many rows the table of positions has. In models like RoBERTa the table has a padding
    row, and positions are counted from the row after it, so fewer tokens fit: 512 with 514 rows. A model with rotary
    positions has no table. Its limit is what its configuration declares, the length that it was trained for.

    Returns
    -------
    int or None
        None if the model has no limit, because its positions are relative, as in T5, XLNet or DeBERTa. The limit of
        the tokenizer, `model_max_length`, plays no part here.
    """
    # Every call of the encoder comes here, so only the direct children are looked at and not the hundreds of modules
    # inside a Transformer. A Router is not a Transformer but has transformers inside.
    parts = [
        part
        for child in encoder.children()
        for part in ([child] if isinstance(child, Transformer) else child.modules())
    ]
    limits = [_limit(part.model) for part in parts if isinstance(part, Transformer)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(model: Any) -> int | None:
    """Return the limit of one transformer. It is remembered until the configuration of the model changes."""
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
    """Return how many tokens the tables of positions and the configuration allow, or None if there is no limit."""
    tables = list(_tables(model))
    if declared is None:
        return min((_rows(table) for table in tables if table is not None), default=None)
    if tables and all(table is None for table in tables):  # a model that works without a table, as DeBERTa does
        return None
    # A table with fewer rows than the configuration declares is for something else, such as the patches of an image.
    counted = [table for table in tables if table is not None and table.weight.shape[0] >= declared]
    return min([declared, *map(_rows, counted)])


def _tables(model: nn.Module) -> Iterator[Any]:
    """Yield the tables of absolute positions of tokens, and None for a table that the model declares but leaves out."""
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
    """Return how many rows of a table stand for positions."""
    rows: int = table.weight.shape[0]
    padding = getattr(table, "padding_idx", None)
    # In models like BART the first position comes after `offset` other rows, and there is no padding row.
    return rows - (padding + 1 if isinstance(padding, int) else getattr(table, "offset", 0))
