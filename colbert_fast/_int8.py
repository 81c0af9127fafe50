"""int8 tokens with a scale for each: what callers hand in, and what :meth:`PackedTokens.quantize` makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colbert_fast._arrays import float_tensor, tensor_of

# Rows are converted in pieces. The float32 copy of a piece has so many elements, which are 16 MiB.
_CHUNK_ELEMENTS = 2**22


def quantised(rows: Tensor, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``round(row / scale)`` int8 ``[total, dim]``, and ``scale = max(abs(row)) / 127`` float32 ``[total]``.

    Raises ValueError if a row of an item has a NaN or an infinity. Checking this waits for the device.
    """
    total, dim = rows.shape
    tokens = torch.zeros(rows.shape, dtype=torch.int8, device=rows.device)
    scales = torch.zeros(total, device=rows.device, dtype=torch.float32)
    step = max(1, _CHUNK_ELEMENTS // max(1, dim))
    for i in range(0, total if dim else 0, step):
        some = rows[i : i + step].to(torch.float32)
        scale = some.abs().amax(1) / 127
        scales[i : i + step] = scale
        # x / 0 becomes 0. The smallest floats are coarse: such a scale may be less than a 127th of the largest element,
        # and the clamp is for that.
        levels = (some / scale.unsqueeze(1)).nan_to_num_(0.0, 0.0, 0.0).round_().clamp_(-127, 127)
        tokens[i : i + step] = levels.to(torch.int8)
    bad = ~scales.isfinite()
    if bool(bad.any()):
        _check_unused(bad, starts, lengths)
        scales[bad], tokens[bad] = 0, 0
    return tokens, scales


def _check_unused(bad: Tensor, starts: Tensor, lengths: Tensor) -> None:
    """Raise if an item has one of the rows ``bad [total]``."""
    before = torch.nn.functional.pad(bad.cumsum(0), (1, 0))
    hit = before[starts + lengths] > before[starts]
    if bool(hit.any()):
        i = int(hit.int().argmax())
        msg = f"int8 cannot hold a NaN or an infinity, nor what float32 cannot; item {i} has one"
        raise ValueError(msg)


def float_or_int8(value: Any, name: str) -> Tensor:
    """Return ``value`` as a tensor: int8 and floating point as they are, other integers as float32."""
    tensor = tensor_of(value, name)
    return tensor if tensor.dtype is torch.int8 or tensor.is_floating_point() else float_tensor(tensor, name)


def int8_items(items: Sequence[Any]) -> list[Tensor] | None:
    """Return the items as tensors if every item that has elements is int8, and one item at least is; else None."""
    # A list of floats ends this check at its first item.
    if any(not _is_int8(item) and _has_elements(item) for item in items) or not any(map(_is_int8, items)):
        return None
    return [tensor_of(item, f"items[{i}]").to(torch.int8) for i, item in enumerate(items)]


def _is_int8(item: Any) -> bool:
    if isinstance(item, Tensor):
        return item.dtype is torch.int8
    return isinstance(item, np.ndarray) and item.dtype == np.int8


def _has_elements(item: Any) -> bool:
    if isinstance(item, (Tensor, np.ndarray)):
        return 0 not in item.shape
    # A list may hold nothing but empty lists. Anything else counts as an item here, and is refused later.
    return not isinstance(item, (list, tuple)) or any(item)


def scales_of_items(scales: Sequence[Any] | None, items: Sequence[Tensor]) -> Tensor:
    """Join the scales of int8 items, one float32 for each row of each item. Default: 1 for each row."""
    device = items[0].device
    if scales is None:
        return torch.ones(sum(len(item) for item in items), dtype=torch.float32, device=device)
    if not isinstance(scales, (list, tuple)):
        msg = f"scales must be a list with the scales of each item; got {type(scales).__name__}"
        raise TypeError(msg)
    if len(scales) != len(items):
        msg = f"scales must be a list with the scales of each of the {len(items)} items; got {len(scales)}"
        raise ValueError(msg)
    each = [
        scales_of_rows(some, item.shape[:1], f"scales[{i}]")
        for i, (some, item) in enumerate(zip(scales, items, strict=True))
    ]
    return torch.cat([some.to(device) for some in each])


def scales_of_rows(scales: Any, shape: Sequence[int], name: str) -> Tensor:
    """Return scales as a float32 tensor of this shape, one for each row of int8 tokens."""
    tensor = tensor_of(scales, name)
    if tensor.numel() == 0 and 0 in shape:
        return torch.zeros(*shape, dtype=torch.float32, device=tensor.device)
    if tensor.dtype != torch.float32:
        msg = f"{name} must be float32; got {tensor.dtype}"
        raise TypeError(msg)
    if tensor.shape != torch.Size(shape):
        msg = f"{name} must be {list(shape)}, one for each row of tokens; got shape {list(tensor.shape)}"
        raise ValueError(msg)
    return tensor.detach()


def refuse_scales(scales: object, dtype: torch.dtype) -> None:
    """Raise if there are scales for tokens of another type than int8."""
    if scales is not None:
        msg = f"scales go with int8 tokens only; got {dtype}"
        raise ValueError(msg)
