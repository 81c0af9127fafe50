"""PackedTokens, the ragged batch that every kernel sees, and the lowering of every layout to it.

This is the only file that knows layouts. To add one, add a ``from_*`` and a branch of :func:`lower`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from colbert_fast._arrays import Mask, alike, bool_mask, checked_scales, float_tensor, tensors_and_counts
from colbert_fast._extension import _C
from colbert_fast._forks import safe_after_fork
from colbert_fast._observers import has_tangent, plain, unwatched

Tokens: TypeAlias = "PackedTokens | Tensor | np.ndarray[Any, Any] | Sequence[Any]"

# Of the float32 copy that quantize makes of a piece: 16 MiB.
_CHUNK_ELEMENTS = 2**22
# Padded batches of up to so many items, whose offsets are kept for the next one of the same shape.
_FEW_ITEMS = 4096
# Device types whose kernels take items in a given order. The threads of a CPU cut the work themselves.
_ORDERED_ON = ("cuda",)


class PackedTokens:
    """A ragged batch of token embeddings: item ``i`` is ``tokens[starts[i] : starts[i] + lengths[i]]``.

    Build it once to score it many times. Every row inside an item is a token, rows of zeros included. Items may
    leave gaps between them and may share rows. The fields are read-only, and ``starts`` and ``lengths`` are copies of
    what was given. Do not write to their elements either: offsets that do not fit are refused when they are scored.

    Parameters
    ----------
    tokens
        ``[total, dim]``, floating point, or int8 with ``scales``; any device.
    starts
        ``[n]``, integer: the first row of each item.
    lengths
        ``[n]``, integer: the number of rows of each item, 0 allowed.
    scales
        ``[total]`` float32, finite, 0 or more, with int8 ``tokens`` only: row r stands for ``scales[r] * tokens[r]``.
        :meth:`quantize` makes such a batch. It can be scored as documents, not as queries.

    Raises
    ------
    TypeError
        A tensor of the wrong kind, or int8 without scales.
    ValueError
        A shape that does not fit, an item outside ``tokens``, or a bad scale. Checking this waits for the device.
    """

    # Whether a kernel need not read where the items are: all of one length, they follow one another.
    _equal = False

    def __init__(
        self,
        tokens: Tensor,
        starts: Tensor,
        lengths: Tensor,
        scales: Tensor | None = None,
        *,
        _trusted: tuple[int, Tensor | None] | None = None,
    ) -> None:
        # The lowerings are right by construction, and must not wait for a device: they pass (max_length, order).
        if _trusted is None:
            starts, lengths, scales, _trusted = self._checked(tokens, starts, lengths, scales)
        self._tokens = tokens
        self._starts = starts
        self._lengths = lengths
        self._scales = scales
        # [n] int32, of items of different lengths on a GPU: their numbers, longest first. Made with the batch on the
        # same stream, it lives as long, which a CUDA graph relies on. For speed only: any order of all items gives the
        # same scores, so it may stay as it is if someone writes to the lengths.
        self._max_length, self._order = _trusted

    @staticmethod
    @safe_after_fork
    def _checked(
        tokens: Tensor, starts: Tensor, lengths: Tensor, scales: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, Tensor | None]]:
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
        total = tokens.shape[0]
        shortest = longest = 0
        if len(lengths):
            outside = (starts < 0) | (lengths < 0) | (lengths > total) | (starts > total - lengths)
            if bool(outside.any()):
                i = int(outside.int().argmax())
                msg = f"item {i} has start {int(starts[i])} and length {int(lengths[i])}; tokens has {total} rows"
                raise ValueError(msg)
            shortest, longest = (int(bound) for bound in torch.aminmax(lengths))
        order = _longest_first(lengths) if shortest < longest else None
        return starts, lengths, scales, (longest, order)

    @property
    def tokens(self) -> Tensor:
        """``[total, dim]``: the rows of all items, and perhaps others."""
        return self._tokens

    @property
    def starts(self) -> Tensor:
        """``[n]`` int64: the first row of each item."""
        return self._starts

    @property
    def lengths(self) -> Tensor:
        """``[n]`` int64: the number of rows of each item."""
        return self._lengths

    @property
    def scales(self) -> Tensor | None:
        """``[total]`` float32 if ``tokens`` is int8, else None: row r stands for ``scales[r] * tokens[r]``."""
        return self._scales

    @property
    def max_length(self) -> int:
        """No item is longer. Known without asking the device."""
        return self._max_length

    @classmethod
    @safe_after_fork
    def from_list(cls, items: Sequence[Any]) -> PackedTokens:
        """Copy a list of embeddings into one matrix.

        Parameters
        ----------
        items
            Tensors, arrays or nested lists, each ``[length, dim]`` with the same dim, dtype and device;
            length may be 0. Integers become float32. Gradients flow back to each item.

        Raises
        ------
        TypeError
            An item that is no array, or items of different dtypes.
        ValueError
            An item that is not 2-D, or items of different dims or devices.
        """
        return cls._joined(items, "items")

    @classmethod
    def _joined(cls, items: Sequence[Any], name: str) -> PackedTokens:
        """:meth:`from_list` of what the caller calls ``name``."""
        tensors, counts = tensors_and_counts(items, name)
        if not tensors:
            return cls._uniform(torch.zeros(0, 0, 0, device="cpu"))
        if counts is None:
            tensors = alike(tensors, name)
            counts = [t.shape[0] for t in tensors]
        tokens = torch.cat(tensors)  # type: ignore[arg-type]
        lengths = torch.tensor(counts, dtype=torch.int64, device="cpu")
        starts = lengths.cumsum(0) - lengths
        starts, lengths = starts.to(tokens.device), lengths.to(tokens.device)
        order = _longest_first(lengths) if min(counts) < max(counts) else None
        return cls(tokens, starts, lengths, _trusted=(max(counts), order))

    @classmethod
    @safe_after_fork
    def from_padded(cls, tokens: Any, mask: Mask | None = None) -> PackedTokens:
        """View a padded batch; no copy unless the mask has holes, is on a GPU, or there is no C++ extension.

        Parameters
        ----------
        tokens
            ``[n, length, dim]`` tensor or array.
        mask
            ``[n, length]`` or ``[1, length]``, true or non-zero where a row is a token, or a list of n 1-D
            masks. None: every row is a token.

        Raises
        ------
        TypeError
            Not an array, or not numbers.
        ValueError
            Not 3-D, or a mask of another shape.
        """
        tokens = float_tensor(tokens, "tokens")
        if tokens.ndim != 3:
            msg = f"tokens must be [n, length, dim]; got shape {list(tokens.shape)}"
            raise ValueError(msg)
        if mask is None:
            return cls._uniform(tokens)
        packed = _mask_rows(tokens, bool_mask(mask, tokens.shape[0], tokens.shape[1], tokens.device, "mask"))
        packed._order = _longest_first(packed.lengths)
        return packed

    @classmethod
    @safe_after_fork
    def from_nested(cls, nested: Tensor) -> PackedTokens:
        """View a jagged ``torch.nested`` tensor ``[n, (length), dim]``; no copy.

        Raises
        ------
        TypeError
            Not a nested tensor of ``torch.jagged`` layout.
        ValueError
            Not 3-D, or ragged in another dimension than the second.
        """
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
        return cls(nested.values(), starts, lengths)

    @staticmethod
    def _uniform(tokens: Tensor) -> PackedTokens:
        """View ``tokens [n, length, dim]``, every row of which is a token."""
        n, length, _ = tokens.shape
        starts, lengths = _offsets(n, length, tokens.device)
        return PackedTokens(tokens.flatten(0, 1), starts, lengths, _trusted=(length, None))

    def __len__(self) -> int:
        return self.starts.shape[0]

    @safe_after_fork
    def __getitem__(self, index: int | slice) -> Any:
        """Item ``index`` as ``[length, dim]``, or with a slice those items as PackedTokens; both share the rows.

        An item of int8 tokens is what they stand for, in float32, and shares nothing.
        """
        if isinstance(index, slice):
            # The kernels read one number after the other, and a step leaves some out.
            starts, lengths = self.starts[index].contiguous(), self.lengths[index].contiguous()
            return PackedTokens(self.tokens, starts, lengths, self.scales, _trusted=(self.max_length, None))
        index = int(index)
        if not -len(self) <= index < len(self):
            msg = f"index {index} is out of range for {len(self)} items"
            raise IndexError(msg)
        start, length = int(self.starts[index]), int(self.lengths[index])
        rows = self.tokens.narrow(0, start, length)
        return rows if self.scales is None else rows * self.scales.narrow(0, start, length).unsqueeze(1)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    @safe_after_fork
    def with_tokens(self, tokens: Tensor, scales: Tensor | None = None) -> PackedTokens:
        """Return the same items over other rows: of another dim or dtype, quantised or projected.

        Parameters
        ----------
        tokens
            ``[total, dim']``, floating point or int8, on the same device, with as many rows as ``self.tokens``.
        scales
            As for the constructor.
        """
        if tokens.ndim != 2 or tokens.shape[0] != self.rows or tokens.device != self.device:
            got = f"shape {list(tokens.shape)} on {tokens.device}"
            msg = f"tokens must be [{self.rows}, dim] on {self.device}; got {got}"
            raise ValueError(msg)
        scales = checked_scales(scales, tokens)
        return PackedTokens(tokens, self.starts, self.lengths, scales, _trusted=(self.max_length, self._order))

    @safe_after_fork
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PackedTokens:
        """Return this batch on another device, in another floating dtype, or both; this undoes :meth:`quantize`."""
        device = self.device if device is None else torch.device(device)
        if device == self.device and dtype in (None, self.dtype):
            return self
        if dtype not in (None, self.dtype) and not dtype.is_floating_point:
            hint = '; quantize("int8") makes int8' if dtype == torch.int8 else ""
            msg = f"dtype must be floating point; got {dtype}{hint}"
            raise TypeError(msg)
        scales = self.scales
        tokens = self.tokens
        if scales is not None and dtype not in (None, self.dtype):
            wide = scales.double() if dtype == torch.float64 else scales
            tokens, scales = tokens * wide.unsqueeze(1), None
        tokens = tokens.to(device=device, dtype=dtype)
        scales = None if scales is None else scales.to(device)
        starts, lengths, order = self.starts.to(device), self.lengths.to(device), self._order
        if order is not None:
            order = order.to(device)
        elif self.lengths.is_cpu and len(self) and int(self.lengths.min()) < self.max_length:
            order = _longest_first(lengths)
        return PackedTokens(tokens, starts, lengths, scales, _trusted=(self.max_length, order))

    @safe_after_fork
    def quantize(self, dtype: Literal["int8"] = "int8") -> PackedTokens:
        """Return these documents with int8 tokens and one float32 scale per token: a quarter of the memory of float32.

        Symmetric: row x becomes ``round(x / scale)`` with ``scale = max(abs(x)) / 127``, halves to even; a row of
        zeros has scale 0. Queries stay float32, bfloat16 or float16, and no gradient flows to the documents.

        Parameters
        ----------
        dtype
            ``"int8"``; nothing else so far.

        Raises
        ------
        ValueError
            Another ``dtype``; or a token with a NaN or an infinity, which int8 cannot hold (rows that belong to no
            item may have them). Checking this waits for the device.

        Notes
        -----
        Scores are within 1e-5 of float64 on the values that the int8 tokens stand for. These differ from the originals
        by at most ``scale / 2`` an element: for all-MiniLM-L6-v2 on Cranfield and Medline the score of a query token
        by 1e-4 in the mean and 1.8e-3 at most, the ranking by a Kendall tau of 0.9989 and 0.9988, and nDCG@10 from
        0.4004 to 0.4002 and from 0.7922 to 0.7911 (``python -m benchmarks.accuracy``, with the collections' folders).
        """
        if dtype != "int8":
            msg = f'dtype must be "int8"; got {dtype!r}'
            raise ValueError(msg)
        if self.scales is not None:
            return self
        rows = self.tokens.detach()
        tokens = torch.zeros(rows.shape, dtype=torch.int8, device=rows.device)
        scales = torch.zeros(rows.shape[0], device=rows.device, dtype=torch.float32)
        step = max(1, _CHUNK_ELEMENTS // max(1, self.dim))
        for i in range(0, rows.shape[0] if self.dim else 0, step):
            some = rows[i : i + step].to(torch.float32)
            scale = some.abs().amax(1) / 127
            scales[i : i + step] = scale
            # x / 0 becomes 0. A scale among the smallest floats is a coarse 127th of the largest element.
            levels = (some / scale.unsqueeze(1)).nan_to_num_(0.0, 0.0, 0.0).round_().clamp_(-127, 127)
            tokens[i : i + step] = levels.to(torch.int8)
        bad = ~scales.isfinite()
        if bool(bad.any()):
            self._check_unused(bad)
            scales[bad], tokens[bad] = 0, 0
        return PackedTokens(tokens, self.starts, self.lengths, scales, _trusted=(self.max_length, self._order))

    def _check_unused(self, bad: Tensor) -> None:
        """Raise if an item has one of the rows ``bad [total]``."""
        before = torch.nn.functional.pad(bad.cumsum(0), (1, 0))
        hit = before[self.starts + self.lengths] > before[self.starts]
        if bool(hit.any()):
            i = int(hit.int().argmax())
            msg = f"int8 cannot hold a NaN or an infinity, nor what float32 cannot; item {i} has one"
            raise ValueError(msg)

    @property
    def rows(self) -> int:
        """Number of rows, those of no item included."""
        return self.tokens.shape[0]

    @property
    def dim(self) -> int:
        """Size of one embedding."""
        return self.tokens.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the embeddings."""
        return self.tokens.dtype

    @property
    def device(self) -> torch.device:
        """Where the embeddings are; starts and lengths are there too."""
        return self.tokens.device

    def __repr__(self) -> str:
        rows, dim = self.tokens.shape
        return f"PackedTokens({len(self)} items, {rows} rows, dim {dim}, {self.dtype}, {self.device})"


class EqualTokens(PackedTokens):
    """A padded batch on a GPU. Whoever asks for ``starts`` and ``lengths`` makes them.

    Made by :func:`lower` for the length of one call: a later one could be on another stream, or outside of the CUDA
    graph in whose memory they were made.
    """

    _equal = True

    def __init__(self, tokens: Tensor) -> None:
        self._count, self._max_length, _ = tokens.shape
        self._tokens = tokens.flatten(0, 1)
        self._scales = None
        self._order = None

    @cached_property
    def _lengths(self) -> Tensor:  # type: ignore[override]
        return torch.full((self._count,), self.max_length, dtype=torch.int64, device=self.device)

    @cached_property
    def _starts(self) -> Tensor:  # type: ignore[override]
        return torch.arange(0, self.rows, self.max_length, device=self.device)

    def __len__(self) -> int:
        return self._count


class TokenList(PackedTokens):
    """A list of matrices in CPU memory that are scored where they lie. Whoever asks for ``tokens`` joins them.

    Made by :func:`lower` for the length of one call.
    """

    items: Sequence[Tensor]

    def __init__(self, items: Sequence[Tensor], lengths: Tensor, max_length: int, like: Tensor) -> None:
        self.items = items
        self.like = like
        self._lengths = lengths
        self._max_length = max_length
        self._scales = None
        self._order = None

    @cached_property
    def _tokens(self) -> Tensor:  # type: ignore[override]
        return torch.cat([self.like, *self.items])

    @cached_property
    def _starts(self) -> Tensor:  # type: ignore[override]
        return self.lengths.cumsum(0) - self.lengths

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return TokenList(self.items[index], self.lengths[index].contiguous(), self.max_length, self.like)
        return self.items[index]

    @property
    def rows(self) -> int:
        return int(self.lengths.sum())

    @property
    def dim(self) -> int:
        return self.like.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        return self.like.device


def lower(value: Tokens, mask: Mask | None, name: str, *, join: bool = True) -> tuple[PackedTokens, bool]:
    """Lower any accepted layout to PackedTokens; with ``join=False`` a list may become a :class:`TokenList`.

    Returns
    -------
    batch, skip_zero
        The batch; and whether rows of zeros in it are padding, as they are in a padded tensor without a mask.
    """
    if isinstance(value, PackedTokens):
        if mask is not None:
            msg = f"{name}_mask cannot go with a PackedTokens, which has no padding: leave the rows out instead"
            raise ValueError(msg)
        return value, False
    if isinstance(value, (list, tuple)):
        if mask is not None:
            return _mask_list(value, mask, name), False
        return (PackedTokens._joined(value, name) if join else _lower_list(value, name)), False
    if isinstance(value, Tensor) and value.is_nested:
        if mask is not None:
            msg = f"{name}_mask cannot go with a nested tensor, which has no padding"
            raise ValueError(msg)
        return PackedTokens.from_nested(value), False
    tokens = float_tensor(value, name)
    if tokens.ndim == 2:
        tokens = tokens.unsqueeze(0)
    if tokens.ndim != 3:
        msg = (
            f"{name} must be a list of [length, dim], or [n, length, dim], or one [length, dim]; "
            f"got shape {list(tokens.shape)}"
        )
        raise ValueError(msg)
    if mask is None:
        n, length, _ = tokens.shape
        if tokens.is_cuda and n * length > 0 and unwatched(tokens):
            return EqualTokens(tokens), True
        # In this order: torch.export leaves n open, and must not decide anything about it.
        if not plain(tokens) or n > _FEW_ITEMS:
            return PackedTokens._uniform(tokens), True
        return PackedTokens(tokens.flatten(0, 1), *_shared_offsets(n, length), _trusted=(length, None)), True
    keep = bool_mask(mask, tokens.shape[0], tokens.shape[1], tokens.device, f"{name}_mask")
    return _mask_rows(tokens, keep), False


def _offsets(n: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the starts and lengths of n items of one length that follow one another."""
    lengths = torch.full((n,), length, dtype=torch.int64, device=device)
    return _multiples(n, length, device), lengths


def _multiples(n: int, length: int, device: torch.device) -> Tensor:
    """Return 0, length, 2 length, and so on. Not as a range with a step, which torch.export ties to more than one n."""
    return torch.arange(n, device=device) * length


@lru_cache(maxsize=64)
def _shared_offsets(n: int, length: int) -> tuple[Tensor, Tensor]:
    """The same on the CPU, made once: 2 of the 15 us of a small call. Not for batches that anybody could write to."""
    with torch.inference_mode(False):
        return _offsets(n, length, torch.device("cpu"))


def _longest_first(lengths: Tensor) -> Tensor | None:
    """Return the order in which a GPU should take the items, if they are on one; does not wait for it.

    Its programs start in turn as others end: a long item that starts last is waited for by all.
    """
    if lengths.device.type not in _ORDERED_ON:
        return None
    return lengths.argsort(descending=True).to(torch.int32)


def _lower_list(items: Sequence[Any], name: str) -> PackedTokens:
    """Leave the items where they are, if nothing but a kernel on this CPU will read them."""
    # A list of our own: the caller's may change in another thread before the kernel reads it.
    items, counts = tensors_and_counts(tuple(items), name)
    if torch.compiler.is_compiling() or counts is None or not any(counts):
        return PackedTokens._joined(items, name)
    if (torch.is_grad_enabled() and any(t.requires_grad for t in items)) or has_tangent(*items):
        return PackedTokens._joined(items, name)
    lengths = torch.frombuffer(array("q", counts), dtype=torch.int64)
    return TokenList(items, lengths, max(counts), items[0].narrow(0, 0, 0))


def _mask_list(items: Sequence[Any], mask: Mask, name: str) -> PackedTokens:
    """Lower a list whose mask is padded to the longest item; what a mask says beyond an item's end is not heard."""
    packed = PackedTokens._joined(items, name)
    keep = bool_mask(mask, len(packed), packed.max_length, packed.device, f"{name}_mask")
    real = torch.arange(packed.max_length, device=packed.device) < packed.lengths[:, None]
    keep = keep & real
    lengths = keep.sum(1)
    starts = lengths.cumsum(0) - lengths
    tokens = packed.tokens[keep[real]]
    return PackedTokens(tokens, starts, lengths, _trusted=(packed.max_length, _longest_first(lengths)))


def _mask_rows(tokens: Tensor, keep: Tensor) -> PackedTokens:
    """Lower ``tokens [n, length, dim]`` with ``keep [n, length]`` bool.

    The kept rows of most masks are one run (padding on the right or on the left), which needs no copy. To know, the
    mask must be read: on other devices, under torch.compile and without the extension, rows are moved to the front.
    """
    n, length, dim = tokens.shape
    if _C is not None and plain(tokens, keep):
        keep = keep.contiguous()
        starts, counts = torch.empty((2, n), dtype=torch.int64, device="cpu").unbind()
        if _C.runs_of_mask(keep, starts, counts):
            return PackedTokens(tokens.flatten(0, 1), starts, counts, _trusted=(length, None))
    counts = keep.sum(1)
    starts = _multiples(n, length, tokens.device)
    order = torch.argsort(keep.logical_not().to(torch.uint8), dim=1, stable=True)
    moved = tokens.gather(1, order.unsqueeze(2).expand(n, length, dim))
    return PackedTokens(moved.flatten(0, 1), starts, counts, _trusted=(length, None))


def _describe(value: object) -> str:
    return f"{value.layout} tensor" if isinstance(value, Tensor) else type(value).__name__
