"""Codes of the tokens of many items."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from colbert_fast._codecs.packing import BITS, row_bytes, unpacked_levels
from colbert_fast._codecs.rotation import rotate_back
from colbert_fast._forks import safe_after_fork
from colbert_fast._spans import rows_in_order

# Of the numbers t with which the bound may be tangent to its exact form, encoding takes this one.
TANGENT = 0.5


@dataclass(frozen=True)
class Codes:
    """Compressed tokens of n items; item i is the rows ``[starts[i], starts[i] + lengths[i])``.

    Row r stands for the token ``multipliers[r] * v`` after the rotation, where v are the integers of its level numbers
    (:data:`BITS`). Whatever the query token q is, <q, token> is at most <rotated q, multipliers[r] v> + slack[r] |q|.
    All tensors are on one device. Their shapes and dtypes are checked, their numbers are not.

    Parameters
    ----------
    bits
        Bits of a level number: 8, 4, 2 or 1.
    dim
        Numbers of a token, 1 to 4096.
    seed
        The seed of the rotation.
    levels
        uint8 ``[total, row_bytes(dim, bits)]``: packed level numbers. If there is ``low``, their high four bits, packed
        as level numbers of four bits.
    multipliers
        bfloat16 ``[total]``, finite.
    slack
        bfloat16 ``[total]``, 0 or more, and perhaps infinite.
    norms
        float32 ``[n]``: for each item an upper bound of the norms of multiplier times v of its tokens; 0 without any.
    starts, lengths
        int64 ``[n]``.
    low
        None, or with ``bits=8`` the low four bits of the level numbers, uint8 ``[total, row_bytes(dim, 4)]``.

    Raises
    ------
    TypeError
        A tensor of another dtype.
    ValueError
        Other bits, or a tensor of another shape.
    """

    bits: int
    dim: int
    seed: int
    levels: Tensor
    multipliers: Tensor
    slack: Tensor
    norms: Tensor
    starts: Tensor
    lengths: Tensor
    low: Tensor | None = None

    def __post_init__(self) -> None:
        if self.bits not in BITS or (self.low is not None and self.bits != 8):
            msg = f"bits must be 8, 4, 2 or 1, and 8 with a low plane; got {self.bits}"
            raise ValueError(msg)
        total, n = self.levels.shape[0], self.starts.shape[0]
        width = row_bytes(self.dim, self.bits if self.low is None else 4)
        wanted = {
            "levels": (torch.uint8, (total, width)),
            "multipliers": (torch.bfloat16, (total,)),
            "slack": (torch.bfloat16, (total,)),
            "norms": (torch.float32, (n,)),
            "starts": (torch.int64, (n,)),
            "lengths": (torch.int64, (n,)),
            **({} if self.low is None else {"low": (torch.uint8, (total, width))}),
        }
        for name, (dtype, shape) in wanted.items():
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != dtype:
                msg = f"{name} must be {dtype}; got {tensor.dtype}"
                raise TypeError(msg)
            if tensor.shape != shape:
                msg = f"{name} must be {list(shape)}; got shape {list(tensor.shape)}"
                raise ValueError(msg)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def device(self) -> torch.device:
        return self.levels.device

    def select(self, items: Tensor) -> Codes:
        """Return the codes of the items with these numbers, int64, in this order. They share the rows."""
        return replace(self, norms=self.norms[items], starts=self.starts[items], lengths=self.lengths[items])

    def to(self, device: torch.device | str) -> Codes:
        """Return the codes with all tensors on ``device``."""
        names = ("levels", "multipliers", "slack", "norms", "starts", "lengths")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, low=None if self.low is None else self.low.to(device), **moved)


@safe_after_fork
def decoded(codes: Codes) -> Tensor:
    """Return the best estimates of the tokens of all items, one item after the other, not rotated: float32.

    The multipliers are smaller than those of the best estimate, because that makes the bound tighter; the slack says
    by how much. Tokens without codes become zeros.

    The bounds of the codes hold for what this returns, too. Before it is rounded to float32, it is TANGENT slack away
    from m v, and rounding moves it by less than 2^-23 of its norm. This is below the rest of the slack, because the
    slack is more than 2^-19 of the norm of the token, and the norm of the estimate is at most that and twice the slack.
    """
    rows = rows_in_order(codes.starts, codes.lengths, int(codes.lengths.sum()))
    levels = codes.levels[rows]
    if codes.low is None:
        numbers = unpacked_levels(levels, codes.bits, codes.dim)
    else:
        high = unpacked_levels(levels, 4, codes.dim)
        numbers = (high << 4) | unpacked_levels(codes.low[rows], 4, codes.dim)
    a, b = BITS[codes.bits]
    integers = numbers.double() * a - b
    multipliers = codes.multipliers[rows].double()
    # A multiplier of 0 marks a token without codes.
    shortened = TANGENT * codes.slack[rows].double() / integers.norm(dim=1).clamp_min(1)
    multipliers = torch.where(multipliers == 0, 0, multipliers + shortened)
    return rotate_back(integers * multipliers[:, None], codes.seed).float()
