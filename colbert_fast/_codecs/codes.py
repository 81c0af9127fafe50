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


def integers(codes: Codes, rows: Tensor) -> Tensor:
    """Return the integers that the levels of some rows stand for: float32 ``[len(rows), dim]``; rows are int64."""
    levels = unpacked_levels(codes.levels[rows], codes.bits if codes.low is None else 4, codes.dim)
    if codes.low is not None:
        levels = levels << 4 | unpacked_levels(codes.low[rows], 4, codes.dim)
    a, b = BITS[codes.bits]
    return levels.to(torch.float32).mul_(a).sub_(b)


@safe_after_fork
def decoded(codes: Codes) -> Tensor:
    """Return the best estimates of the tokens, not rotated: float32 ``[total, dim]``, one item after the other.

    Encoding stores smaller multipliers than the best ones, because the bound is tighter then. The slack tells how much
    smaller they are, so what they lack is added here. A token with the multiplier 0 has no codes and becomes zeros.

    The bounds of the codes hold for the estimates, too: each one is at most slack away from m v, after the rotation.
    In float64 it is TANGENT slack = slack / 2 away. Rounding to float32 moves it by less than 2^-23 of its norm, which
    is less than slack / 8: its norm is at most |x| + 2 slack, and |x| is less than 2^19 slack, because encoding adds at
    least 2^-19 |x| to the slack for its own errors.
    """
    rows = rows_in_order(codes.starts, codes.lengths, int(codes.lengths.sum()))
    v = integers(codes, rows).double()
    multipliers = codes.multipliers[rows].double()
    shortened = TANGENT * codes.slack[rows].double() / v.norm(dim=1).clamp_min(1)
    multipliers = torch.where(multipliers == 0, 0, multipliers + shortened)
    return rotate_back(v * multipliers[:, None], codes.seed).float()
