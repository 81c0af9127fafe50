"""Turn texts into the tokens that pass through the transformer: tokenize, cut long texts, and make batches."""

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

# The number of texts that are tokenized together.
_CHUNK_TEXTS = 1024

# A fast tokenizer stores the length at which it cuts, and how it pads, before it uses them. If another thread stored
# other values in between, the texts of both threads would be cut at the same length. Encoders may share a tokenizer, so
# there is one lock for all encoders. It is held for a short time, compared with the time of the transformer. A fork
# waits for the lock, because a tokenizer also has locks of its own, which would stay locked for ever in the child.
tokenizing: threading.RLock = threading.RLock()
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
    # Tokens of a text, prefix and special tokens included. Never more than the transformer can take.
    max_length: int
    # Whether `max_length` is as many tokens as the transformer can take.
    at_capacity: bool = False
    # Whether the caller gave `max_length` as an argument of this call.
    of_call: bool = False

    @property
    def side(self) -> str:
        """The side of the texts, "query" or "document". sentence-transformers calls this word a task."""
        return "query" if self.query_mode else "document"

    @property
    def setting(self) -> str:
        """The name of the argument or setting that the maximum length comes from."""
        return "max_length" if self.of_call else f"max_length_{self.side}"

    @property
    def plural(self) -> str:
        """The plural of `side`, for messages."""
        return "queries" if self.query_mode else "documents"


class Tokenized(NamedTuple):
    """Tokens of n texts, without padding.

    The tokens of text i are ``column[starts[i] : starts[i] + lengths[i]]`` in every column.
    """

    columns: dict[str, Tensor]  # what the transformer reads, such as input_ids: [total], integers as int32
    dtypes: dict[str, torch.dtype]  # the dtype that the tokenizer gave to each column
    padding: dict[str, int]  # the value of each column for padding in a batch
    others: dict[str, Any]  # what the tokenizer returns besides one number per token, such as the modality
    starts: Tensor  # [n] int64
    lengths: Tensor  # [n] int64: number of tokens that pass through the transformer
    rows: Tensor  # [n] int64: number of embeddings; an upper bound if an unknown module drops some of them
    cut: int  # number of texts that were cut
    longest: int  # number of tokens of the longest text that was cut, before the cut

    def batch(self, texts: Tensor, width: int) -> dict[str, Any]:
        """Return the features [len(texts), width] of some texts for the transformer, padded on the right.

        `texts` holds the int64 numbers of the texts.
        """
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
    """Tokenize all texts, and cut each text at the maximum length.

    Parameters
    ----------
    encoder
        The modules that the texts will pass through.
    texts, encoding
        n texts, and how they become rows.
    name
        The name of the argument that holds the texts, for messages.

    Raises
    ------
    ValueError
        The maximum length has no room for the special tokens; or a text must not be cut (``truncation=False``) and is
        longer than the transformer can take.
    """
    _check_room(encoder, encoding)
    _check_expanded(encoder, texts, encoding, name)
    # Texts of similar size share a chunk, so that a chunk has little padding.
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


def tokens_of_rows(encoder: MultiVectorEncoder, text: str, encoding: Encoding) -> tuple[list[int], list[bool], Any]:
    """Tokenize one text, to name the rows of its embedding.

    Returns
    -------
    ids, kept, whole
        The tokens that pass through the transformer; which of them have an embedding; and what the tokenizer gives for
        the whole text without any cut, with "offset_mapping" if the tokenizer can say where a token is in the text.
    """
    features = _features(encoder, [text], encoding)
    used = _used(features)
    tokenizer: Any = encoder.tokenizer
    with tokenizing:
        whole = tokenizer(
            encoding.prefix + text,
            add_special_tokens=encoding.add_special_tokens,
            truncation=False,
            padding=False,
            verbose=False,
            return_offsets_mapping=bool(getattr(tokenizer, "is_fast", False)),
        )
    kept = _scored(encoder, features, used, encoding).bool()[used]
    return features["input_ids"][used].tolist(), kept.tolist(), whole


def batches(
    tokenized: Tokenized, texts: Tensor, max_tokens: int, max_texts: int | None, equal_lengths: bool
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Sort texts into batches of similar length.

    The longest texts come first. If the memory is too small, the error comes at once and not after hours.

    Parameters
    ----------
    tokenized
        The tokens of all texts.
    texts
        int64: numbers of the tokenized texts that are wanted.
    max_tokens
        Largest number of tokens of one batch, padding included. A text that has more tokens is a batch of its own.
    max_texts
        Largest number of texts of one batch. None: no limit.
    equal_lengths
        Whether all texts of a batch must have the same length.

    Yields
    ------
    places, features
        The positions of the batch's texts in `texts`, int64, and the features that pass through the transformer.
    """
    lengths = tokenized.lengths[texts]
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    first = 0
    while first < len(sizes):
        width = sizes[first]
        # Texts without any token get a batch of their own, because no transformer accepts them.
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
    """Warn once how many texts of a call were cut, how long the longest text was, and what the caller can do."""
    cuts = [(encoding, tokenized) for encoding, tokenized in sides if tokenized.cut]
    if not cuts:
        return
    said = [
        f"{tokenized.cut} of {len(tokenized.lengths)} {encoding.plural} were cut to {encoding.max_length} tokens"
        f"{', all that the transformer holds' if encoding.at_capacity else ''}: the longest has {tokenized.longest}"
        for encoding, tokenized in cuts
    ]
    settings = dict.fromkeys(encoding.setting for encoding, _ in cuts if not encoding.at_capacity)
    warn_caller("; ".join(said) + (f". To keep more, raise {' and '.join(settings)}." if settings else "."))


def _check_room(encoder: MultiVectorEncoder, encoding: Encoding) -> None:
    """Raise ValueError if the maximum length has no room for the special tokens."""
    count = getattr(encoder.tokenizer, "num_special_tokens_to_add", None)
    special = count() if count is not None and encoding.add_special_tokens else 0
    if encoding.truncation and encoding.max_length < special:
        msg = (
            f"max_length of {encoding.plural} must be at least {special}, the number of special tokens that the "
            f"tokenizer adds; got {encoding.max_length}"
        )
        raise ValueError(msg)


def _check_capacity(encoder: MultiVectorEncoder, lengths: Tensor, encoding: Encoding, name: str) -> None:
    """Raise ValueError for a text that is longer than the transformer can take. The message names the text."""
    capacity = positions(encoder)
    if capacity is None or not len(lengths) or int(lengths.max()) <= capacity:
        return
    index = int((lengths > capacity).int().argmax())
    msg = (
        f"a {encoding.side} must have at most {capacity} tokens, the number of the transformer's positions; got "
        f"{int(lengths[index])} for {name}[{index}]: pass truncation=True to cut it at max_length_{encoding.side}"
    )
    raise ValueError(msg)


def _check_expanded(encoder: MultiVectorEncoder, texts: list[str], encoding: Encoding, name: str) -> None:
    """Raise ValueError for a query that is longer than the length to which the encoder expands every query.

    Only with ``truncation=False`` can a query be longer.
    """
    if encoding.truncation or not encoding.query_mode or _expansion(encoder).get("strategy") != "fixed":
        return
    for index, length in enumerate(_uncut_lengths(encoder, texts, encoding)):
        if length > encoding.max_length:
            msg = (
                f"a query must have at most {encoding.max_length} tokens, the length to which this model expands every "
                f"query; got {length} for {name}[{index}]: pass truncation=True, or a larger max_length"
            )
            raise ValueError(msg)


def _uncut_lengths(encoder: MultiVectorEncoder, texts: list[str], encoding: Encoding) -> list[int]:
    """Return the number of tokens of each text before any cut, prefix and special tokens included."""
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
    """Return how sentence-transformers expands queries, or an empty dict if it does not expand them."""
    return getattr(encoder[0], "query_expansion", None) or {}


def _features(encoder: MultiVectorEncoder, texts: list[str], encoding: Encoding) -> dict[str, Any]:
    """Let sentence-transformers tokenize texts. Return tensors [len(texts), longest] and other values, by name."""
    # Padding goes to the right. With padding on the left, which the tokenizer of a causal model prefers, absolute
    # positions would count the padding.
    options: dict[str, Any] = {"padding_side": "right", "return_attention_mask": True, "verbose": False}
    max_length: int | None = encoding.max_length
    if not encoding.truncation:
        options |= {"truncation": False, "max_length": None}
        max_length = None
    if not encoding.add_special_tokens:
        options["add_special_tokens"] = False
    with tokenizing, _set_for_call(encoder[0], encoding):
        if encoding.query_mode and _expansion(encoder).get("strategy") == "fixed":
            max_length = None
        features: dict[str, Any] = encoder.preprocess(
            texts,
            prompt=encoding.prefix,
            task=encoding.side,
            max_length=max_length,
            processing_kwargs={"text": options},
        )
    return features


@contextmanager
def _set_for_call(transformer: Any, encoding: Encoding) -> Iterator[None]:
    """Set a transformer so that it expands queries to the length of this call, and pads. Undo this at the end."""
    flat = getattr(transformer, "can_flatten_inputs", False)
    tokenizer: Any = getattr(transformer, "tokenizer", None)
    # Causal models often have no token for padding. Any token will do, because the padding is not kept.
    lacks_pad = tokenizer is not None and getattr(tokenizer, "pad_token", "") is None
    expansion = getattr(transformer, "query_expansion", None) if encoding.query_mode else None
    try:
        if flat:  # Flat inputs save padding. The batches of this file have little padding anyway.
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
    """Return which entries are tokens and not padding, bool [n, longest].

    Tokens of query expansion count as tokens, even if the attention mask leaves them out.
    """
    used: Tensor = features["attention_mask"].bool()
    expanded = features.get("query_expansion_positions")
    return used if expanded is None else used | expanded.bool()


def _full(features: dict[str, Any], encoding: Encoding) -> list[int]:
    """Return the numbers of the texts that may have been cut, because their own tokens fill the maximum length.

    Tokens of query expansion are not a text's own tokens.
    """
    used = _used(features)
    expanded = features.get("query_expansion_positions")
    own = used if expanded is None else used & ~expanded.bool()
    full: list[int] = (own.sum(1) >= encoding.max_length).nonzero().flatten().tolist()
    return full


def _scored(encoder: MultiVectorEncoder, features: dict[str, Any], used: Tensor, encoding: Encoding) -> Tensor:
    """Return which tokens will have an embedding, bool [n, longest], before the transformer has run.

    If the encoder has a module that is unknown here, the result is `used`: all tokens.
    """
    scored = used
    for module in encoder:
        if type(module) is MultiVectorMask:
            scored = module(dict(features), task=encoding.side)["attention_mask"]
        elif type(module) not in (Transformer, Dense, Normalize):
            return used
    return scored
