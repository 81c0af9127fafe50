"""The lowering of every layout that a caller may hand in to PackedTokens.

To add a layout, add a ``from_*`` to PackedTokens and a branch to :func:`lower`.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from colbert_fast._arrays import Mask, bool_mask, float_tensor, tensor_of, tensors_and_counts
from colbert_fast._layouts import masked_rows, rows_of_floats, uniform_rows
from colbert_fast._spans import consecutive
from colbert_fast._torch_modes import has_tangent, unwatched
from colbert_fast.packed import PackedTokens, Tokens, longest_first

# The offsets of a padded batch of up to so many items are kept for the next batch of the same shape.
_FEW_ITEMS = 4096
_requires_grad = operator.attrgetter("requires_grad")


class EqualTokens(PackedTokens):
    """A padded batch on a GPU. ``starts`` and ``lengths`` are made when they are first asked for.

    :func:`lower` makes it for one call only. A later call could be on another stream, or outside of the CUDA graph in
    whose memory the starts and lengths were made.
    """

    _equal = True

    def __init__(self, tokens: Tensor) -> None:
        self._count, self._max_length, _ = tokens.shape
        self._tokens = self._like = tokens.flatten(0, 1)
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
    """A list of matrices in CPU memory that are scored where they lie. They are joined when ``tokens`` is asked for.

    :func:`lower` makes it for one call only.
    """

    def __init__(self, items: Sequence[Tensor], lengths: Tensor, max_length: int, like: Tensor) -> None:
        self._items = items
        self._like = like
        self._lengths = lengths
        self._max_length = max_length
        self._scales = None
        self._order = None

    @cached_property
    def _tokens(self) -> Tensor:  # type: ignore[override]
        return torch.cat([self._like, *self._items])

    @cached_property
    def _starts(self) -> Tensor:  # type: ignore[override]
        return self.lengths.cumsum(0) - self.lengths

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        if type(index) is slice and (index.step is None or index.step > 0):
            return TokenList(self._items[index], self.lengths[index].contiguous(), self.max_length, self._like)
        return self._items[index] if type(index) is int else super().__getitem__(index)

    @property
    def rows(self) -> int:
        return int(self.lengths.sum())


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
        return (PackedTokens._of(*rows_of_floats(value, name)) if join else _lower_list(value, name)), False
    if isinstance(value, Tensor) and value.is_nested:
        if mask is not None:
            msg = f"{name}_mask cannot go with a nested tensor, which has no padding"
            raise ValueError(msg)
        packed = PackedTokens.from_nested(value)
        # As in a list or a padded tensor, integers become float32.
        return (packed if packed.scales is None else packed.to(dtype=torch.float32)), False
    tokens = float_tensor(value, name)
    if tokens.ndim == 2:
        tokens = tokens.unsqueeze(0)
    if tokens.ndim != 3:
        msg = (
            f"{name} must be a list of [length, dim], or [n, length, dim], or one [length, dim]; "
            f"got shape {list(tokens.shape)}"
        )
        if tokens.ndim == 4 and name == "b":
            msg += (
                "; maxsim_pairwise scores every query against its own candidates [B, N, length, dim], "
                "and b.flatten(0, 1) holds the candidates of all queries as [B * N, length, dim]"
            )
        raise ValueError(msg)
    if mask is None:
        n, length, _ = tokens.shape
        if tokens.is_cuda and n * length > 0 and unwatched(tokens):
            return EqualTokens(tokens), True
        # In this order, because torch.export leaves n open and must not compare it with anything.
        if not unwatched(tokens, cuda=False) or n > _FEW_ITEMS:
            return PackedTokens._of(uniform_rows(tokens)), True
        return PackedTokens(tokens.flatten(0, 1), *_shared_offsets(n, length), _trusted=(length, None)), True
    keep = bool_mask(mask, tokens.shape[0], tokens.shape[1], tokens.device, f"{name}_mask")
    return PackedTokens._of(masked_rows(tokens, keep)), False


def flat_candidates(b: Any, mask: Mask | None) -> tuple[Any, Tensor | None]:
    """View candidates ``b [B, N, length, dim]`` and their mask ``[B, N, length]`` as ``B * N`` documents."""
    n, each, length, dim = b.shape
    flat = b.reshape(n * each, length, dim)
    if mask is None:
        return flat, None
    keep = tensor_of(mask, "b_mask")
    fits = keep.ndim == 3 and keep.shape[0] in (1, n) and keep.shape[1] in (1, each) and keep.shape[2] == length
    if not fits:
        msg = f"b_mask must be [{n}, {each}, {length}], one entry per token; got shape {list(keep.shape)}"
        raise ValueError(msg)
    return flat, keep.expand(n, each, length).reshape(n * each, length)


@lru_cache(maxsize=64)
def _shared_offsets(n: int, length: int) -> tuple[Tensor, Tensor]:
    """Return the same tensors for every call on the CPU, where making them takes 2 us. Nobody may write to them."""
    with torch.inference_mode(False):
        return consecutive(n, length, torch.device("cpu"))


def _lower_list(items: Sequence[Any], name: str) -> PackedTokens:
    """Leave the items where they are, if nothing but a kernel on this CPU will read them."""
    # A copy of the list, because another thread may change the caller's list before the kernel reads it.
    items, counts = tensors_and_counts(tuple(items), name)
    if torch.compiler.is_compiling() or counts is None or not any(counts):
        return PackedTokens._of(*rows_of_floats(items, name))
    if (torch.is_grad_enabled() and any(map(_requires_grad, items))) or has_tangent(*items):
        return PackedTokens._of(*rows_of_floats(items, name))
    lengths = torch.frombuffer(array("q", counts), dtype=torch.int64)
    return TokenList(items, lengths, max(counts), items[0].narrow(0, 0, 0))


def kept_rows(value: Tokens, mask: Mask, name: str) -> Tensor:
    """Return which rows :func:`lower` keeps of a layout with a mask: ``[n, longest]`` bool."""
    if not isinstance(value, (list, tuple)):
        tokens = float_tensor(value, name)
        n, length = (1, *tokens.shape)[-3:-1]
        return bool_mask(mask, n, length, tokens.device, f"{name}_mask")
    items, _ = tensors_and_counts(value, name)
    counts = [len(item) for item in items]
    lengths = torch.tensor(counts, dtype=torch.int64, device=items[0].device if items else "cpu")
    return _kept_of_list(lengths, max(counts, default=0), mask, name)[0]


def _kept_of_list(lengths: Tensor, longest: int, mask: Mask, name: str) -> tuple[Tensor, Tensor]:
    """Return which rows ``[n, longest]`` a mask keeps of items of these lengths, and which rows the items have."""
    keep = bool_mask(mask, len(lengths), longest, lengths.device, f"{name}_mask")
    real = torch.arange(longest, device=lengths.device) < lengths[:, None]
    return keep & real, real


def _mask_list(items: Sequence[Any], mask: Mask, name: str) -> PackedTokens:
    """Lower a list with a mask that is padded to the longest item; entries beyond the end of an item are ignored."""
    packed = PackedTokens._of(*rows_of_floats(items, name))
    keep, real = _kept_of_list(packed.lengths, packed.max_length, mask, name)
    lengths = keep.sum(1)
    starts = lengths.cumsum(0) - lengths
    tokens = packed.tokens[keep[real]]
    # No item is longer than all rows together, and the kernels refuse a bound beyond that.
    longest = min(packed.max_length, tokens.shape[0])
    return PackedTokens(tokens, starts, lengths, _trusted=(longest, longest_first(lengths)))
