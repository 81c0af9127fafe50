"""The Triton kernel that bounds scores from codes: `upper_kernel`, at the end, and the functions that it calls.

:mod:`colbert_fast._backends.triton_upper` launches it. torch_upper.py defines the bound and proves it.
"""

# Annotations in this file are Triton's, not Python's. An `if` on a constexpr is decided by the compiler and must stay a
# statement.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# ruff: noqa: SIM108

from __future__ import annotations

import triton
import triton.language as tl

from colbert_fast._backends.problem import EMPTY_DOCUMENT_SCORE
from colbert_fast._backends.torch_upper import LONGEST, MORE_NORM, MOST
from colbert_fast._backends.triton_kernels import _max, _nothing_yet, _query_tokens, _reduce

# The arguments whose values and alignment do not change the compiled code.
_ANY_VALUE = [
    *("q_starts", "q_lengths", "q_sums", "q_norms", "q_scales", "q_distances", "multipliers", "slack", "norms"),
    *("d_starts", "d_lengths", "bounds", "nq", "nd", "max_lq", "tiles", "shares"),
]
_MORE_NORM, _LONGEST, _MOST = tl.constexpr(MORE_NORM), tl.constexpr(LONGEST), tl.constexpr(MOST)
_EMPTY = tl.constexpr(EMPTY_DOCUMENT_SCORE)


@triton.jit
def _load(pointers, k, BYTES: tl.constexpr, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(pointers, mask=(k < BYTES)[None, :], other=0)
    else:
        return tl.load(pointers)


@triton.jit
def _numbers(
    levels,
    low,
    offsets,
    k,
    BYTES: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Return what is multiplied of K bytes of each row: int8 ``[BLOCK_D, K * numbers of a byte]``.

    The numbers of a byte lie side by side, the lowest bits first. Numbers of 8 bits are the integers that they stand
    for, and others are level numbers.
    """
    x = _load(levels + offsets[:, None] + k[None, :], k, BYTES, MASKED)
    if low is not None:
        y = _load(low + offsets[:, None] + k[None, :], k, BYTES, MASKED)
        x = tl.reshape(tl.join((x << 4) | (y & 15), (x & 240) | (y >> 4)), [BLOCK_D, 2 * K])
    if BITS == 8:
        x = x ^ 128  # l - 128 in eight bits
    else:
        x = tl.join(x, x >> 4)
        if BITS <= 2:
            x = tl.join(x, x >> 2)
        if BITS == 1:
            x = tl.join(x, x >> 1)
        x = tl.reshape(x, [BLOCK_D, K * (8 // BITS)]) & (2**BITS - 1)
    return x.to(tl.int8, bitcast=True)


@triton.jit
def _dot(q, d, s, SWAP: tl.constexpr):
    if SWAP:
        return tl.dot(d, tl.trans(q), s, out_dtype=tl.int32)
    else:
        return tl.dot(q, tl.trans(d), s, out_dtype=tl.int32)


@triton.jit
def _values(
    q_rows,
    q,
    real,
    sums,
    radii,
    levels,
    low,
    multipliers,
    slack,
    start,
    left,
    BYTES: tl.constexpr,
    K: tl.constexpr,
    PIECES: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SWAP: tl.constexpr,
):
    """Return m <y, v> + slack |q| for one tile: ``[BLOCK_Q, BLOCK_D]``, or with SWAP ``[BLOCK_D, BLOCK_Q]``.

    The tile has the rows from ``start`` on, at most ``left`` of them. After the last one, it is taken again, which
    changes no maximum.
    """
    NUMBERS: tl.constexpr = K * (8 // BITS) if low is None else 2 * K
    row = tl.minimum(tl.arange(0, BLOCK_D), left - 1)
    k = tl.arange(0, K)
    if SWAP:
        s = tl.zeros([BLOCK_D, BLOCK_Q], tl.int32)
    else:
        s = tl.zeros([BLOCK_Q, BLOCK_D], tl.int32)
    rows = levels + start * BYTES
    low_rows = low
    if low is not None:
        low_rows = low + start * BYTES
    if PIECES == 1:
        d = _numbers(rows, low_rows, row * BYTES, k, BYTES, K, BITS, BLOCK_D, BYTES < K)
        s = _dot(q, d, s, SWAP)
    else:
        numbers = tl.arange(0, NUMBERS)
        for piece in range(0, PIECES):
            q_piece = tl.load(q_rows[:, None] + (piece * NUMBERS + numbers)[None, :], mask=real[:, None], other=0)
            d = _numbers(
                rows, low_rows, row * BYTES, piece * K + k, BYTES, K, BITS, BLOCK_D, BYTES < K * PIECES
            )  # fmt: skip
            s = _dot(q_piece, d, s, SWAP)
    m = tl.load(multipliers + start + row).to(tl.float32)
    t = tl.load(slack + start + row).to(tl.float32)
    AXIS: tl.constexpr = 1 if SWAP else 0
    if BITS < 8:
        s = 2 * s - tl.expand_dims(sums, 1 - AXIS)
    radius = tl.expand_dims(radii, 1 - AXIS)
    return s.to(tl.float32) * tl.expand_dims(m, AXIS) + tl.expand_dims(t, AXIS) * radius


@triton.jit
def _finished(total, norm, length, bounds):
    """Return bounds of one document as they are stored. Those of float32 are rounded up: see torch_upper.rounded_up."""
    if bounds.dtype.element_ty == tl.float64:
        return total
    else:
        up = total + tl.abs(total) * 2.0**-22 + 2.0**-120
        up = tl.where(up > -_MOST, up, -_MOST).to(tl.float32)
        up = tl.where(total == total, up, float("inf"))
        up = tl.where(norm <= _LONGEST, up, float("inf"))
        return tl.where(length > 0, up, _EMPTY)


# Bounds the scores of one tile of query tokens and one document after another.
#
# Tile map. As in score_kernel: a tile holds BLOCK_Q // max_lq whole queries, or a part of a query that is longer than a
# tile, and `shares` programs have the same queries. With SWAP the rows of the products are document tokens, and there
# is one maximum for each element of a tile; without it there are four for each query token.
#
# q_tokens [rows, PIECES * numbers] int8 are in the order in which _numbers unpacks levels, and zeros where a row of
# levels has nothing. So a dimension that is not there adds nothing. 127 * 255 * 4096 < 2^31: no sum overflows.
#
# bounds [blocks, nq, nd] float64 has a bound for each part of a query. The caller adds the parts, and rounds them up.
# bounds [nq, nd] float32 has the bounds of whole queries.
@triton.jit(do_not_specialize=_ANY_VALUE)
def upper_kernel(
    q_tokens,
    q_starts,
    q_lengths,
    q_sums,
    q_norms,
    q_scales,
    q_distances,
    levels,
    low,
    multipliers,
    slack,
    norms,
    d_starts,
    d_lengths,
    bounds,
    nq,
    nd,
    max_lq,
    tiles,
    shares,
    BYTES: tl.constexpr,
    K: tl.constexpr,
    PIECES: tl.constexpr,
    NUMBERS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    QUERIES: tl.constexpr,
    SWAP: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    pid = tl.program_id(0)
    tile = pid % tiles
    share = (pid // tiles).to(tl.int64)
    query, slot, token, owned = _query_tokens(tile, nq, max_lq, BLOCK_Q, QUERIES)
    shares = shares.to(tl.int64)
    own = tl.cdiv(nd - share, shares).to(tl.int32)
    document = share
    start = tl.load(d_starts + document)
    length = tl.load(d_lengths + document).to(tl.int32)
    norm = tl.load(norms + document)
    real = owned & (token < tl.load(q_lengths + query).to(tl.int32))
    row = tl.load(q_starts + query) + token
    q_rows = q_tokens + row * (PIECES * NUMBERS)
    q = slot
    if PIECES == 1:
        q = tl.load(q_rows[:, None] + tl.arange(0, NUMBERS)[None, :], mask=real[:, None], other=0)
    sums = tl.load(q_sums + row, mask=real, other=0)
    radii = tl.load(q_norms + row, mask=real, other=0.0)
    scales = tl.load(q_scales + row, mask=real, other=0.0)
    distances = tl.load(q_distances + row, mask=real, other=0.0)
    columns = tl.arange(0, BLOCK_D)

    for place in range(0, own):
        # Load what is known of the next document while this document is bounded.
        following = share + tl.minimum(place + 1, own - 1) * shares
        next_start = tl.load(d_starts + following)
        next_length = tl.load(d_lengths + following).to(tl.int32)
        next_norm = tl.load(norms + following)
        top, at = _nothing_yet(BLOCK_Q, BLOCK_D, SWAP)
        for t in tl.range(0, tl.cdiv(length, BLOCK_D), num_stages=STAGES):
            s = _values(
                q_rows, q, real, sums, radii, levels, low, multipliers, slack, start + t * BLOCK_D,
                length - t * BLOCK_D, BYTES, K, PIECES, BITS, BLOCK_Q, BLOCK_D, SWAP,
            )  # fmt: skip
            top, at = _reduce(s, 0, columns, top, at, BLOCK_Q, BLOCK_D, SWAP, False, INTERPRETED)
        best = _max(top, 0 if SWAP else 1, INTERPRETED)
        each = best.to(tl.float64) * scales + distances * (norm.to(tl.float64) + _MORE_NORM)
        value = tl.where(real & (length > 0), each, 0.0)
        if QUERIES == 1:
            block = (tile % tl.cdiv(max_lq, BLOCK_Q)).to(tl.int64)
            total = _finished(tl.sum(value, axis=0), norm, length, bounds)
            tl.store(bounds + (block * nq + query) * nd + document, total)
        else:
            slots = tl.arange(0, QUERIES)
            mine = (slot[:, None] == slots[None, :]) & owned[:, None]
            total = tl.sum(tl.where(mine, value[:, None], 0.0), axis=0)
            per_tile = BLOCK_Q // max_lq
            queries = tile.to(tl.int64) * per_tile + slots
            stored = (slots < per_tile) & (queries < nq)
            tl.store(bounds + queries * nd + document, _finished(total, norm, length, bounds), mask=stored)
        document, start, length, norm = following, next_start, next_length, next_norm
