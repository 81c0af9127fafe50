"""From texts to the tokens that pass through the transformer: how many, which are cut off, and in which batches."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from torch import Tensor

from colbert_fast._warnings import warn_caller
from colbert_fast.models.capacity import positions
from colbert_fast.models.settings import expanded_to

# Texts that are tokenized together.
_CHUNK_TEXTS = 1024

# A fast tokenizer keeps the length at which it cuts, and how it pads, between being told and being used: another
# thread that tells it something else meanwhile has texts of both cut at its length. One lock for all encoders, which
# may share a tokenizer; it is held for a small part of the time that the transformer then takes. A fork waits for it:
# tokenizers have locks of their own, which would be locked for ever in the child.
tokenizing = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=tokenizing.acquire, after_in_parent=tokenizing.release, after_in_child=tokenizing.release
    )


class Encoding(NamedTuple):
    """How one call turns texts into rows."""

    query_mode: bool
    prefix: str
    truncation: bool
    add_special_tokens: bool
    padding: bool | str
    # Tokens of a text, prefix and special tokens included: never more than the transformer holds.
    max_length: int
    # Whether `max_length` is all that the transformer holds.
    at_capacity: bool = False
    # Whether `max_length` was said in this call.
    of_call: bool = False

    @property
    def task(self) -> str:
        """The name sentence-transformers has for the side of the text."""
        return "query" if self.query_mode else "document"

    @property
    def setting(self) -> str:
        """Where the maximum length was said."""
        return "max_length" if self.of_call else f"max_length_{self.task}"

    @property
    def side(self) -> str:
        """What messages call texts of this side."""
        return "queries" if self.query_mode else "documents"


class Tokenized(NamedTuple):
    """Tokens of n texts, without padding.

    Text i has the entries ``starts[i]`` to ``starts[i] + lengths[i]`` of every column.
    """

    columns: dict[str, Tensor]  # what the transformer reads, such as input_ids: [total], integers as int32
    dtypes: dict[str, torch.dtype]  # what the tokenizer made
    padding: dict[str, int]  # what stands where a batch has no token
    others: dict[str, Any]  # what is not one number a token, such as the modality
    starts: Tensor  # [n] int64
    lengths: Tensor  # [n] int64: tokens that pass through the transformer
    rows: Tensor  # [n] int64: embeddings of each text, or more where a module that we do not know drops some
    cut: int  # texts that were cut off
    longest: int  # tokens of the longest of these before it was cut

    def batch(self, texts: Tensor, width: int) -> dict[str, Any]:
        """Features of some texts for the transformer, [len(texts), width], padded on the right."""
        offset = torch.arange(width)
        real = offset < self.lengths[texts].unsqueeze(1)
        place = (self.starts[texts].unsqueeze(1) + offset)[real]
        features: dict[str, Any] = dict(self.others)
        for name, column in self.columns.items():
            value = torch.full(real.shape, self.padding[name], dtype=self.dtypes[name])
            value[real] = column[place].to(value.dtype)
            features[name] = value
        return features


def tokenize(encoder: MultiVectorEncoder, texts: list[str], encoding: Encoding, name: str) -> Tokenized:
    """Tokenize texts, each cut at the maximum length, all of them before any passes through the transformer.

    Parameters
    ----------
    encoder
        The modules that the texts will go through.
    texts, encoding
        n texts, and how they become rows.
    name
        The argument that the texts came in, for messages.

    Raises
    ------
    ValueError
        A maximum length without room for the special tokens; or a text longer than the transformer holds, which is
        not to be cut.
    """
    _check_room(encoder, encoding)
    _check_expanded(encoder, texts, encoding, name)
    # Texts of similar size share a chunk, so that little of it is padding.
    by_size = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    columns: dict[str, list[Tensor]] = {}
    dtypes: dict[str, torch.dtype] = {}
    others: dict[str, Any] = {}
    lengths, rows = torch.zeros(2, len(texts), dtype=torch.int64)
    cut = longest = 0
    for first in range(0, len(texts), _CHUNK_TEXTS):
        numbers = by_size[first : first + _CHUNK_TEXTS]
        chunk = [texts[number] for number in numbers]
        features = _features(encoder, chunk, encoding)
        used = _used(features)
        full = _full(features, encoding)
        if encoding.truncation and full:
            sizes = _uncut_lengths(encoder, [chunk[i] for i in full], encoding)
            cut += sum(size > encoding.max_length for size in sizes)
            longest = max(longest, *sizes)
        index = torch.tensor(numbers)
        lengths[index] = used.sum(1)
        rows[index] = _scored(encoder, features, used, encoding).sum(1)
        for key, value in features.items():
            if isinstance(value, Tensor) and value.shape == used.shape:
                dtypes[key] = value.dtype
                column = value[used]
                columns.setdefault(key, []).append(column if column.is_floating_point() else column.to(torch.int32))
            else:
                others[key] = value
    if not encoding.truncation:
        _check_capacity(encoder, lengths, encoding, name)
    order = torch.tensor(by_size, dtype=torch.int64)
    starts = torch.zeros(len(texts), dtype=torch.int64)
    starts[order] = lengths[order].cumsum(0) - lengths[order]
    tokenizer: Any = encoder.tokenizer
    padding = {
        "input_ids": getattr(tokenizer, "pad_token_id", None) or 0,
        "token_type_ids": getattr(tokenizer, "pad_token_type_id", None) or 0,
    }
    return Tokenized(
        {key: torch.cat(parts) for key, parts in columns.items()},
        dtypes,
        {key: padding.get(key, 0) for key in columns},
        others,
        starts,
        lengths,
        rows,
        cut,
        longest,
    )


def batches(
    tokenized: Tokenized, texts: Tensor, max_tokens: int, max_texts: int | None, equal_lengths: bool
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Cut texts into batches of similar length, longest first, so that what a batch may lack memory for comes first.

    Parameters
    ----------
    texts
        int64: which of the tokenized texts.
    max_tokens
        Tokens, padding included, of one batch; one text may have more.
    max_texts
        Texts of one batch, or None.
    equal_lengths
        Whether a batch may only hold texts of one length.

    Yields
    ------
    places, features
        Where the texts of the batch stand in `texts`, and what passes through the transformer.
    """
    lengths = tokenized.lengths[texts]
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    first = 0
    while first < len(sizes):
        width = sizes[first]
        # Texts without any token stay among themselves: no transformer takes them.
        most = max(1, max_tokens // width) if width else len(sizes)
        last = min(len(sizes), first + min(most, max_texts or most))
        if width and not sizes[last - 1]:
            last = first + sizes[first:last].index(0)
        if equal_lengths and sizes[last - 1] != width:
            last = first + next(i for i, size in enumerate(sizes[first:last]) if size != width)
        places = order[first:last]
        yield places, tokenized.batch(texts[places], width)
        first = last


def warn_of_cuts(*sides: tuple[Encoding, Tokenized]) -> None:
    """Say once how many texts of a call were cut, how long the longest was, and what to do."""
    cuts = [(encoding, tokenized) for encoding, tokenized in sides if tokenized.cut]
    if not cuts:
        return
    said = [
        f"{tokenized.cut} of {len(tokenized.lengths)} {encoding.side} were cut to {encoding.max_length} tokens"
        f"{', all that the transformer holds' if encoding.at_capacity else ''}: the longest has {tokenized.longest}"
        for encoding, tokenized in cuts
    ]
    settings = dict.fromkeys(encoding.setting for encoding, _ in cuts if not encoding.at_capacity)
    warn_caller("; ".join(said) + (f". To keep more, raise {' and '.join(settings)}." if settings else "."))


def _check_room(encoder: MultiVectorEncoder, encoding: Encoding) -> None:
    count = getattr(encoder.tokenizer, "num_special_tokens_to_add", None)
    special = count() if count is not None and encoding.add_special_tokens else 0
    if encoding.truncation and encoding.max_length < special:
        msg = (
            f"max_length of {encoding.side} must be at least {special}, the special tokens that the tokenizer adds; "
            f"got {encoding.max_length}"
        )
        raise ValueError(msg)


def _check_capacity(encoder: MultiVectorEncoder, lengths: Tensor, encoding: Encoding, name: str) -> None:
    capacity = positions(encoder)
    if capacity is None or not len(lengths) or int(lengths.max()) <= capacity:
        return
    index = int((lengths > capacity).int().argmax())
    msg = (
        f"a {encoding.task} must have at most {capacity} tokens, the transformer's positions; got "
        f"{int(lengths[index])} for {name}[{index}]: pass truncation=True to cut it at max_length_{encoding.task}"
    )
    raise ValueError(msg)


def _check_expanded(encoder: MultiVectorEncoder, texts: list[str], encoding: Encoding, name: str) -> None:
    """Queries that are expanded to one length cannot be longer."""
    if encoding.truncation or not encoding.query_mode or _expansion(encoder).get("strategy") != "fixed":
        return
    for index, length in enumerate(_uncut_lengths(encoder, texts, encoding)):
        if length > encoding.max_length:
            msg = (
                f"a query must have at most {encoding.max_length} tokens, the length to which this model expands all; "
                f"got {length} for {name}[{index}]: pass truncation=True, or a larger max_length"
            )
            raise ValueError(msg)


def _uncut_lengths(encoder: MultiVectorEncoder, texts: list[str], encoding: Encoding) -> list[int]:
    """How many tokens each text has, prefix and special tokens included, before anything is cut off."""
    tokenizer: Any = encoder.tokenizer
    with tokenizing:
        found = tokenizer(
            [encoding.prefix + text for text in texts],
            add_special_tokens=encoding.add_special_tokens,
            truncation=False,
            padding=False,
            verbose=False,
        )
    return [len(ids) for ids in found["input_ids"]]


def _expansion(encoder: MultiVectorEncoder) -> dict[str, Any]:
    """How sentence-transformers expands queries; empty where it does not."""
    return getattr(encoder[0], "query_expansion", None) or {}


def _features(encoder: MultiVectorEncoder, texts: list[str], encoding: Encoding) -> dict[str, Any]:
    """What sentence-transformers makes of texts: tensors [len(texts), longest] and other things."""
    # A causal tokenizer pads on the left, where absolute positions would then count the padding.
    options: dict[str, Any] = {"padding_side": "right", "return_attention_mask": True, "verbose": False}
    max_length: int | None = encoding.max_length
    if not encoding.truncation:
        options |= {"truncation": False, "max_length": None}
        max_length = None
    if not encoding.add_special_tokens:
        options["add_special_tokens"] = False
    with tokenizing, _told(encoder[0], encoding):
        if encoding.query_mode and _expansion(encoder).get("strategy") == "fixed":
            max_length = None
        features: dict[str, Any] = encoder.preprocess(
            texts,
            prompt=encoding.prefix,
            task=encoding.task,
            max_length=max_length,
            processing_kwargs={"text": options},
        )
    return features


@contextmanager
def _told(transformer: Any, encoding: Encoding) -> Iterator[None]:
    """Let sentence-transformers expand queries to the length of this call, and pad; as before when done."""
    flat = getattr(transformer, "can_flatten_inputs", False)
    tokenizer: Any = getattr(transformer, "tokenizer", None)
    # Causal models often have no token for padding. Any will do, for nothing of it is kept.
    lacks_pad = tokenizer is not None and getattr(tokenizer, "pad_token", "") is None
    expansion = getattr(transformer, "query_expansion", None) if encoding.query_mode else None
    try:
        if flat:  # Batches are cut here, and have hardly any padding.
            transformer.can_flatten_inputs = False
        if lacks_pad:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
        if expansion is not None:
            changed = expanded_to(expansion, encoding.max_length)
            if changed != expansion:
                transformer.query_expansion = changed
        yield
    finally:
        if flat:
            transformer.can_flatten_inputs = True
        if lacks_pad:
            tokenizer.pad_token = None
        if expansion is not None and transformer.query_expansion != expansion:
            transformer.query_expansion = expansion


def _used(features: dict[str, Any]) -> Tensor:
    """Which entries are no padding, bool [n, longest]: query expansion may leave its own out of the attention mask."""
    used: Tensor = features["attention_mask"].bool()
    expanded = features.get("query_expansion_positions")
    return used if expanded is None else used | expanded.bool()


def _full(features: dict[str, Any], encoding: Encoding) -> list[int]:
    """The texts that may have been cut: their own tokens fill the maximum length."""
    used = _used(features)
    expanded = features.get("query_expansion_positions")
    own = used if expanded is None else used & ~expanded.bool()
    full: list[int] = (own.sum(1) >= encoding.max_length).nonzero().flatten().tolist()
    return full


def _scored(encoder: MultiVectorEncoder, features: dict[str, Any], used: Tensor, encoding: Encoding) -> Tensor:
    """Which tokens will have an embedding, bool [n, longest], as far as that is known before the transformer ran."""
    scored = used
    for module in encoder:
        if type(module) is MultiVectorMask:
            scored = module(dict(features), task=encoding.task)["attention_mask"]
        elif type(module) not in (Transformer, Dense, Normalize):
            return used
    return scored
