"""Bounds of scores on another device than the CPU: the codes pass through it, some items at a time.

There are two slots. While the device works on the items in one slot, the items after them are copied into the other
one: first into pinned memory, by the CPU, and from there by the GPU itself, on a stream of its own. A slot of pinned
memory is filled again when it has been copied, and a slot of the device when the bounds of its items are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, cuda

from colbert_fast import _upper
from colbert_fast._codecs import Codes
from colbert_fast._spans import rows_in_order
from colbert_fast.packed import PackedTokens

# The rows of a slot have so many bytes, unless one item has more. A GPU copies them in about 2 ms.
_SLOT_BYTES = 2**25
# Tensors in a slot begin at multiples of this.
_ALIGNMENT = 256


def upper_bounds(queries: PackedTokens, codes: Codes, device: torch.device, backend: str | None = None) -> Tensor:
    """Bound every score from above, on ``device``: as :func:`colbert_fast._upper.upper_bounds`, for codes on the CPU.

    Returns
    -------
    torch.Tensor
        ``[A, n]`` float32, on the CPU.
    """
    queries = _upper.checked(queries, codes).to(device)
    slots = _Slots(device)
    bounds = [torch.empty((len(queries), 0), dtype=torch.float32, device=device)]
    for first, last in _pieces(codes):
        bounds.append(_upper.bounded(queries, slots.moved(codes, first, last), backend))
        slots.done()
    return torch.cat(bounds, dim=1).cpu()


def _pieces(codes: Codes) -> Iterator[tuple[int, int]]:
    """Cut the items into runs that fit into a slot, or of one item."""
    row = codes.levels.shape[1] * (1 if codes.low is None else 2) + 4
    most = max(1, _SLOT_BYTES // row)
    ends = codes.lengths.cumsum(0)
    first, before = 0, 0
    while first < len(codes):
        last = max(first + 1, int(torch.searchsorted(ends, before + most, right=True)))
        yield first, last
        first, before = last, int(ends[last - 1])


class _Slots:
    """Two slots of pinned memory, and two of the device. Devices without CUDA have no use for streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._count = 0
        self._here: list[Tensor | None] = [None, None]
        self._there: list[Tensor | None] = [None, None]
        if self._cuda:
            self._computing = cuda.current_stream(device)
            self._copying = cuda.Stream(device)
            self._copied = [cuda.Event(), cuda.Event()]
            self._used = [cuda.Event(), cuda.Event()]

    def moved(self, codes: Codes, first: int, last: int) -> Codes:
        """Return the codes of some items on the device, where they stay until the call after the next."""
        slot = self._count % 2
        size, places, tensors = _layout(codes, first, last)
        here, there = self._room(slot, size)
        if self._cuda and self._count > 1:
            self._copied[slot].synchronize()
        for name, tensor in tensors.items():
            _fill(_at(here, *places[name]), tensor)
        if not self._cuda:
            there[:size].copy_(here[:size])
        else:
            with cuda.stream(self._copying):
                if self._count > 1:
                    self._copying.wait_event(self._used[slot])
                there[:size].copy_(here[:size], non_blocking=True)
                self._copied[slot].record(self._copying)
            self._computing.wait_event(self._copied[slot])
        moved = {name: _at(there, *place) for name, place in places.items()}
        return Codes(bits=codes.bits, dim=codes.dim, seed=codes.seed, **moved)

    def done(self) -> None:
        """Say that the work on what the last call of ``moved`` returned has been given to the device."""
        if self._cuda:
            self._used[self._count % 2].record(self._computing)
        self._count += 1

    def _room(self, slot: int, size: int) -> tuple[Tensor, Tensor]:
        here, there = self._here[slot], self._there[slot]
        if here is None or there is None or len(here) < size:
            here = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=self._cuda)
            there = torch.empty(size, dtype=torch.uint8, device=self._device)
            if self._cuda:
                # The memory may be that of a tensor on which the device still works.
                self._copying.wait_stream(self._computing)
                there.record_stream(self._copying)
            self._here[slot], self._there[slot] = here, there
        return here, there


def _layout(codes: Codes, first: int, last: int) -> tuple[int, dict[str, tuple[Any, ...]], dict[str, Any]]:
    """Return how the tensors of some items lie in a slot, one item after the other.

    Returns
    -------
    size, places, tensors
        Bytes; for each tensor of the codes its first byte, shape and dtype; and for each tensor what it is: a tensor,
        or a tensor and the numbers of its rows.
    """
    starts, lengths = codes.starts[first:last], codes.lengths[first:last]
    before = lengths.cumsum(0) - lengths
    total = int(lengths.sum())
    start = int(starts[0])
    rows: Any = slice(start, start + total)
    if not torch.equal(starts, before + start):
        rows = rows_in_order(starts, lengths, total)
    tensors: dict[str, Any] = {"norms": codes.norms[first:last], "starts": before, "lengths": lengths}
    for name in ("levels", "multipliers", "slack", "low"):
        tensor = getattr(codes, name)
        if tensor is not None:
            tensors[name] = tensor[rows] if isinstance(rows, slice) else (tensor, rows)
    size, places = 0, {}
    for field in fields(codes):
        if field.name in tensors:
            of_rows = tensors[field.name]
            tensor, count = (of_rows[0], total) if isinstance(of_rows, tuple) else (of_rows, len(of_rows))
            places[field.name] = (size, (count, *tensor.shape[1:]), tensor.dtype)
            bytes_ = math.prod(places[field.name][1]) * tensor.dtype.itemsize
            size += -(-bytes_ // _ALIGNMENT) * _ALIGNMENT
    return size, places, tensors


def _at(slot: Tensor, begin: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return slot[begin : begin + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


def _fill(to: Tensor, source: Tensor | tuple[Tensor, Tensor]) -> None:
    if isinstance(source, tuple):
        torch.index_select(source[0], 0, source[1], out=to)
    else:
        to.copy_(source)
