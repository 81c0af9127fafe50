"""The arithmetic of encoding.py in float64, for where there is no extension."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from colbert_fast._codecs.codes import TANGENT
from colbert_fast._codecs.packing import BITS, packed_levels
from colbert_fast._codecs.rotation import rotate, rotation_error

# What belongs to level numbers of so many bits: (bits, multipliers, slack, norms), for each token.
Fit: TypeAlias = tuple[int, Tensor, Tensor, Tensor]

# The rows that are encoded together have so many numbers: 32 MiB in float64.
_CHUNK_NUMBERS = 2**22
# (levels on each side of 0, the largest step in units of the standard deviation of the numbers of a token). The range
# of the levels is the largest magnitude of the token, unless that makes steps wider than those with the smallest mean
# squared error for normal numbers (Max, Quantizing for minimum distortion, 1960).
_STEPS = {8: (127.5, math.inf), 4: (8.0, 0.335), 2: (2.0, 0.996), 1: (1.0, math.inf)}


def fill_in_torch(tokens: Tensor, seed: int, levels: Tensor, low: Tensor | None, fits: list[Fit]) -> int:
    """Fill levels, low unless it is None, and the fits: of 8 and of 4 bits if there is low.

    Returns -1, or the number of the first token with a NaN or an infinity.
    """
    step = max(1, _CHUNK_NUMBERS // tokens.shape[1])
    for first in range(0, len(tokens), step):
        rows = slice(first, first + step)
        x = tokens[rows].to(torch.float64)
        bad = ~x.isfinite().all(1)
        if bool(bad.any()):
            return first + int(bad.int().argmax())
        y = rotate(x, seed)
        squares = y.square().sum(1)
        bounded = (squares >= 2.0**-60) & (squares <= 2.0**120)
        y[~bounded] = 0
        numbers = _levels(y, fits[0][0], clip=low is None)
        if low is None:
            levels[rows] = packed_levels(numbers, fits[0][0])
        else:
            levels[rows], low[rows] = packed_levels(numbers >> 4, 4), packed_levels(numbers & 15, 4)
        for bits, multipliers, slack, norms in fits:
            its_numbers = numbers >> 4 if low is not None and bits == 4 else numbers
            multipliers[rows], slack[rows], norms[rows] = _fitted(x, y, bounded, its_numbers, bits)
    return -1


def _levels(y: Tensor, bits: int, *, clip: bool) -> Tensor:
    """Return the numbers of the levels nearest to rotated tokens, uint8."""
    middle = 1 << (bits - 1)
    if bits == 1:
        return (y >= 0).to(torch.uint8)
    half, widest = _STEPS[bits]
    step = y.abs().amax(1, keepdim=True) / half
    if clip:
        step = torch.minimum(step, widest * y.square().mean(1, keepdim=True).sqrt())
    # Rounded down: the integer nearest to y / step for 8 bits, else the middle of the step that y is in.
    offset = middle + 0.5 if bits == 8 else middle
    return (y / step + offset).nan_to_num(middle).clamp(0, 2 * middle - 1).to(torch.uint8)


def _fitted(x: Tensor, y: Tensor, bounded: Tensor, levels: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return multipliers, slack and upper bounds of the norms of the codes."""
    a, b = BITS[bits]
    v = levels.to(torch.float64) * a - b
    squares, norm = v.square().sum(1).clamp_min(1), x.square().sum(1).sqrt()
    y_squares = y.square().sum(1)
    fit = (y * v).sum(1) / squares
    rho = (y - fit[:, None] * v).norm(dim=1)
    m = (fit - rho * TANGENT / math.sqrt(1 - TANGENT**2) / squares.sqrt()).to(torch.bfloat16)
    m[~bounded | (m.abs() < 2.0**-100)] = 0
    # The errors are those of float32, because decoded() needs a slack that is not as small as those of float64.
    unit = torch.finfo(torch.float32).eps
    factor = 1 + (x.shape[1] + 16) * unit
    residual = (y - m.double()[:, None] * v).square().sum(1).sqrt()
    slack = (residual + (rotation_error(x.shape[1]) + unit) * y_squares.sqrt()) * factor
    slack = torch.where(bounded, slack, norm * (1 + 2.0**-20) + 2.0**-120)
    slack[(x == 0).all(1)] = 0
    return m, _rounded_up(slack), (m.double().abs() * squares.sqrt() * (1 + 2.0**-20)).float()


def _rounded_up(numbers: Tensor) -> Tensor:
    """Round float64 numbers, 0 or more, up to bfloat16, which is the upper half of a float32."""
    # The rounding to float32 may go down by 2^-24 of the number. The smallest numbers here are above 2^-121.
    single = (numbers * (1 + 2.0**-22)).float()
    upper: Tensor = (single.view(torch.int32) + 0xFFFF) >> 16
    return upper.to(torch.int16).view(torch.bfloat16)
