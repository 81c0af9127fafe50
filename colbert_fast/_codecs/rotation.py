"""The rotation that spreads the energy of a token evenly over its numbers, and is the same on every machine.

A rotation has four stages. Each one multiplies the numbers by signs, and then applies the normalised Walsh-Hadamard
transform to p of them, where p is the largest power of two that is not above dim: the first p numbers in stages 0 and
2, the last p in stages 1 and 3. This takes log2(p) additions a number and stage, where a matrix takes dim
multiplications. (Ailon and Chazelle, The fast Johnson-Lindenstrauss transform, SIAM Journal on Computing, 2009.)
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

STAGES = 4
MOST_DIM = 4096


@lru_cache(maxsize=32)
def signs(dim: int, seed: int) -> Tensor:
    """Return 1 and -1 as float32 ``[4, dim]``. Do not write to it: later calls return the same tensor.

    They are the highest bits of the first numbers of Philox with this key. numpy keeps that stream as it is in every
    version. (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011.)

    Raises
    ------
    ValueError
        ``dim`` is not in 1 to 4096, or ``seed`` not in 0 to 2**64 - 1.
    """
    if not 1 <= dim <= MOST_DIM:
        msg = f"dim must be 1 to {MOST_DIM}; got {dim}"
        raise ValueError(msg)
    if not 0 <= seed < 2**64:
        msg = f"seed must be 0 to 2**64 - 1; got {seed}"
        raise ValueError(msg)
    negative = np.random.Philox(key=seed).random_raw(STAGES * dim) >> np.uint64(63)
    return torch.from_numpy((1 - 2 * negative.astype(np.float32)).reshape(STAGES, dim))


def rotation_error(dim: int, dtype: torch.dtype = torch.float32) -> float:
    """Return g, so that a rotation in ``dtype``, by any program, is off by at most g times the norm of the row.

    Let p = 2**L, and u = 2**-23 for float32 and 2**-52 for float64: no rounding is off by more than the factor 1 +- u,
    whatever the rounding mode is. A stage has two roundings for 1 / sqrt(p), one for the product with it, and one for
    each of the L layers of sums and differences. Each step multiplies the norm of any row by a number of its own: the
    product with 1 / sqrt(p) as well as a layer. So an error, relative to the norm of the row, stays as it is in later
    steps. All roundings together are at most (1 + u)**(4 (L + 3)) - 1 <= (4 L + 13) u, because L <= 12.

    If denormal numbers are flushed to zero, each of fewer than 64 steps loses at most 2**-126 a number, and the later
    steps of its stage make at most 64 times that of it: less than 64 * 64 * 64 * 2**-126 = 2**-108 of norm in all. For
    rows with a norm of 2**-60 or more this is below u times the norm. (In float64 only the float32 numbers of the row
    can be flushed, which is at most 64 * 2**-126.) So g = 4 (L + 4) u.

    A stage may leave out numbers, which then pass fewer roundings. The order of the layers does not matter, and a
    product that is fused with a sum has fewer roundings.
    """
    unit = torch.finfo(dtype).eps
    return 4 * (int(math.log2(_power(dim))) + 4) * unit


def rotate(rows: Tensor, seed: int) -> Tensor:
    """Rotate each row of float32 or float64 ``[n, dim]``, on its device. :func:`rotation_error` bounds the error."""
    dim = rows.shape[1]
    factors = signs(dim, seed).to(rows)
    for stage in range(STAGES):
        rows = _transformed(rows * factors[stage], stage)
    return rows


def rotate_back(rows: Tensor, seed: int) -> Tensor:
    """Undo :func:`rotate`, with as small an error."""
    dim = rows.shape[1]
    factors = signs(dim, seed).to(rows)
    for stage in reversed(range(STAGES)):
        rows = _transformed(rows, stage) * factors[stage]
    return rows


def _power(dim: int) -> int:
    """Return the largest power of two that is not above ``dim``."""
    return int(1 << (dim.bit_length() - 1))


def _transformed(rows: Tensor, stage: int) -> Tensor:
    """Apply the normalised Walsh-Hadamard transform to the numbers of a row that belong to the stage."""
    n, dim = rows.shape
    p = _power(dim)
    first = 0 if stage % 2 == 0 else dim - p
    part = rows[:, first : first + p] * (1 / math.sqrt(p))
    half = 1
    while half < p:
        a, b = part.reshape(n, p // (2 * half), 2, half).unbind(2)
        part = torch.stack((a + b, a - b), 2)
        half *= 2
    return torch.cat((rows[:, :first], part.reshape(n, p), rows[:, first + p :]), 1)
