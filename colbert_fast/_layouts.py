"""The layouts in which callers hand in embeddings, each turned into the rows and the items of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from colbert_fast._arrays import alike, bool_mask, checked_scales, tensors_and_counts
from colbert_fast._extension import _C
from colbert_fast._forks import safe_after_fork
from colbert_fast._int8 import float_or_int8, int8_items, refuse_scales, scales_of_items, scales_of_rows
from colbert_fast._spans import Rows, consecutive
from colbert_fast._torch_modes import unwatched


@safe_after_fork
def checked_rows(tokens: Tensor, starts: Tensor, lengths: Tensor, scales: Tensor | None) -> tuple[Rows, bool]:
    """Check rows and items of a caller, and copy the offsets. Returns the rows, and whether the lengths differ."""
    for name, value in (("tokens", tokens), ("starts", starts), ("lengths", lengths)):
        if not isinstance(value, Tensor):
            msg = f"{name} must be a tensor; got {type(value).__name__}"
            raise TypeError(msg)
    scales = checked_scales(scales, tokens)
    if tokens.ndim != 2:
        msg = f"tokens must be [total, dim]; got shape {list(tokens.shape)}"
        raise ValueError(msg)
    for name, value in (("starts", starts), ("lengths", lengths)):
        if value.layout != torch.strided:
            msg = f"{name} must be a dense tensor; got layout {value.layout}"
            raise TypeError(msg)
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            msg = f"{name} must be integer; got {value.dtype}"
            raise TypeError(msg)
    if starts.ndim != 1 or starts.shape != lengths.shape:
        msg = f"starts and lengths must be [n] both; got shapes {list(starts.shape)} and {list(lengths.shape)}"
        raise ValueError(msg)
    starts, lengths = (
        t.to(device=tokens.device, dtype=torch.int64, copy=True, memory_format=torch.contiguous_format)
        for t in (starts, lengths)
    )
    shortest, longest = _shortest_and_longest(tokens, starts, lengths)
    return Rows(tokens, scales, starts, lengths, longest), shortest < longest


def _shortest_and_longest(tokens: Tensor, starts: Tensor, lengths: Tensor) -> tuple[int, int]:
    """Return bounds on the lengths. Raises ValueError if an item is outside of ``tokens``; waits for the device."""
    total = tokens.shape[0]
    if len(lengths) == 0:
        return 0, 0
    if tokens.is_meta:  # there are no numbers to check
        return total, total
    outside = (starts < 0) | (lengths < 0) | (lengths > total) | (starts > total - lengths)
    if bool(outside.any()):
        i = int(outside.int().argmax())
        msg = f"item {i} has start {int(starts[i])} and length {int(lengths[i])}; tokens has {total} rows"
        raise ValueError(msg)
    shortest, longest = (int(bound) for bound in torch.aminmax(lengths))
    return shortest, longest


def rows_of_items(items: Sequence[Any], scales: Sequence[Any] | None) -> tuple[Rows, bool]:
    """Join items; int8 items stay int8. Returns the rows, and whether the lengths of the items differ."""
    coded = int8_items(items)
    if coded is None:
        rows, ragged = rows_of_floats(items, "items")
        refuse_scales(scales, rows.tokens.dtype)
        return rows, ragged
    coded = alike(coded, "items")
    return _joined(coded, [len(item) for item in coded], scales_of_items(scales, coded))


def rows_of_floats(items: Sequence[Any], name: str) -> tuple[Rows, bool]:
    """Join items of a list that the caller calls ``name``; integers become float32."""
    tensors, counts = tensors_and_counts(items, name)
    if not tensors:
        return uniform_rows(torch.zeros(0, 0, 0, device="cpu")), False
    if counts is None:
        tensors = alike(tensors, name)
        counts = [t.shape[0] for t in tensors]
    return _joined(tensors, counts)


def _joined(items: Sequence[Tensor], counts: list[int], scales: Tensor | None = None) -> tuple[Rows, bool]:
    tokens = torch.cat(items)  # type: ignore[arg-type]
    if scales is not None:
        scales = checked_scales(scales, tokens)
    lengths = torch.tensor(counts, dtype=torch.int64, device="cpu")
    starts = lengths.cumsum(0) - lengths
    starts, lengths = starts.to(tokens.device), lengths.to(tokens.device)
    return Rows(tokens, scales, starts, lengths, max(counts)), min(counts) < max(counts)


def rows_of_padded(tokens: Any, mask: Any, scales: Any) -> Rows:
    """Lower what should be ``tokens [n, length, dim]``, with a mask or None, and scales or None if int8."""
    tokens = float_or_int8(tokens, "tokens")
    if tokens.ndim != 3:
        msg = f"tokens must be [n, length, dim]; got shape {list(tokens.shape)}"
        raise ValueError(msg)
    n, length, _ = tokens.shape
    keep = None if mask is None else bool_mask(mask, n, length, tokens.device, "mask")
    each = None
    if tokens.dtype != torch.int8:
        refuse_scales(scales, tokens.dtype)
    elif scales is None:
        each = torch.ones(n, length, dtype=torch.float32, device=tokens.device)
    else:
        each = scales_of_rows(scales, tokens.shape[:2], "scales").to(tokens.device)
        if keep is not None:
            each = torch.where(keep, each, 0)  # the scale of a row of padding may be anything
    rows = uniform_rows(tokens, each) if keep is None else masked_rows(tokens, keep, each)
    return rows if scales is None else rows._replace(scales=checked_scales(rows.scales, rows.tokens))


def uniform_rows(tokens: Tensor, scales: Tensor | None = None) -> Rows:
    """View ``tokens [n, length, dim]``, where every row is a token; int8 tokens have ``scales [n, length]``."""
    n, length, _ = tokens.shape
    flat = None if scales is None else scales.flatten()
    return Rows(tokens.flatten(0, 1), flat, *consecutive(n, length, tokens.device), length)


def masked_rows(tokens: Tensor, keep: Tensor, scales: Tensor | None = None) -> Rows:
    """Lower ``tokens [n, length, dim]`` with ``keep [n, length]`` bool, int8 with ``scales [n, length]``.

    Most masks keep one run of rows (padding on the right or on the left), and then no row is copied. Only the extension
    can find the runs, and only in CPU memory outside of torch.compile; elsewhere the kept rows are moved to the front.
    """
    n, length, _ = tokens.shape
    if _C is not None and unwatched(tokens, keep, cuda=False):
        keep = keep.contiguous()
        starts, counts = torch.empty((2, n), dtype=torch.int64, device="cpu").unbind()
        if _C.runs_of_mask(keep, starts, counts):
            return Rows(tokens.flatten(0, 1), None if scales is None else scales.flatten(), starts, counts, length)
    counts = keep.sum(1)
    starts, _ = consecutive(n, length, tokens.device)
    order = torch.argsort(keep.logical_not().to(torch.uint8), dim=1, stable=True)
    # Not gather, which copies one element at a time.
    moved = tokens.flatten(0, 1).index_select(0, (order + starts.unsqueeze(1)).flatten())
    return Rows(moved, None if scales is None else scales.gather(1, order).flatten(), starts, counts, length)


def nested_parts(nested: Tensor, scales: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the rows of a jagged nested tensor ``[n, (length), dim]``, and starts, lengths and scales, unchecked."""
    if not (isinstance(nested, Tensor) and nested.is_nested and nested.layout == torch.jagged):
        msg = f"nested must be a torch.nested tensor with layout=torch.jagged; got {_describe(nested)}"
        raise TypeError(msg)
    if nested.ndim != 3 or getattr(nested, "_ragged_idx", 1) != 1:
        msg = f"nested must be [n, (length), dim], ragged in its second dimension; got {nested.ndim}-D"
        raise ValueError(msg)
    offsets: Tensor = nested.offsets()  # type: ignore[attr-defined]
    gaps: Tensor | None = nested.lengths()  # type: ignore[attr-defined]
    starts = offsets[:-1].to(torch.int64)
    lengths = offsets.diff() if gaps is None else gaps
    values = float_or_int8(nested.values(), "nested")
    if values.dtype != torch.int8:
        refuse_scales(scales, values.dtype)
        return values, starts, lengths, None
    if scales is None:
        return values, starts, lengths, torch.ones(len(values), dtype=torch.float32, device=values.device)
    flat = scales.values() if isinstance(scales, Tensor) and scales.is_nested else scales
    return values, starts, lengths, scales_of_rows(flat, values.shape[:1], "scales")


def _describe(value: object) -> str:
    return f"{value.layout} tensor" if isinstance(value, Tensor) else type(value).__name__
