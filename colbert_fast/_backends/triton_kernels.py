"""The Triton kernels: MaxSim of PackedTokens, and its gradients. Launched by :mod:`colbert_fast._backends.triton_`.

Nothing here is for one vendor: tiles, warps and stages come from the caller, loads go through pointers.
"""

# An annotation here is Triton's, not Python's. A decision of the compiler is a statement, one of the GPU tl.where.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# ruff: noqa: SIM108

from __future__ import annotations

import triton
import triton.language as tl

EMPTY_DOCUMENT_SCORE = tl.constexpr(-1e9)
_NOWHERE = tl.constexpr(2**31 - 1)
# Dimensions whose products are one chain of sums, where they are read in pieces. The error of a chain grows with it.
_CHAIN = tl.constexpr(1024)

# The arguments whose value and alignment the code does not depend on: all but the token rows.
_ANY_VALUE = [
    *("q_starts", "q_lengths", "d_starts", "d_lengths", "d_scales", "pairs", "scores", "argmax"),
    *("nq", "nd", "num_pairs", "max_lq", "tiles", "run"),
    *("own_starts", "own_lengths", "other_starts", "other_lengths", "other_scales", "order", "bounds", "grad_scores"),
    *("num_rows", "num_items", "num_others"),
]


@triton.jit
def _nan_or_greater(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _max(x, AXIS: tl.constexpr, INTERPRETED: tl.constexpr):
    """Maximum along an axis; NaN wins, as in torch and unlike in tl.max."""
    if INTERPRETED:  # which calls Python for each element of a reduction that it does not know
        is_nan = x != x
        largest = tl.max(tl.where(is_nan, float("-inf"), x), axis=AXIS)
        return tl.where(tl.max(is_nan.to(tl.int32), axis=AXIS) == 1, float("nan"), largest)
    else:
        return tl.reduce(x, AXIS, _nan_or_greater)


@triton.jit
def _any(x):
    return tl.max(x.to(tl.int32), axis=0) == 1


@triton.jit
def _load(pointers, row_mask, k, DIM: tl.constexpr, MASK_K: tl.constexpr, MASK_ROWS: tl.constexpr):
    """Rows times dimensions; 0 where there is nothing. No mask is computed that is not needed."""
    if MASK_ROWS:
        if MASK_K:
            return tl.load(pointers, mask=row_mask[:, None] & (k < DIM)[None, :], other=0.0)
        else:
            return tl.load(pointers, mask=row_mask[:, None], other=0.0)
    else:
        if MASK_K:
            return tl.load(pointers, mask=(k < DIM)[None, :], other=0.0)
        else:
            return tl.load(pointers)


@triton.jit
def _dot(q, d, s, SWAP: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """Add q [BLOCK_Q, K] times d [BLOCK_D, K] to s: [BLOCK_Q, BLOCK_D], with SWAP [BLOCK_D, BLOCK_Q]."""
    if INTERPRETED:  # whose last bit depends on the place in a tile
        q = q.to(tl.float64)
        if SWAP:
            return s + tl.dot(d.to(tl.float64), tl.trans(q)).to(tl.float32)
        else:
            return s + tl.dot(q, tl.trans(d.to(tl.float64))).to(tl.float32)
    d = d.to(q.dtype)  # int8 is exact in every type of a query
    if SWAP:
        return tl.dot(d, tl.trans(q), s, input_precision=PRECISION)
    else:
        return tl.dot(q, tl.trans(d), s, input_precision=PRECISION)


@triton.jit
def _has_nonzero(tokens, mask, DIM: tl.constexpr, BLOCK_K: tl.constexpr):
    """Whether each row, given by a pointer to its first element, is more than zeros. NaN is."""
    k = tl.arange(0, BLOCK_K)
    found = mask & (mask != mask)
    for first in range(0, DIM, BLOCK_K):
        x = tl.load(tokens[:, None] + (first + k)[None, :], mask=mask[:, None] & (first + k < DIM)[None, :], other=0.0)
        found |= tl.max((x.to(tl.float32) != 0).to(tl.int32), axis=1) == 1
    return found


@triton.jit
def _similarity(
    q_rows,
    q1,
    q2,
    real,
    d_rows,
    inside,
    d_scales,
    first_row,
    DIM: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
    SWAP: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Dot products of one tile, and the products with the documents' scales.

    DIM <= K1 + K2: the query's tiles are q1 and q2, already loaded. Else both sides are read K1 dimensions at a time,
    and the sums of _CHAIN dimensions are added.
    """
    if SWAP:
        s = tl.zeros([BLOCK_D, BLOCK_Q], tl.float32)
    else:
        s = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    k1 = tl.arange(0, K1)
    if DIM <= K1 + K2:
        d1 = _load(d_rows[:, None] + k1[None, :], inside, k1, DIM, DIM < K1, MASKED)
        s = _dot(q1, d1, s, SWAP, PRECISION, INTERPRETED)
        if K2 > 0:
            k2 = K1 + tl.arange(0, K2)
            d2 = _load(d_rows[:, None] + k2[None, :], inside, k2, DIM, DIM < K1 + K2, MASKED)
            s = _dot(q2, d2, s, SWAP, PRECISION, INTERPRETED)
    else:
        for begin in range(0, DIM, _CHAIN):
            part = tl.zeros_like(s)
            for first in range(begin, tl.minimum(begin + _CHAIN, DIM), K1):
                k = first + k1
                q = _load(q_rows[:, None] + k[None, :], real, k, DIM, DIM % K1 != 0, True)
                d = _load(d_rows[:, None] + k[None, :], inside, k, DIM, DIM % K1 != 0, MASKED)
                part = _dot(q, d, part, SWAP, PRECISION, INTERPRETED)
            s += part
    if SCALED:
        scale_pointers = d_scales + first_row + tl.arange(0, BLOCK_D)
        if MASKED:
            scales = tl.load(scale_pointers, mask=inside, other=0.0)
        else:
            scales = tl.load(scale_pointers)
        s *= tl.expand_dims(scales, 1 if SWAP else 0)
    return s


# Scores of one tile of query tokens against one document after another.
#
# Tile map. BLOCK_Q rows are query tokens, BLOCK_D rows document tokens. A query owns max(1, max_lq) rows, so a tile is
# BLOCK_Q // max_lq whole queries, or for a longer query a part of one. Programs are numbered documents first: all tiles
# that meet a document run together and read it from memory once. One program takes `run` documents in turn and reads
# its queries once; with `order`, the documents in that order, which starts the longest first. Pairs are taken
# as they come.
#
# The matrix units take 64 rows or more on one side and as few as 16 on the other: with SWAP the document is the side
# of many rows, the maxima are kept element by element, and rows are compared once after the last tile. Without, each
# tile is reduced at once to one maximum per query token; with DELAY one tile later, beside the next product.
#
# No masks in the loop. The last tile begins at length - BLOCK_D and overlaps the one before: max(x, x) = x, and the
# first of equal tokens wins because a later tile must be greater and inside a tile the lowest number is taken. What
# that loop cannot do is done over by one with masks: a document shorter than a tile; rows of zeros that are padding, if
# a maximum is 0 or NaN, for elsewhere such a row has not won; the place of a NaN, which equals nothing.
#
# The maxima are added in float64, so that a score depends on the tile in its last bit at most once in 2^29.
@triton.jit(do_not_specialize=_ANY_VALUE)
def score_kernel(
    q_tokens,
    q_starts,
    q_lengths,
    d_tokens,
    d_starts,
    d_lengths,
    d_scales,
    pairs,
    order,
    scores,
    argmax,
    nq,
    nd,
    num_pairs,
    max_lq,
    tiles,
    run,
    Q_STRIDE: tl.constexpr,
    D_STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    QUERIES: tl.constexpr,
    SWAP: tl.constexpr,
    DELAY: tl.constexpr,
    STAGES: tl.constexpr,
    PAIRS: tl.constexpr,
    ARGMAX: tl.constexpr,
    SCALED: tl.constexpr,
    SKIP_ZERO_Q: tl.constexpr,
    SKIP_ZERO_D: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    AXIS: tl.constexpr = 0 if SWAP else 1
    ORDERED: tl.constexpr = order is not None
    MASKED_D: tl.constexpr = BLOCK_D if BLOCK_D < 64 else 64
    pid = tl.program_id(0)
    tile = pid % tiles
    width = tl.maximum(max_lq, 1)
    blocks = tl.cdiv(width, BLOCK_Q)
    per_tile = tl.maximum(BLOCK_Q // width, 1)
    block = tile % blocks
    rows = tl.arange(0, BLOCK_Q)
    slot = rows // width
    token = block * BLOCK_Q + rows - slot * width
    if PAIRS:
        first = (pid // tiles).to(tl.int64)
        last = first + 1
        query = tl.load(pairs + 2 * first) + slot
        real = slot == 0
    else:
        first = (pid // tiles).to(tl.int64) * run
        last = tl.minimum(first + run, nd)
        query = (tile // blocks).to(tl.int64) * per_tile + slot
        real = (slot < per_tile) & (query < nq)
    owned = real & (token < max_lq)
    real = owned & (token < tl.load(q_lengths + query, mask=owned, other=0))
    q_rows = q_tokens + (tl.load(q_starts + query, mask=real, other=0) + token) * Q_STRIDE
    k1 = tl.arange(0, K1)
    q1 = k1
    q2 = k1
    if DIM <= K1 + K2:
        q1 = _load(q_rows[:, None] + k1[None, :], real, k1, DIM, DIM < K1, True)
        if K2 > 0:
            k2 = K1 + tl.arange(0, K2)
            q2 = _load(q_rows[:, None] + k2[None, :], real, k2, DIM, DIM < K1 + K2, True)
    if SKIP_ZERO_Q:
        real &= _has_nonzero(q_rows, real, DIM, K1)

    columns = tl.arange(0, BLOCK_D)
    for item in range(first, last):
        if PAIRS:
            document = tl.load(pairs + 2 * item + 1)
        elif ORDERED:
            document = tl.load(order + item).to(tl.int64)
        else:
            document = item
        length = tl.load(d_lengths + document).to(tl.int32)
        start = tl.load(d_starts + document)
        d_base = d_tokens + start * D_STRIDE
        d_tile = d_base + columns * D_STRIDE
        count = tl.where(length >= BLOCK_D, tl.cdiv(length, BLOCK_D), 0)
        best = tl.full([BLOCK_Q], float("-inf"), tl.float32)
        where = tl.zeros([BLOCK_Q], tl.int32)
        if SWAP:
            top = tl.full([BLOCK_D, BLOCK_Q], float("-inf"), tl.float32)
            at = tl.zeros([BLOCK_D, BLOCK_Q], tl.int32)
            for t in tl.range(0, count, num_stages=STAGES):
                row = tl.minimum(t * BLOCK_D, length - BLOCK_D)
                s = _similarity(
                    q_rows, q1, q2, real, d_tile + row.to(tl.int64) * D_STRIDE, columns, d_scales, start + row,
                    DIM, K1, K2, BLOCK_Q, BLOCK_D, False, SWAP, SCALED, PRECISION, INTERPRETED,
                )  # fmt: skip
                if ARGMAX:
                    at = tl.where(s > top, row, at)
                top = _nan_or_greater(top, s)
            best = _max(top, 0, INTERPRETED)
            if ARGMAX:
                where = tl.min(tl.where(top == best[None, :], at + columns[:, None], _NOWHERE), axis=0)
        else:
            previous = tl.full([BLOCK_Q, BLOCK_D], float("-inf"), tl.float32)
            for t in tl.range(0, count, num_stages=STAGES):
                row = tl.minimum(t * BLOCK_D, length - BLOCK_D)
                s = _similarity(
                    q_rows, q1, q2, real, d_tile + row.to(tl.int64) * D_STRIDE, columns, d_scales, start + row,
                    DIM, K1, K2, BLOCK_Q, BLOCK_D, False, SWAP, SCALED, PRECISION, INTERPRETED,
                )  # fmt: skip
                if DELAY:
                    best = _nan_or_greater(best, _max(previous, 1, INTERPRETED))
                    previous = s
                else:
                    largest = _max(s, 1, INTERPRETED)
                    if ARGMAX:
                        column = tl.min(tl.where(s == largest[:, None], columns[None, :], BLOCK_D), axis=1)
                        where = tl.where(largest > best, row + column, where)
                    best = _nan_or_greater(best, largest)
            if DELAY:
                best = _nan_or_greater(best, _max(previous, 1, INTERPRETED))

        again = count == 0
        if SKIP_ZERO_D:
            again |= _any(real & ((best == 0) | (best != best))) | (not _any(real))
        if ARGMAX:
            again |= _any(real & (best != best))
        has_token = count > 0
        if again:
            best = tl.full([BLOCK_Q], float("-inf"), tl.float32)
            where = tl.full([BLOCK_Q], _NOWHERE, tl.int32)
            has_token = count < 0
            few = tl.arange(0, MASKED_D)
            for row in tl.range(0, length, MASKED_D, num_stages=1):
                inside = few < length - row
                d_rows = d_base + (row + few).to(tl.int64) * D_STRIDE
                s = _similarity(
                    q_rows, q1, q2, real, d_rows, inside, d_scales, start + row,
                    DIM, K1, K2, BLOCK_Q, MASKED_D, True, SWAP, SCALED, PRECISION, INTERPRETED,
                )  # fmt: skip
                if SKIP_ZERO_D:
                    inside &= _has_nonzero(d_rows, inside, DIM, K1)
                has_token |= _any(inside)
                kept = tl.expand_dims(inside, 1 - AXIS)
                s = tl.where(kept, s, float("-inf"))
                largest = _max(s, AXIS, INTERPRETED)
                if ARGMAX:
                    winner = ((s == tl.expand_dims(largest, AXIS)) | (s != s)) & kept
                    numbers = tl.expand_dims(few, 1 - AXIS)
                    column = tl.min(tl.where(winner, numbers, MASKED_D), axis=AXIS)
                    wins = (largest > best) | ((largest != largest) & (best == best)) | (where == _NOWHERE)
                    where = tl.where(wins & (column < MASKED_D), row + column, where)
                best = _nan_or_greater(best, largest)

        if PAIRS:
            pair = query * 0 + item
        else:
            pair = query * nd + document
        value = tl.where(real & has_token, best, 0.0).to(tl.float64)
        nothing = tl.where(has_token | (block > 0), 0.0, EMPTY_DOCUMENT_SCORE)
        if QUERIES == 1:
            if PAIRS:
                number = item
            else:
                number = (tile // blocks).to(tl.int64) * nd + document
            total = tl.sum(value, axis=0) + nothing
            tl.store(scores + block.to(tl.int64) * num_pairs + number, total.to(scores.dtype.element_ty))
        else:
            slots = tl.arange(0, QUERIES)
            mine = (slot[:, None] == slots[None, :]) & owned[:, None]
            total = tl.sum(tl.where(mine, value[:, None], 0.0), axis=0) + nothing
            queries = (tile // blocks).to(tl.int64) * per_tile + slots
            number = queries * nd + document
            stored = (slots < per_tile) & (queries < nq)
            tl.store(scores + number, total.to(scores.dtype.element_ty), mask=stored)
        if ARGMAX:
            where = tl.where(real & has_token, where, -1)
            tl.store(argmax + pair * max_lq + token, where.to(argmax.dtype.element_ty), mask=owned)


# Gradient of one tile of token rows, of queries (FOR_Q) or of documents, in their own dtype.
#
# A program owns BLOCK_R rows and BLOCK_K dimensions of the result and writes all of them, so nothing is added by two
# programs and the order of the additions is fixed: items that hold a row by number, then their pairs by number, then
# tokens. Items may share rows and may lie in any order, so the items of a tile are looked for, ITEMS at a time. With
# `pairs`, those of item i are order[bounds[i] : bounds[i + 1]].
#
# A query token's gradient gathers the winning document rows. A document token's is a product: with one column per query
# token, 1 in the row that won it, [BLOCK_R, BLOCK_T] times the query [BLOCK_T, BLOCK_K] is exact for one pair, and its
# weight multiplies the float32 result. Work of the forward pass, but no sorting, no atomics and no scratch memory.
# 0 * inf is NaN, which would reach rows that won nothing: a tile that is not finite in the end is done again one query
# token at a time.
@triton.jit(do_not_specialize=_ANY_VALUE)
def grad_kernel(
    own_starts,
    own_lengths,
    other_tokens,
    other_starts,
    other_lengths,
    other_scales,
    pairs,
    order,
    bounds,
    grad_scores,
    argmax,
    grad,
    num_rows,
    num_items,
    num_others,
    nd,
    max_lq,
    STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ITEMS: tl.constexpr,
    STAGES: tl.constexpr,
    FOR_Q: tl.constexpr,
    PAIRS: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    pid = tl.program_id(0)
    k_blocks: tl.constexpr = (DIM + BLOCK_K - 1) // BLOCK_K
    row = (pid // k_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = pid % k_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    total = _grad_tile(
        own_starts, own_lengths, other_tokens, other_starts, other_lengths, other_scales, pairs, order, bounds,
        grad_scores, argmax, row, k, num_items, num_others, nd, max_lq,
        STRIDE, DIM, BLOCK_R, BLOCK_T, BLOCK_K, ITEMS, STAGES, FOR_Q, PAIRS, SCALED, False, PRECISION, INTERPRETED,
    )  # fmt: skip
    if not FOR_Q:
        finite = (tl.abs(total) < float("inf")).to(tl.int32)
        if tl.min(tl.min(finite, axis=1), axis=0) == 0:
            total = _grad_tile(
                own_starts, own_lengths, other_tokens, other_starts, other_lengths, other_scales, pairs, order, bounds,
                grad_scores, argmax, row, k, num_items, num_others, nd, max_lq,
                STRIDE, DIM, BLOCK_R, BLOCK_T, BLOCK_K, ITEMS, 1, FOR_Q, PAIRS, SCALED, True, PRECISION, INTERPRETED,
            )  # fmt: skip
    tl.store(
        grad + row[:, None] * DIM + k[None, :],
        total.to(grad.dtype.element_ty),
        mask=(row < num_rows)[:, None] & (k < DIM)[None, :],
    )


@triton.jit
def _grad_tile(
    own_starts,
    own_lengths,
    other_tokens,
    other_starts,
    other_lengths,
    other_scales,
    pairs,
    order,
    bounds,
    grad_scores,
    argmax,
    row,
    k,
    num_items,
    num_others,
    nd,
    max_lq,
    STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ITEMS: tl.constexpr,
    STAGES: tl.constexpr,
    FOR_Q: tl.constexpr,
    PAIRS: tl.constexpr,
    SCALED: tl.constexpr,
    TOKEN_BY_TOKEN: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    total = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    k_mask = (k < DIM)[None, :]
    first_row = tl.min(row, axis=0)
    chunks = 1
    if not FOR_Q:
        chunks = tl.cdiv(max_lq, 1 if TOKEN_BY_TOKEN else BLOCK_T)
    for first in range(0, num_items, ITEMS):
        numbers = first + tl.arange(0, ITEMS)
        known = numbers < num_items
        starts = tl.load(own_starts + numbers, mask=known, other=0)
        lengths = tl.load(own_lengths + numbers, mask=known, other=0)
        hit = (lengths > 0) & (starts < first_row + BLOCK_R) & (starts + lengths > first_row)
        item = tl.min(tl.where(hit, numbers, _NOWHERE), axis=0)
        while item < _NOWHERE:
            token = row - tl.load(own_starts + item)
            mine = (token >= 0) & (token < tl.load(own_lengths + item))
            if PAIRS:
                begin = tl.load(bounds + item)
                end = tl.load(bounds + item + 1)
            else:
                begin = (item * 0).to(tl.int64)
                end = begin + num_others
            for step in tl.range(0, (end - begin).to(tl.int32) * chunks, num_stages=STAGES):
                i = begin + step // chunks
                if PAIRS:
                    pair = tl.load(order + i)
                    other = tl.load(pairs + 2 * pair + (1 if FOR_Q else 0))
                else:
                    other = i
                    if FOR_Q:
                        pair = item.to(tl.int64) * nd + other
                    else:
                        pair = other * nd + item
                weight = tl.load(grad_scores + pair)
                start = tl.load(other_starts + other)
                winners = argmax + pair * max_lq
                if FOR_Q:
                    winner = tl.load(winners + token, mask=mine, other=-1).to(tl.int64)
                    won = winner >= 0
                    pointers = other_tokens + ((start + winner) * STRIDE)[:, None] + k[None, :]
                    x = tl.load(pointers, mask=won[:, None] & k_mask, other=0.0).to(tl.float32)
                    if SCALED:
                        x *= tl.load(other_scales + start + winner, mask=won, other=0.0)[:, None]
                    total += tl.where(won[:, None], weight * x, 0.0)
                elif TOKEN_BY_TOKEN:
                    t = step % chunks
                    won = mine & (token == tl.load(winners + t).to(tl.int64))
                    used = k < tl.where(tl.load(other_lengths + other) > t, DIM, 0)
                    x = tl.load(other_tokens + (start + t) * STRIDE + k, mask=used, other=0.0).to(tl.float32)
                    total += tl.where(won[:, None], (weight * x)[None, :], 0.0)
                else:
                    tokens = step % chunks * BLOCK_T + tl.arange(0, BLOCK_T)
                    inside = tokens < tl.load(other_lengths + other)
                    winner = tl.load(winners + tokens, mask=inside, other=-1).to(tl.int64)
                    pointers = other_tokens + ((start + tokens) * STRIDE)[:, None] + k[None, :]
                    x = tl.load(pointers, mask=inside[:, None] & k_mask, other=0.0)
                    won = mine[:, None] & (token[:, None] == winner[None, :])
                    total += weight * tl.dot(won.to(x.dtype), x, input_precision=PRECISION)
            hit &= numbers > item
            item = tl.min(tl.where(hit, numbers, _NOWHERE), axis=0)
    return total
