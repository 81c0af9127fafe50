"""Scores as libraries give them that pad with rows of zeros, and let a row of zeros win with a similarity of 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from colbert_fast._arrays import float_tensor, tensor_of
from colbert_fast._maxsim import maxsim_pairs


def padded(value: Any, name: str, ndim: int) -> Tensor:
    """Return a tensor of ``ndim`` dimensions; a list of tensors or arrays is stacked."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) or hasattr(item, "dtype") for item in value):
        items = [float_tensor(item, f"{name}[{i}]") for i, item in enumerate(value)]
        shapes = {tuple(item.shape) for item in items}
        if len(shapes) > 1:
            msg = f"{name} must hold items of one shape here; got {sorted(shapes)}: pad them, or leave the mask out"
            raise ValueError(msg)
        tensor = torch.stack(items)
    else:
        tensor = float_tensor(value, name)
    if tensor.ndim != ndim:
        dimensions = ", ".join(["n", "candidates", "length", "dim"] if ndim == 4 else ["n", "length", "dim"])
        msg = f"{name} must be [{dimensions}]; got shape {list(tensor.shape)}"
        raise ValueError(msg)
    return tensor


def times_mask(tokens: Tensor, mask: Any, name: str) -> Tensor:
    """Multiply the rows of ``tokens [..., length, dim]`` by ``mask [..., length]``. The tensor itself stays as it is.

    So a masked row becomes a row of zeros, whatever it held. A factor of a row is a factor of each of its similarities.
    """
    factors = tensor_of(mask, name).to(tokens.device)
    try:
        factors = factors.expand(tokens.shape[:-1]).unsqueeze(-1)
    except RuntimeError as error:
        msg = f"{name} must be {list(tokens.shape[:-1])}, one entry for each token; got shape {list(factors.shape)}"
        raise ValueError(msg) from error
    if factors.dtype == torch.bool:
        return tokens.masked_fill(~factors, 0)
    return (tokens * factors).masked_fill(factors == 0, 0)


def candidate_scores(queries: Tensor, documents: Tensor, backend: str | None = None) -> Tensor:
    """Score each query against its own candidates, where rows of zeros are tokens.

    Parameters
    ----------
    queries
        ``[A, length, dim]``.
    documents
        ``[A, n, length, dim]``.
    backend
        As in ``cf.maxsim``.

    Returns
    -------
    Tensor
        ``[A, n]``.
    """
    count, n = documents.shape[:2]
    if len(queries) != count:
        msg = f"queries and candidates must be equally many; got {len(queries)} queries and candidates for {count}"
        raise ValueError(msg)
    numbers = torch.arange(count * n, device=documents.device)
    pairs = torch.stack([numbers // max(n, 1), numbers], dim=1)
    return maxsim_pairs(queries, documents.flatten(0, 1), pairs, pad="zero", backend=backend).view(count, n)


def with_row_of_zeros(items: Sequence[Tensor]) -> list[Tensor]:
    """Return the items; those that are shorter than the longest end in a row of zeros.

    One such row has the effect of all the rows that padding to the longest item would add.
    """
    longest = max((len(item) for item in items), default=0)
    return [item if len(item) == longest else torch.nn.functional.pad(item, (0, 0, 0, 1)) for item in items]


def matrices(value: Any, name: str) -> list[Tensor]:
    """Return the items of a list, or of a ``[n, length, dim]`` tensor or array, as ``[length, dim]`` tensors."""
    if not (isinstance(value, (list, tuple)) or hasattr(value, "shape")):
        msg = f"{name} must be a list of [length, dim], or [n, length, dim]; got {type(value).__name__}"
        raise TypeError(msg)
    items = [float_tensor(item, f"{name}[{i}]") for i, item in enumerate(value)]
    for i, item in enumerate(items):
        if item.ndim != 2:
            msg = f"{name}[{i}] must be [length, dim]; got shape {list(item.shape)}"
            raise ValueError(msg)
    return items
