"""PackedTokens, the ragged batch that every kernel sees, and the lowering of every layout to it.

This is the only file that knows layouts. To add one, add a ``from_*`` and a branch of :func:`lower`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Tokens: TypeAlias = "PackedTokens | Tensor | np.ndarray[Any, Any] | Sequence[Any]"
Mask: TypeAlias = "Tensor | np.ndarray[Any, Any] | Sequence[Any]"


class PackedTokens:
    """A ragged batch of token embeddings: item ``i`` is ``tokens[starts[i] : starts[i] + lengths[i]]``.

    Build it once to score it many times. Every row inside an item is a token, rows of zeros included. Items may
    leave gaps between them and may share rows.

    Parameters
    ----------
    tokens
        ``[total, dim]``, floating point, any device.
    starts
        ``[n]``, integer: the first row of each item.
    lengths
        ``[n]``, integer: the number of rows of each item, 0 allowed.

    Raises
    ------
    TypeError
        A tensor of the wrong kind.
    ValueError
        A shape that does not fit, or an item outside ``tokens``. Checking this waits for the device.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    max_length: int
    """No item is longer. Known without asking the device."""

    def __init__(self, tokens: Tensor, starts: Tensor, lengths: Tensor) -> None:
        for name, value in (("tokens", tokens), ("starts", starts), ("lengths", lengths)):
            if not isinstance(value, Tensor):
                msg = f"{name} must be a tensor; got {type(value).__name__}"
                raise TypeError(msg)
        if not tokens.is_floating_point():
            msg = f"tokens must be floating point; got {tokens.dtype}"
            raise TypeError(msg)
        if tokens.ndim != 2:
            msg = f"tokens must be [total, dim]; got shape {list(tokens.shape)}"
            raise ValueError(msg)
        for name, value in (("starts", starts), ("lengths", lengths)):
            if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
                msg = f"{name} must be integer; got {value.dtype}"
                raise TypeError(msg)
        if starts.ndim != 1 or starts.shape != lengths.shape:
            msg = f"starts and lengths must be [n] both; got shapes {list(starts.shape)} and {list(lengths.shape)}"
            raise ValueError(msg)
        starts = aligned(starts.to(device=tokens.device, dtype=torch.int64).contiguous())
        lengths = aligned(lengths.to(device=tokens.device, dtype=torch.int64).contiguous())
        total = tokens.shape[0]
        longest = 0
        if len(lengths):
            outside = (starts < 0) | (lengths < 0) | (lengths > total) | (starts > total - lengths)
            if bool(outside.any()):
                i = int(outside.int().argmax())
                msg = f"item {i} has start {int(starts[i])} and length {int(lengths[i])}; tokens has {total} rows"
                raise ValueError(msg)
            longest = int(lengths.max())
        self._set(tokens, starts, lengths, longest)

    def _set(self, tokens: Tensor, starts: Tensor, lengths: Tensor, max_length: int) -> None:
        self.tokens = tokens
        self.starts = starts
        self.lengths = lengths
        self.max_length = max_length

    @classmethod
    def _trusted(cls, tokens: Tensor, starts: Tensor, lengths: Tensor, max_length: int) -> PackedTokens:
        """Build without checks: for the lowerings, which are right by construction and must not wait for a device."""
        packed = cls.__new__(cls)
        packed._set(tokens, starts, lengths, max_length)
        return packed

    @classmethod
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
        tensors = [_float_tensor(item, f"items[{i}]") for i, item in enumerate(items)]
        if not tensors:
            return cls._uniform(torch.zeros(0, 0), 0, 0)
        # An item without tokens need not say what dim it has not got.
        first = next((t for t in tensors if t.numel()), tensors[0])
        dim = first.shape[-1] if first.ndim == 2 else 0
        for i, t in enumerate(tensors):
            if t.numel() == 0 and t.ndim in (1, 2):
                tensors[i] = t.new_zeros(0, dim, dtype=first.dtype) if t.shape[-1] != dim or t.ndim == 1 else t
            elif t.ndim != 2:
                msg = f"items[{i}] must be [length, dim]; got shape {list(t.shape)}"
                raise ValueError(msg)
            elif t.shape[1] != dim:
                msg = f"all items need the same dim; got items[{i}] [*, {t.shape[1]}] beside [*, {dim}]"
                raise ValueError(msg)
            if t.numel() and t.dtype != first.dtype:
                msg = f"all items need the same dtype; got items[{i}] {t.dtype} beside {first.dtype}"
                raise TypeError(msg)
            if t.device != first.device:
                msg = f"all items need the same device; got items[{i}] on {t.device} beside {first.device}"
                raise ValueError(msg)
        counts = [t.shape[0] for t in tensors]
        tokens = torch.cat(tensors)
        lengths = torch.tensor(counts, dtype=torch.int64)
        starts = lengths.cumsum(0) - lengths
        return cls._trusted(tokens, starts.to(tokens.device), lengths.to(tokens.device), max(counts))

    @classmethod
    def from_padded(cls, tokens: Any, mask: Mask | None = None) -> PackedTokens:
        """View a padded batch; no copy unless the mask has holes or is on a GPU.

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
        tokens = _float_tensor(tokens, "tokens")
        if tokens.ndim != 3:
            msg = f"tokens must be [n, length, dim]; got shape {list(tokens.shape)}"
            raise ValueError(msg)
        if mask is None:
            return cls._uniform(tokens.flatten(0, 1), tokens.shape[0], tokens.shape[1])
        return _mask_rows(tokens, _bool_mask(mask, tokens.shape[0], tokens.shape[1], tokens.device, "mask"))

    @classmethod
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

    @classmethod
    def _uniform(cls, tokens: Tensor, n: int, length: int) -> PackedTokens:
        lengths = torch.full((n,), length, dtype=torch.int64, device=tokens.device)
        starts = torch.arange(0, n * length, length, device=tokens.device) if length else lengths
        return cls._trusted(tokens, starts, lengths, length)

    def __len__(self) -> int:
        return self.starts.shape[0]

    def __getitem__(self, index: int | slice) -> Any:
        """Item ``index`` as ``[length, dim]``, or with a slice those items as PackedTokens; both share the rows."""
        if isinstance(index, slice):
            # Kernels read these one after the other, whatever the step of the slice.
            starts, lengths = self.starts[index].contiguous(), self.lengths[index].contiguous()
            return self._trusted(self.tokens, starts, lengths, self.max_length)
        if not -len(self) <= index < len(self):
            msg = f"index {index} is out of range for {len(self)} items"
            raise IndexError(msg)
        return self.tokens.narrow(0, int(self.starts[index]), int(self.lengths[index]))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def with_tokens(self, tokens: Tensor) -> PackedTokens:
        """Return the same items over other rows: of another dim or dtype, quantised or projected.

        Parameters
        ----------
        tokens
            ``[total, dim']``, floating point, on the same device, with as many rows as ``self.tokens``.
        """
        if tokens.ndim != 2 or tokens.shape[0] != self.tokens.shape[0] or tokens.device != self.device:
            msg = (
                f"tokens must be [{self.tokens.shape[0]}, dim] on {self.device}; "
                f"got shape {list(tokens.shape)} on {tokens.device}"
            )
            raise ValueError(msg)
        return self._trusted(tokens, self.starts, self.lengths, self.max_length)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PackedTokens:
        """Return this batch on another device, in another floating dtype, or both."""
        if dtype is not None and not dtype.is_floating_point:
            msg = f"dtype must be floating point; got {dtype}"
            raise TypeError(msg)
        device = self.device if device is None else torch.device(device)
        if device == self.device and dtype in (None, self.dtype):
            return self
        tokens = self.tokens.to(device=device, dtype=dtype)
        return self._trusted(tokens, self.starts.to(device), self.lengths.to(device), self.max_length)

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


def lower(value: Tokens, mask: Mask | None, name: str) -> tuple[PackedTokens, bool]:
    """Lower any accepted layout to PackedTokens.

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
        return (PackedTokens.from_list(value) if mask is None else _mask_list(value, mask, name)), False
    if isinstance(value, Tensor) and value.is_nested:
        if mask is not None:
            msg = f"{name}_mask cannot go with a nested tensor, which has no padding"
            raise ValueError(msg)
        return PackedTokens.from_nested(value), False
    tokens = _float_tensor(value, name)
    if tokens.ndim == 2:
        tokens = tokens.unsqueeze(0)
    if tokens.ndim != 3:
        msg = (
            f"{name} must be a list of [length, dim], or [n, length, dim], or one [length, dim]; "
            f"got shape {list(tokens.shape)}"
        )
        raise ValueError(msg)
    if mask is None:
        return PackedTokens.from_padded(tokens), True
    keep = _bool_mask(mask, tokens.shape[0], tokens.shape[1], tokens.device, f"{name}_mask")
    return _mask_rows(tokens, keep), False


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy if its memory does not begin at a multiple of the element size."""
    if tensor.device.type == "cpu" and not torch.compiler.is_compiling() and tensor.data_ptr() % tensor.element_size():
        return tensor.clone()
    return tensor


def _mask_list(items: Sequence[Any], mask: Mask, name: str) -> PackedTokens:
    """Lower a list whose mask is padded to the longest item; what a mask says beyond an item's end is not heard."""
    packed = PackedTokens.from_list(items)
    keep = _bool_mask(mask, len(packed), packed.max_length, packed.device, f"{name}_mask")
    padded = torch.nn.utils.rnn.pad_sequence(list(packed), batch_first=True) if len(packed) else packed.tokens[None]
    position = torch.arange(packed.max_length, device=packed.device)
    return _mask_rows(padded, keep & (position < packed.lengths[:, None])) if len(packed) else packed


def _mask_rows(tokens: Tensor, keep: Tensor) -> PackedTokens:
    """Lower ``tokens [n, length, dim]`` with ``keep [n, length]`` bool.

    The kept rows of most masks are one run (padding on the right or on the left), which needs no copy. To know, the
    mask must be read, so on other devices and under torch.compile the rows are always moved to the front.
    """
    n, length, dim = tokens.shape
    counts = keep.sum(1)
    starts = torch.arange(0, n * length, length, device=tokens.device) if length else counts
    if length and tokens.device.type == "cpu" and not torch.compiler.is_compiling():
        first = keep.int().argmax(1)
        last = length - 1 - keep.flip(1).int().argmax(1)
        if bool(((last - first + 1 == counts) | (counts == 0)).all()):
            return PackedTokens._trusted(tokens.flatten(0, 1), starts + first, counts, length)
    order = torch.argsort(keep.logical_not().to(torch.uint8), dim=1, stable=True)
    moved = tokens.gather(1, order.unsqueeze(2).expand(n, length, dim))
    return PackedTokens._trusted(moved.flatten(0, 1), starts, counts, length)


def _bool_mask(mask: Mask, n: int, length: int, device: torch.device, name: str) -> Tensor:
    """Return ``mask`` as bool ``[n, length]`` on ``device``."""
    if isinstance(mask, (list, tuple)):
        parts = [_tensor(part, f"{name}[{i}]") for i, part in enumerate(mask)]
        if any(part.ndim != 1 for part in parts):
            msg = f"{name} as a list must hold one 1-D mask per item"
            raise ValueError(msg)
        tensor = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True) if parts else torch.zeros(0, length)
    else:
        tensor = _tensor(mask, name)
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != 2 or tensor.shape[0] not in (1, n) or tensor.shape[1] != length:
        got = f"{name} covers {tensor.shape[-1]} tokens" if tensor.ndim else name
        msg = f"{name} must be [{n}, {length}], one entry per token; {got}, with shape {list(tensor.shape)}"
        raise ValueError(msg)
    return (tensor != 0).to(device).expand(n, length)


def _float_tensor(value: Any, name: str) -> Tensor:
    tensor = _tensor(value, name)
    if tensor.is_complex():
        msg = f"{name} must be real numbers; got {tensor.dtype}"
        raise TypeError(msg)
    return tensor if tensor.is_floating_point() else tensor.float()


def _tensor(value: Any, name: str) -> Tensor:
    """Return ``value`` as a tensor, sharing its memory where torch can."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            msg = f"{name} must be a dense tensor; got layout {value.layout}"
            raise TypeError(msg)
        return value
    try:
        if isinstance(value, np.ndarray):
            return _from_numpy(value)
        if isinstance(value, (list, tuple)):
            return torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"{name} must be numbers in a rectangular array: {error}"
        raise TypeError(msg) from error
    msg = f"{name} must be a tensor, a numpy array, a list or a PackedTokens; got {type(value).__name__}"
    raise TypeError(msg)


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # numpy's own flag does not look at the strides of axes of length 1; torch does.
    if not array.flags.aligned or any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()
    with warnings.catch_warnings():
        # Read-only and memory-mapped arrays are welcome: nothing here writes to its inputs.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.from_numpy(array)


def _describe(value: object) -> str:
    return f"{value.layout} tensor" if isinstance(value, Tensor) else type(value).__name__
