"""Read the projection that lies beside a transformer, in linear.pt or colbert_linear.pt.

A projection is a linear layer that maps each token state of the transformer to an embedding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from colbert_fast.models.file_checks import read_tensors


class Projection(NamedTuple):
    """A linear layer on the CPU, in float32 or float64.

    `weight` is [embedding_size, hidden_size]. `bias` is [embedding_size] or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None


def read_projection(path: str) -> Projection:
    """Read a linear layer from a file that torch.save wrote.

    Raises
    ------
    ValueError
        The file is damaged, holds something else than a linear layer, or its numbers cannot be weights.
    """
    content = read_tensors(path)
    weight = content.get("weight") if isinstance(content, dict) else None
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        msg = f'{path} must hold {{"weight": [embedding_size, hidden_size]}}; got {got}'
        raise ValueError(msg)
    if unread := sorted(str(key) for key in content if key not in ("weight", "bias")):
        msg = f'{path} must hold "weight", perhaps "bias", and nothing else; it also holds {unread}'
        raise ValueError(msg)
    bias = content.get("bias")
    if bias is not None and (not isinstance(bias, torch.Tensor) or bias.shape != weight.shape[:1]):
        form = list(bias.shape) if isinstance(bias, torch.Tensor) else type(bias).__name__
        msg = f'{path} must hold a "bias" of [{weight.shape[0]}], one number for each row of "weight"; got {form}'
        raise ValueError(msg)
    return Projection(_numbers(path, "weight", weight), None if bias is None else _numbers(path, "bias", bias))


def _numbers(path: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float32 or float64. Raise ValueError if its numbers cannot be weights."""
    problem = _problem(tensor)
    if problem is None:
        # torch.isfinite does not accept every narrow dtype, so the numbers are converted first.
        tensor = tensor.detach().to(torch.float64 if tensor.dtype == torch.float64 else torch.float32).contiguous()
        if not bool(torch.isfinite(tensor).all()):
            problem = "NaN or infinite numbers"
    if problem is not None:
        msg = f'{path} must hold a "{name}" of finite floating-point numbers; got {problem}'
        raise ValueError(msg)
    return tensor


def _problem(tensor: Any) -> str | None:
    """Return what makes a tensor unusable as weights, without a look at its numbers, or None."""
    if tensor.layout is not torch.strided:
        return f"a sparse tensor ({tensor.layout})"
    if tensor.device.type != "cpu":
        return f"a tensor without numbers (on the {tensor.device.type} device)"
    if not tensor.dtype.is_floating_point:
        return f"{tensor.dtype}"
    if 0 in tensor.shape:
        return f"the shape {list(tensor.shape)}"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return f"fewer numbers than its shape {list(tensor.shape)} needs"
    return None
