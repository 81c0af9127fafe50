"""Turns what callers hand in (arrays, lists, masks and scales) into tensors that the rest can rely on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from colbert_fast._extension import _C

Mask: TypeAlias = "Tensor | np.ndarray[Any, Any] | Sequence[Any]"


def tensor_of(value: Any, name: str) -> Tensor:
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
            # torch.tensor refuses tensors in a list, and warns of arrays in it.
            if any(isinstance(part, (Tensor, np.ndarray)) for part in value):
                return torch.stack([tensor_of(part, f"{name}[{i}]") for i, part in enumerate(value)])
            return torch.tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"{name} must be numbers in a rectangular array: {error}"
        raise TypeError(msg) from error
    msg = f"{name} must be a tensor, a numpy array or a list; got {type(value).__name__}"
    if isinstance(value, str):
        msg += ". Texts become embeddings by an encoder, such as colbert_fast.models.ColBERT"
    raise TypeError(msg)


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # numpy's own flag ignores the strides of axes of length 1; torch does not.
    if not array.flags.aligned or min(array.strides, default=0) < 0 or math.gcd(*array.strides) % array.itemsize:
        array = array.copy()
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_SaidToBeWriteable(array)))


class _SaidToBeWriteable:
    """Presents a read-only or memory-mapped array as one that may be written to.

    torch warns of arrays that may not be written to, but this package never writes to its inputs. A warnings filter
    cannot hide that warning, because all threads share the filters.
    """

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array  # keeps the memory alive
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def float_tensor(value: Any, name: str) -> Tensor:
    tensor = tensor_of(value, name)
    if tensor.is_complex():
        msg = f"{name} must be real numbers; got {tensor.dtype}"
        raise TypeError(msg)
    return tensor if tensor.is_floating_point() else tensor.float()


def bool_mask(mask: Mask, n: int, length: int, device: torch.device, name: str) -> Tensor:
    """Return ``mask`` as bool ``[n, length]`` on ``device``."""
    if isinstance(mask, (list, tuple)):
        parts = [tensor_of(part, f"{name}[{i}]") for i, part in enumerate(mask)]
        for i, part in enumerate(parts):
            if part.ndim != 1:
                msg = f"{name} as a list must hold one 1-D mask per item; got {name}[{i}] of shape {list(part.shape)}"
                raise ValueError(msg)
        tensor = (
            torch.nn.utils.rnn.pad_sequence(parts, batch_first=True) if parts else torch.zeros(0, length, device="cpu")
        )
    else:
        tensor = tensor_of(mask, name)
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != 2 or (tensor.shape[0] != 1 and tensor.shape[0] != n) or tensor.shape[1] != length:
        got = f"{name} covers {tensor.shape[-1]} tokens" if tensor.ndim else name
        msg = f"{name} must be [{n}, {length}], one entry per token; {got}, with shape {list(tensor.shape)}"
        raise ValueError(msg)
    if tensor.dtype is torch.bool and tensor.shape[0] == n and tensor.device == device:
        return tensor
    return (tensor != 0).to(device).expand(n, length)


def tensors_and_counts(items: Sequence[Any], name: str) -> tuple[Sequence[Tensor], list[int] | None]:
    """Return the items as tensors; and the length of each, if all items are alike and need no conversion, else None.

    ``name`` is the caller's name of the list.
    """
    counts = _counts_if_alike(items)
    if counts is None:
        items = [float_tensor(item, f"{name}[{i}]") for i, item in enumerate(items)]
        counts = _counts_if_alike(items)
    return items, counts


def _counts_if_alike(items: Sequence[Any]) -> list[int] | None:
    """Return the length of each item if all are plain matrices of one dim and dtype on the CPU, else None.

    Returns None without the extension too: only the backends of the extension score a list where it lies.
    """
    if _C is None or torch.compiler.is_compiling():
        return None
    return _C.row_counts(tuple(items), Tensor, torch.strided)


def alike(tensors: Sequence[Tensor], name: str) -> list[Tensor]:
    """Give items without tokens the dim and dtype of the others, which must agree."""
    # An item without tokens may have any dim.
    first = ([t for t in tensors if t.numel()] or tensors)[0]
    dim = first.shape[-1] if first.ndim == 2 else 0
    result = []
    for i, t in enumerate(tensors):
        if t.numel() == 0 and t.ndim in (1, 2):
            t = t.reshape(0, dim).to(first.dtype)
        elif t.ndim != 2:
            msg = f"{name}[{i}] must be [length, dim]; got shape {list(t.shape)}"
            raise ValueError(msg)
        elif t.shape[1] != dim:
            msg = f"all items need the same dim; got {name}[{i}] [*, {t.shape[1]}] beside [*, {dim}]"
            raise ValueError(msg)
        if t.numel() and t.dtype != first.dtype:
            msg = f"all items need the same dtype; got {name}[{i}] {t.dtype} beside {first.dtype}"
            raise TypeError(msg)
        if t.device != first.device:
            msg = f"all items need the same device; got {name}[{i}] on {t.device} beside {first.device}"
            raise ValueError(msg)
        result.append(t)
    return result


def checked_scales(scales: Tensor | None, tokens: Tensor) -> Tensor | None:
    """Check the kind of the tokens. Return the scales, which int8 tokens must have, as the kernels read them."""
    if tokens.layout != torch.strided:
        msg = f"tokens must be a dense tensor; got layout {tokens.layout}"
        raise TypeError(msg)
    if not (tokens.is_floating_point() or tokens.dtype == torch.int8):
        msg = f"tokens must be floating point, or int8 with scales; got {tokens.dtype}"
        raise TypeError(msg)
    if tokens.dtype != torch.int8:
        if scales is not None:
            msg = f"scales go with int8 tokens only; got {tokens.dtype}"
            raise ValueError(msg)
        return None
    if scales is None:
        msg = "int8 tokens need scales, one float32 for each row"
        raise TypeError(msg)
    if not isinstance(scales, Tensor) or scales.dtype != torch.float32:
        got = scales.dtype if isinstance(scales, Tensor) else type(scales).__name__
        msg = f"scales must be a float32 tensor; got {got}"
        raise TypeError(msg)
    if scales.shape != tokens.shape[:1]:
        msg = f"scales must be [{tokens.shape[0]}], one for each row of tokens; got shape {list(scales.shape)}"
        raise ValueError(msg)
    scales = aligned(scales.detach().to(tokens.device).contiguous())
    if not scales.is_meta and len(scales):
        lowest, highest = torch.aminmax(scales)  # both are NaN if a scale is
        if not bool((lowest >= 0) & highest.isfinite()):
            msg = "scales must be finite and 0 or more"
            raise ValueError(msg)
    return scales


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy if its memory does not begin at a multiple of the element size."""
    if tensor.is_cpu and not torch.compiler.is_compiling() and tensor.data_ptr() % tensor.element_size():
        return tensor.clone()
    return tensor
