"""Arguments for the scores of libraries that pad with rows of zeros, where such a row can win with its similarity 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from colbert_fast._arrays import float_tensor, tensor_of
from colbert_fast._torch_modes import unwatched

# The elements of one piece of masked documents: 16 MiB in float32.
_PIECE_ELEMENTS = 2**22


def padded(value: Any, name: str, ndim: int) -> Tensor:
    """Return a tensor of ``ndim`` dimensions; a list of tensors or arrays is stacked."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) or hasattr(item, "dtype") for item in value):
        items = [float_tensor(item, f"{name}[{i}]") for i, item in enumerate(value)]
        shapes = {tuple(item.shape) for item in items}
        if len(shapes) > 1:
            msg = f"{name} must hold items of one shape here; got {sorted(shapes)}: pad the shorter items"
            raise ValueError(msg)
        tensor = torch.stack(items)
    else:
        tensor = float_tensor(value, name)
    if tensor.ndim != ndim:
        dimensions = ", ".join(["n", "candidates", "length", "dim"] if ndim == 4 else ["n", "length", "dim"])
        msg = f"{name} must be [{dimensions}]; got shape {list(tensor.shape)}"
        raise ValueError(msg)
    return tensor


def in_pairs(queries: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat a single query, or the candidates of a single query, for each item of the other side.

    The einsum of PyLate and of colpali-engine does so too.
    """
    if len(queries) == 1:
        queries = queries.expand(len(documents), -1, -1)
    elif len(documents) == 1:
        documents = documents.expand(len(queries), -1, -1, -1)
    return queries, documents


def times_mask(tokens: Tensor, mask: Any, name: str) -> Tensor:
    """Multiply the rows of ``tokens [..., length, dim]`` by ``mask [..., length]``. The tensor itself stays as it is.

    So a masked row becomes a row of zeros. A factor of a row is a factor of each of its similarities.
    """
    return tokens * _factors(tokens, mask, name)


def pieces_times_mask(tokens: Tensor, mask: Any, name: str, *, differentiable: bool) -> Iterator[Tensor]:
    """Yield the result of :func:`times_mask`, in pieces along the first dimension where that is faster.

    A copy of all documents costs several times what scoring them costs, because it comes from new memory. So all pieces
    take the same memory, one after the other: a piece is to be used before the next one is asked for. Where the scores
    are ``differentiable`` with respect to any input, autograd keeps what it was given, and there is one piece.
    """
    factors = _factors(tokens, mask, name)
    if differentiable or len(tokens) == 0 or not unwatched(tokens, factors, cuda=False):
        yield tokens * factors
        return
    step = max(1, _PIECE_ELEMENTS // max(tokens[0].numel(), 1))
    dtype = torch.result_type(tokens, factors)
    memory = torch.empty((min(step, len(tokens)), *tokens.shape[1:]), dtype=dtype, device=tokens.device)
    for start in range(0, len(tokens), step):
        piece = tokens[start : start + step]
        yield torch.mul(piece, factors[start : start + step], out=memory[: len(piece)])


def _factors(tokens: Tensor, mask: Any, name: str) -> Tensor:
    factors = tensor_of(mask, name).to(tokens.device)
    try:
        return factors.expand(tokens.shape[:-1]).unsqueeze(-1)
    except RuntimeError as error:
        msg = f"{name} must be {list(tokens.shape[:-1])}, one entry for each token; got shape {list(factors.shape)}"
        raise ValueError(msg) from error


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


def wants_gradient(*sides: Any) -> bool:
    """Return whether autograd would record an operation on these tensors, or lists of tensors."""
    items = [item for side in sides for item in (side if isinstance(side, (list, tuple)) else [side])]
    return torch.is_grad_enabled() and any(getattr(item, "requires_grad", False) for item in items)
