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

WHAT IS COMPUTED. csrc/host/encode.cpp computes in float32, and in_torch.py in float64 where there is no extension. Let
u be as in rotation.py: 2^-23 for float32, 2^-52 for float64. A hat marks what is computed.
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

import torch
from torch import Tensor

from colbert_fast._arrays import aligned
from colbert_fast._codecs.codes import Codes
from colbert_fast._codecs.in_torch import Fit, fill_in_torch
from colbert_fast._codecs.packing import BITS, row_bytes
from colbert_fast._codecs.rotation import signs
from colbert_fast._extension import _C
from colbert_fast._forks import safe_after_fork
from colbert_fast._threads import get_num_threads

# The numbers of DType in csrc/maxsim.h.
_NUMBER_OF_DTYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@safe_after_fork
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
    return _encoded(tokens, lengths, [bits], seed)[0]


@safe_after_fork
def encode_planes(tokens: Tensor, lengths: Tensor, *, seed: int) -> tuple[Codes, Codes]:
    """Encode the tokens of items in 8 bits, of which the high four are codes of their own.

    The arguments are those of :func:`encode`.

    Returns
    -------
    The codes of 4 bits, and the codes of 8 bits, with a low plane. They share the plane of the high bits.
    """
    both, first = _encoded(tokens, lengths, [8, 4], seed)
    return first, both


def _encoded(tokens: Tensor, lengths: Tensor, kinds: list[int], seed: int) -> list[Codes]:
    """Return codes for each of these numbers of bits: one number, or 8 and 4 for planes."""
    _check(tokens, lengths)
    tokens = tokens.detach()
    total, dim = tokens.shape
    signs(dim, seed)  # raises if there is no such rotation
    planes = len(kinds) > 1
    width = row_bytes(dim, 4 if planes else kinds[0])
    levels = torch.empty((total, width), dtype=torch.uint8, device="cpu")
    low = torch.empty_like(levels) if planes else None
    fits = [_empty_fit(total, bits) for bits in kinds]
    refused = (fill_in_torch if _C is None else _fill)(tokens, seed, levels, low, fits)
    if refused >= 0:
        item = int(torch.searchsorted(lengths.cumsum(0), refused, right=True))
        msg = f"tokens must be finite; item {item} has a NaN or an infinity"
        raise ValueError(msg)
    items = torch.arange(len(lengths), device="cpu").repeat_interleave(lengths)
    return [
        Codes(
            bits=bits,
            dim=dim,
            seed=seed,
            levels=levels,
            multipliers=multipliers,
            slack=slack,
            norms=torch.zeros(len(lengths), dtype=torch.float32, device="cpu").scatter_reduce_(0, items, norms, "amax"),
            starts=lengths.cumsum(0) - lengths,
            lengths=lengths.clone(),
            low=low if bits == 8 else None,
        )
        for bits, multipliers, slack, norms in fits
    ]


def _check(tokens: Tensor, lengths: Tensor) -> None:
    if tokens.dtype not in _NUMBER_OF_DTYPE:
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


def _empty_fit(total: int, bits: int) -> Fit:
    dtypes = (torch.bfloat16, torch.bfloat16, torch.float32)
    multipliers, slack, norms = (torch.empty(total, dtype=dtype, device="cpu") for dtype in dtypes)
    return bits, multipliers, slack, norms


def _fill(tokens: Tensor, seed: int, levels: Tensor, low: Tensor | None, fits: list[Fit]) -> int:
    """Do what :func:`fill_in_torch` does, on the threads of the extension."""
    tokens = tokens.resolve_neg()
    if tokens.stride(1) != 1:
        tokens = tokens.contiguous()
    high = fits[1] if low is not None else None
    number, factors = _NUMBER_OF_DTYPE[tokens.dtype], signs(tokens.shape[1], seed)
    return _C.encode(number, aligned(tokens), factors, get_num_threads(), levels, low, fits[0], high)
