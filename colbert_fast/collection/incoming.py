"""The forms in which a user hands in documents, each turned into PackedTokens of bounded size on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from colbert_fast._arrays import tensor_of
from colbert_fast._lowering import lower
from colbert_fast.collection import arrow
from colbert_fast.collection.parts import spans
from colbert_fast.packed import PackedTokens

# Documents are copied in pieces of about so many numbers.
_NUMBERS = 1 << 24
# So many items of an iterator are gathered at most.
_ITEMS = 1 << 12
# What a collection encodes as it is. Other types become float32, piece by piece.
_KEPT = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Incoming(NamedTuple):
    """Documents in pieces."""

    pieces: Iterator[PackedTokens]
    # The number of documents, if it is known without reading them.
    known: int | None
    # Whether all of them are there at once, so that they can be added whole or not at all.
    whole: bool


def pieces(embeddings: Any, lengths: Any = None) -> Incoming:
    """Return the documents that a user hands in, in their order.

    Parameters
    ----------
    embeddings
        PackedTokens; a padded tensor or array, in which rows of zeros are padding; a nested tensor; a list or an
        iterator, both of items ``[length, dim]`` or of batches in any of these forms; an Arrow column of lists of
        lists of one size; or with ``lengths`` one tensor or array ``[total, dim]`` with the rows of all items.
    lengths
        ``[n]``, integer.

    Raises
    ------
    TypeError, ValueError
        Something else. Of an iterator, the error comes when the bad item is reached.
    """
    if lengths is not None:
        embeddings = _of_lengths(embeddings, lengths)
    if isinstance(embeddings, (list, tuple)):
        count = None if any(map(_is_batch, embeddings)) else len(embeddings)
        return Incoming(_of_items(embeddings), count, whole=True)
    if arrow.is_column(embeddings):
        chunks = arrow.chunks(embeddings)
        return Incoming(chain.from_iterable(map(_split, chunks)), sum(map(len, chunks)), whole=True)
    if _is_batch(embeddings) or isinstance(embeddings, (Tensor, np.ndarray)):
        batch, skip_zero = lower(embeddings, None, "embeddings")
        return Incoming(_split(batch, skip_zero), len(batch), whole=True)
    if isinstance(embeddings, (str, bytes, dict)) or not isinstance(embeddings, Iterable):
        got = type(embeddings).__name__
        msg = f"embeddings must be PackedTokens, a tensor, an array, a list or an iterator; got {got}"
        raise TypeError(msg)
    return Incoming(_of_items(embeddings), None, whole=False)


def _of_lengths(embeddings: Any, lengths: Any) -> PackedTokens:
    tokens, counts = tensor_of(embeddings, "embeddings"), tensor_of(lengths, "lengths")
    _check_memory(tokens.device, "embeddings")
    _check_memory(counts.device, "lengths")
    if tokens.ndim != 2:
        msg = (
            f"with lengths, embeddings must be [total, dim], the rows of all documents; got shape {list(tokens.shape)}"
        )
        raise ValueError(msg)
    integers = not (counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool)
    if counts.ndim != 1 or (len(counts) and not integers):
        msg = f"lengths must be [n] integers; got {counts.dtype} of shape {list(counts.shape)}"
        raise ValueError(msg)
    counts = counts.to(torch.int64)
    ends = counts.cumsum(0)
    if int(ends[-1:].sum()) != len(tokens):
        msg = f"lengths must add up to the {len(tokens)} rows of embeddings; they add up to {int(ends[-1:].sum())}"
        raise ValueError(msg)
    if not tokens.is_floating_point():
        tokens = tokens.float()
    return PackedTokens(tokens, ends - counts, counts)


def _is_batch(value: Any) -> bool:
    """Return whether a value is several documents, rather than one of them."""
    if isinstance(value, PackedTokens):
        return True
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim == 3
    if isinstance(value, (list, tuple)) and value:
        first = value[0]
        if isinstance(first, (Tensor, np.ndarray)):
            return first.ndim == 2
        return isinstance(first, (list, tuple)) and bool(first) and isinstance(first[0], (list, tuple))
    return False


def _of_items(values: Iterable[Any]) -> Iterator[PackedTokens]:
    """Gather items, and cut batches, in their order."""
    some: list[Any] = []
    first, numbers = 0, 0
    for place, value in enumerate(values):
        if _is_batch(value):
            yield from _of_list(some, first)
            yield from (
                _of_items(value) if isinstance(value, (list, tuple)) else _split(*lower(value, None, "embeddings"))
            )
            some, first, numbers = [], place + 1, 0
            continue
        some.append(value)
        numbers += value.size if isinstance(value, np.ndarray) else value.numel() if isinstance(value, Tensor) else 0
        if numbers >= _NUMBERS or len(some) >= _ITEMS:
            yield from _of_list(some, first)
            some, first, numbers = [], place + 1, 0
    yield from _of_list(some, first)


def _of_list(items: list[Any], first: int) -> Iterator[PackedTokens]:
    """Join items. The first one is ``embeddings[first]``."""
    if items:
        yield from _split(*lower(items, None, f"embeddings[{first}:]" if first else "embeddings"))


def _split(batch: PackedTokens, skip_zero: bool = False) -> Iterator[PackedTokens]:
    """Yield a batch as it is, or what must be copied of it in pieces: from a GPU, of int8, or without rows of zeros."""
    _check_memory(batch.device, "embeddings")
    dtype = None if batch.scales is None and batch.dtype in _KEPT else torch.float32
    if batch.device.type == "cpu" and dtype is None and not skip_zero:
        if len(batch):
            yield batch
        return
    for first, last in spans(batch.lengths.cpu(), max(1, _NUMBERS // max(1, batch.dim))):
        part = batch[first:last].to("cpu", dtype)
        yield _without_zeros(part) if skip_zero else part


def _check_memory(device: torch.device, name: str) -> None:
    if device.type == "meta":
        msg = f"{name} must have memory; they are on the device 'meta'"
        raise ValueError(msg)


def _without_zeros(batch: PackedTokens) -> PackedTokens:
    """Leave out rows of zeros, which are padding in a padded tensor."""
    own = batch._without_gaps(wait=True)
    real = (own.tokens != 0).any(1)
    if bool(real.all()):
        return own
    before = torch.cat([real.new_zeros(1, dtype=torch.int64), real.cumsum(0)])
    lengths = before[own.starts + own.lengths] - before[own.starts]
    return PackedTokens(own.tokens[real], lengths.cumsum(0) - lengths, lengths)
