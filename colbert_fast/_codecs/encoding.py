"""Encoding of tokens, and the proof of the bound.

THE CODES. A token x of n numbers is rotated: y = R x. Its numbers are rounded to levels, which are integers v times a
step. What is kept are the numbers of the levels (packing.py), a multiplier m and a slack, both bfloat16.

THE BOUND. R is a rotation, so <q, x> = <R q, y> = <R q, m v> + <R q, y - m v>, for every query token q and every m.
By Cauchy and Schwarz

    <q, x> <= <R q, m v> + slack |q|    where    slack >= |y - m v|.

It is linear in (R q, |q|). So the sum over query tokens of the largest bound of a document is a MaxSim with one more
number a token, and it bounds the score of the document, because sums and maxima keep the order.

THE MULTIPLIER. The least squares choice m0 = <y, v> / <v, v> has the shortest residual, of length
rho = |y - m0 v|, at a right angle to v. But the tokens that matter are near the query token. The bound is tight for
queries in the direction t |v| = <R q, v> / |q| if the multiplier is smaller, m = m0 - rho t / (w |v|) with
w = sqrt(1 - t^2), and then |y - m v| = rho / w. We take t = 1/2. A multiplier that is rounded belongs to another t, and
the bound holds for it as well. It also holds where rho is a mere estimate.

WHAT IS COMPUTED. Let u be as in rotation.py: 2^-23 for float32, 2^-52 for float64. A hat marks what is computed.
  1. The rotation. rotation_error() gives g with |y^ - y| <= g |x|. So |x| <= |y^| / (1 - g).
  2. The residual. m has 8 significant bits and an integer |v| <= 128 has 8 at most, so m v is exact. A number of
     y^ - m v has one rounding, so its square has three, and it passes fewer than n more in the sum S:
     S >= (1 - u)^(n + 3) E^2 with E = |y^ - m v|. Where denormal numbers are flushed, the squares lose less than
     n 2^-126 <= 2^-114 in all, and E is off by 2^-57 more. Likewise C, the sum of the squares of y^, for |y^|.
  3. Then |y - m v| <= E + g |x|. As |x| >= 2^-31 (see below), the flushed parts are below |x| u / 8 for float32, and
     slack = (sqrt(S) + (g + u) sqrt(C)) (1 + (n + 16) u)
     covers all of it: n / 2 + 2 roundings of the sums, and less than 8 of this formula itself.
     It becomes bfloat16 by rounding up.
  4. The norm of m v is at most |m| sqrt(sum of v^2) (1 + (n + 16) u), because this sum has fewer than n roundings.
  5. Step 2 needs 2^-60 <= C <= 2^120. No product overflows then, and nothing that matters is flushed. (A multiplier
     below 2^-100 becomes 0.) Another token gets m = 0, and as slack its norm, which is computed in float64, where
     float32 numbers cannot overflow: slack = |x| (1 + 2^-20) + 2^-120, also rounded up. 2^-120 covers denormal
     numbers that are read as zeros, at most 64 * 2^-126. A token of zeros gets m = 0 and the slack 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from colbert_fast._codecs.codes import TANGENT, Codes
from colbert_fast._codecs.packing import BITS, packed_levels, row_bytes
from colbert_fast._codecs.rotation import rotate, rotation_error, signs

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The rows that are encoded together have so many numbers: 32 MiB in float64.
_CHUNK_NUMBERS = 2**22
# (levels on each side of 0, the largest step in units of the standard deviation of the numbers of a token). The range
# of the levels is the largest magnitude of the token, unless that makes steps wider than those with the smallest mean
# squared error for normal numbers (Max, Quantizing for minimum distortion, 1960).
_STEPS = {8: (127.5, math.inf), 4: (8.0, 0.335), 2: (2.0, 0.996), 1: (1.0, math.inf)}


def encode(tokens: Tensor, lengths: Tensor, *, bits: int, seed: int) -> Codes:
    """Encode the tokens of items.

    Parameters
    ----------
    tokens
        float32, float16 or bfloat16 ``[total, dim]`` on the CPU, one item after the other; dim 1 to 4096.
    lengths
        int64 ``[n]``: the number of tokens of each item; their sum is total.
    bits
        Bits of a level number: 8, 4, 2 or 1.
    seed
        The seed of the rotation, 0 to 2**64 - 1.

    Returns
    -------
    The codes, with new tensors on the CPU.

    Raises
    ------
    TypeError
        Tokens or lengths of another dtype.
    ValueError
        Tokens that are not such a matrix, lengths that do not fit, another number of bits, or an item with a NaN or an
        infinity.
    """
    if bits not in BITS:
        msg = f"bits must be 8, 4, 2 or 1; got {bits}"
        raise ValueError(msg)
    (codes,) = _encoded(tokens, lengths, [bits], seed)
    return codes


def encode_planes(tokens: Tensor, lengths: Tensor, *, seed: int) -> tuple[Codes, Codes]:
    """Encode the tokens of items in 8 bits, of which the high four are codes of their own.

    The arguments are those of :func:`encode`.

    Returns
    -------
    The codes of 4 bits, and the codes of 8 bits, with a low plane. They share the plane of the high bits.
    """
    first, both = _encoded(tokens, lengths, [4, 8], seed)
    return first, both


def _encoded(tokens: Tensor, lengths: Tensor, kinds: list[int], seed: int) -> list[Codes]:
    """Encode in each of these numbers of bits. Two numbers mean planes."""
    _check(tokens, lengths)
    total, dim = tokens.shape
    signs(dim, seed)  # raises if there is no such rotation
    planes = len(kinds) > 1
    packed = [
        torch.zeros((total, row_bytes(dim, 4 if planes else bits)), dtype=torch.uint8, device="cpu") for bits in kinds
    ]
    multipliers = [torch.zeros(total, dtype=torch.bfloat16, device="cpu") for _ in kinds]
    slack = [torch.zeros(total, dtype=torch.bfloat16, device="cpu") for _ in kinds]
    norms = [torch.zeros(total, device="cpu") for _ in kinds]
    step = max(1, _CHUNK_NUMBERS // dim)
    for first in range(0, total, step):
        rows = slice(first, first + step)
        x = tokens[rows].to(torch.float64)
        bad = ~x.isfinite().all(1)
        if bool(bad.any()):
            _refuse(first + int(bad.int().argmax()), lengths)
        y = rotate(x, seed)
        levels = _levels(y, kinds[-1], clip=not planes)
        for i, bits in enumerate(kinds):
            numbers = levels >> 4 if planes and bits == 4 else levels
            multipliers[i][rows], slack[i][rows], norms[i][rows] = _fitted(x, y, numbers, bits)
            if not planes:
                packed[i][rows] = packed_levels(numbers, bits)
        if planes:
            packed[0][rows], packed[1][rows] = packed_levels(levels >> 4, 4), packed_levels(levels & 15, 4)
    starts = lengths.cumsum(0) - lengths
    items = torch.arange(len(lengths), device="cpu").repeat_interleave(lengths)
    return [
        Codes(
            bits=bits,
            dim=dim,
            seed=seed,
            levels=packed[0],
            multipliers=multipliers[i],
            slack=slack[i],
            norms=torch.zeros(len(lengths), device="cpu").scatter_reduce_(0, items, norms[i], "amax"),
            starts=starts.clone(),
            lengths=lengths.clone(),
            low=packed[1] if planes and bits == 8 else None,
        )
        for i, bits in enumerate(kinds)
    ]


def _check(tokens: Tensor, lengths: Tensor) -> None:
    if tokens.dtype not in _DTYPES:
        msg = f"tokens must be float32, float16 or bfloat16; got {tokens.dtype}"
        raise TypeError(msg)
    if lengths.dtype != torch.int64:
        msg = f"lengths must be int64; got {lengths.dtype}"
        raise TypeError(msg)
    if tokens.ndim != 2 or tokens.device.type != "cpu":
        msg = f"tokens must be [total, dim] on the CPU; got shape {list(tokens.shape)} on {tokens.device}"
        raise ValueError(msg)
    if lengths.ndim != 1 or bool((lengths < 0).any()) or int(lengths.sum()) != len(tokens):
        msg = f"lengths must be [n], each 0 or more, and their sum the {len(tokens)} tokens; got {lengths}"
        raise ValueError(msg)


def _refuse(row: int, lengths: Tensor) -> None:
    item = int(torch.searchsorted(lengths.cumsum(0), row, right=True))
    msg = f"tokens must be finite; item {item} has a NaN or an infinity"
    raise ValueError(msg)


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


def _fitted(x: Tensor, y: Tensor, levels: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return multipliers, slack and upper bounds of the norms of the codes."""
    a, b = BITS[bits]
    v = levels.to(torch.float64) * a - b
    squares, norm = v.square().sum(1).clamp_min(1), x.square().sum(1).sqrt()
    y_squares = y.square().sum(1)
    fit = (y * v).sum(1) / squares
    rho = (y - fit[:, None] * v).norm(dim=1)
    m = (fit - rho * TANGENT / math.sqrt(1 - TANGENT**2) / squares.sqrt()).to(torch.bfloat16)
    bounded = (y_squares >= 2.0**-60) & (y_squares <= 2.0**120)
    m[~bounded | (m.abs() < 2.0**-100)] = 0
    unit = torch.finfo(torch.float64).eps
    factor = 1 + (x.shape[1] + 16) * unit
    residual = (y - m.double()[:, None] * v).square().sum(1).sqrt()
    slack = (residual + (rotation_error(x.shape[1], torch.float64) + unit) * y_squares.sqrt()) * factor
    slack = torch.where(bounded, slack, norm * (1 + 2.0**-20) + 2.0**-120)
    slack[(x == 0).all(1)] = 0
    return m, _rounded_up(slack), (m.double().abs() * squares.sqrt() * (1 + 2.0**-20)).float()


def _rounded_up(numbers: Tensor) -> Tensor:
    """Round float64 numbers, 0 or more, up to bfloat16, which is the upper half of a float32."""
    # The rounding to float32 may go down by 2^-24 of the number. The smallest numbers here are above 2^-121.
    single = (numbers * (1 + 2.0**-22)).float()
    upper: Tensor = (single.view(torch.int32) + 0xFFFF) >> 16
    return upper.to(torch.int16).view(torch.bfloat16)
