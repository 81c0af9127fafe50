"""The rows of items: item i of a batch is ``lengths[i]`` rows from ``starts[i]`` on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Rows, the items in them, and a bound on the items' lengths."""

    tokens: Tensor
    scales: Tensor | None
    starts: Tensor
    lengths: Tensor
    max_length: int

    def of(self, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """Copy the rows of these numbers, with their scales."""
        scales = None if self.scales is None else self.scales.index_select(0, numbers)
        return self.tokens.index_select(0, numbers), scales


def consecutive(n: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the starts and lengths of n items of one length that follow one another."""
    # Not torch.arange with a step: torch.export would then fix n to be more than one item.
    starts = torch.arange(n, device=device) * length
    return starts, torch.full((n,), length, dtype=torch.int64, device=device)


def rows_in_order(starts: Tensor, lengths: Tensor, total: int) -> Tensor:
    """Return the numbers ``[total]`` int64 of the rows of items, one item after the other.

    ``total`` is the sum of the lengths. A caller that knows it does not wait for the device.
    """
    shift = starts - (lengths.cumsum(0) - lengths)
    return torch.arange(total, device=starts.device) + shift.repeat_interleave(lengths, output_size=total)


def own_rows(batch: Rows) -> Rows:
    """Leave out rows that belong to no item.

    Views the rows from the first item to the last one, or copies the items if they have fewer rows than that. Waits
    for the device of the batch, to know how many rows there are.

    Raises
    ------
    ValueError
        An item outside of the rows.
    """
    tokens, scales, starts, lengths, _ = batch
    # These are copies, so that nobody writes to them between the check and the use.
    starts, lengths = starts.clone(), lengths.clone()
    if len(lengths) == 0:
        return Rows(tokens[:0], None if scales is None else scales[:0], starts, lengths, 0)
    some = lengths > 0
    ends = torch.where(some, starts + lengths, 0)
    # An item without rows may lie anywhere.
    bounds = (torch.where(some, starts, len(tokens)).min(), torch.where(some, starts, 0).max(), ends.max())
    numbers = torch.stack([lengths.min(), lengths.max(), lengths.sum(), *bounds]).tolist()
    shortest, longest, total, first, last_start, last = numbers
    if shortest < 0 or first < 0 or max(longest, last_start, last) > len(tokens):
        msg = "an item lies outside of the rows: somebody wrote to starts or lengths"
        raise ValueError(msg)
    if last - first <= total:
        moved = torch.where(some, starts - first, 0)
        return Rows(tokens[first:last], None if scales is None else scales[first:last], moved, lengths, longest)
    moved = lengths.cumsum(0) - lengths
    return Rows(*batch.of(rows_in_order(starts, lengths, total)), moved, lengths, longest)


def in_order(batch: Rows) -> Rows:
    """Leave out rows that belong to no item, and put the items one after the other. Raises and waits as `own_rows`.

    Views the rows if the items follow one another already.
    """
    own = own_rows(batch)
    moved = own.lengths.cumsum(0) - own.lengths
    if bool(((own.starts == moved) | (own.lengths == 0)).all()):
        return own._replace(starts=moved)
    return Rows(*own.of(rows_in_order(own.starts, own.lengths, int(own.lengths.sum()))), moved, *own[3:])


def few_rows(batch: Rows) -> Rows:
    """Leave out rows that belong to no item, without waiting for the device: each item takes ``max_length`` rows.

    The rows after the end of an item then belong to no item. A batch that has no more rows than this is returned
    unchanged.
    """
    n, rows = len(batch.lengths), len(batch.tokens)
    if n * batch.max_length >= rows:
        return batch
    numbers = _row_numbers(batch, batch.max_length).flatten()
    starts, _ = consecutive(n, batch.max_length, batch.tokens.device)
    return Rows(*batch.of(numbers), starts, batch.lengths, batch.max_length)


def check_alike(batches: Mapping[str, Rows]) -> None:
    """Raise unless the rows of all batches fit into one matrix. ``batches`` has them by name for the message.

    A batch without rows fits any other in dim and dtype.
    """
    first, like = next(((name, b) for name, b in batches.items() if len(b.tokens)), next(iter(batches.items())))
    for name, batch in batches.items():
        mine, its = batch.tokens, like.tokens
        if len(mine) and mine.shape[1] != its.shape[1]:
            msg = f"all batches need the same dim; got {name} [*, {mine.shape[1]}] beside {first} [*, {its.shape[1]}]"
            raise ValueError(msg)
        if len(mine) and mine.dtype != its.dtype:
            msg = f"all batches need the same dtype; got {name} {mine.dtype} beside {first} {its.dtype}"
            raise TypeError(msg)
        if mine.device != its.device:
            msg = f"all batches need the same device; got {name} on {mine.device} beside {first} on {its.device}"
            raise ValueError(msg)


def concatenated(batches: Sequence[Rows]) -> Rows:
    """Copy one or more batches that are alike into one batch."""
    like = next((batch for batch in batches if len(batch.tokens)), batches[0])
    dim = like.tokens.shape[1] or max(batch.tokens.shape[1] for batch in batches)
    each = [b.tokens if len(b.tokens) else b.tokens.reshape(0, dim).to(like.tokens.dtype) for b in batches]
    scales = None
    if like.scales is not None:
        scales = torch.cat([like.scales[:0] if batch.scales is None else batch.scales for batch in batches])
    firsts = accumulate([0, *(len(batch.tokens) for batch in batches)])
    starts = torch.cat([batch.starts + first for batch, first in zip(batches, firsts, strict=False)])
    lengths = torch.cat([batch.lengths for batch in batches])
    return Rows(torch.cat(each), scales, starts, lengths, max(batch.max_length for batch in batches))


def alone(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy if its memory holds other elements too."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return tensor
    if tensor.untyped_storage().nbytes() <= tensor.numel() * tensor.element_size():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def padded(batch: Rows, length: int) -> tuple[Tensor, Tensor]:
    """Return the items as ``[n, length, dim]`` with rows of zeros after each item, and the mask of rows of items.

    int8 rows become what they stand for, in float32. No item is longer than ``length``. Does not wait for the device.
    """
    mask = torch.arange(length, device=batch.lengths.device) < batch.lengths.unsqueeze(1)
    if len(batch.tokens) == 0:
        # There is no row to copy. The graph of autograd still leads to the tokens.
        one = torch.cat([batch.tokens, batch.tokens.new_zeros(1, batch.tokens.shape[1])])
        scales = None if batch.scales is None else batch.scales.new_zeros(1)
        batch = batch._replace(tokens=one, scales=scales)
    rows, scales = batch.of(_row_numbers(batch, length).flatten())
    if scales is not None:
        rows = rows * scales.unsqueeze(1)
    rows = rows.view(*mask.shape, rows.shape[1])
    return rows.masked_fill_(mask.logical_not().unsqueeze(2), 0), mask


def _row_numbers(batch: Rows, length: int) -> Tensor:
    """Return the numbers ``[n, length]`` of the rows from the start of each item on, none beyond the last row."""
    position = torch.arange(length, device=batch.starts.device)
    return (batch.starts.unsqueeze(1) + position).clamp(0, len(batch.tokens) - 1)
