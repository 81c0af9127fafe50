"""The Triton kernel that scores PackedTokens: `score_kernel`, at the end, and the functions that it calls.

:mod:`colbert_fast._backends.triton_` launches it. Nothing here depends on the vendor of the GPU: the caller gives the
sizes of tiles and the numbers of warps and stages, and all loads go through pointers.
"""

# Annotations in this file are Triton's, not Python's. An `if` on a constexpr is decided by the compiler and must stay a
# statement. A choice that the GPU makes for each element is a tl.where.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# ruff: noqa: SIM108

from __future__ import annotations

import triton
import triton.language as tl

EMPTY_DOCUMENT_SCORE = tl.constexpr(-1e9)
_NOWHERE = tl.constexpr(2**31 - 1)
# The most dimensions of float16 or bfloat16 whose products a matrix unit adds by itself. The units of an H100 cut every
# addend off below 2^-25 of the largest one, where a float32 sum would round: with one product of 1 among 767 of 0.97
# times 2^-24, a chain of 768 dimensions lost 2.1e-5 of the sum. A chain of n dimensions loses at most about
# 1.3 * n * 2^-25 of the sum of |products|, here 5e-6: each product loses 2^-25 at most, and each 16 products lose the
# last bit of their sum. The sums of the chains are added in float32. Up to 128 dimensions all is one chain.
CHAIN = tl.constexpr(128)
# When dimensions are read in pieces, the sums of this number of dimensions are added up first, and then those sums. The
# rounding error of a sum grows with the number of its addends.
_GROUP = tl.constexpr(1024)

# The arguments whose values and alignment do not change the compiled code: all arguments except the token rows.
_ANY_VALUE = [
    *("q_starts", "q_lengths", "d_starts", "d_lengths", "d_scales", "pairs", "order", "scores", "argmax"),
    *("nq", "nd", "num_pairs", "max_lq", "max_ld", "tiles", "shares", "d_rows"),
]


@triton.jit
def _nan_or_greater(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _max(x, AXIS: tl.constexpr, INTERPRETED: tl.constexpr):
    """Return the maximum along an axis. NaN wins, as in torch and unlike in tl.max."""
    if INTERPRETED:  # for a reduction of ours, the interpreter would call Python for each element
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
    """Load a tile [rows, dimensions], with 0 where a mask is False. A mask that is not needed is not computed."""
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
    """Add q [BLOCK_Q, K] times d [BLOCK_D, K] to s, which is [BLOCK_Q, BLOCK_D], or with SWAP [BLOCK_D, BLOCK_Q]."""
    if INTERPRETED:  # in float32, the last bit of the interpreter's product would depend on the place in the tile
        q = q.to(tl.float64)
        if SWAP:
            return s + tl.dot(d.to(tl.float64), tl.trans(q)).to(tl.float32)
        else:
            return s + tl.dot(q, tl.trans(d.to(tl.float64))).to(tl.float32)
    d = d.to(q.dtype)  # exact: every dtype of queries holds every int8, and every number of a narrower dtype
    if SWAP:
        return tl.dot(d, tl.trans(q), s, input_precision=PRECISION)
    else:
        return tl.dot(q, tl.trans(d), s, input_precision=PRECISION)


@triton.jit
def _add_chain(q, d, s, SWAP: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """Add q times d to s as `_dot` does, but the products by themselves first.

    Where float32 is multiplied in three parts, `_dot` does the same. The limit for imprecise sums changes nothing in
    half precision, except that Triton does not make s the first addend of the chain.
    """
    if INTERPRETED or PRECISION != "ieee":
        return _dot(q, d, s, SWAP, PRECISION, INTERPRETED)
    d = d.to(q.dtype)
    zeros = tl.zeros_like(s)
    if SWAP:
        return s + tl.dot(d, tl.trans(q), zeros, input_precision=PRECISION, max_num_imprecise_acc=CHAIN)
    else:
        return s + tl.dot(q, tl.trans(d), zeros, input_precision=PRECISION, max_num_imprecise_acc=CHAIN)


@triton.jit
def _query_tiles(q_rows, real, DIM: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr):
    """Load the query's tiles, if DIM <= K1 + K2: a tuple of tiles of at most CHAIN dimensions, of K1 and then of K2."""
    W1: tl.constexpr = K1 if K1 < CHAIN else CHAIN
    W2: tl.constexpr = K2 if K2 < CHAIN else CHAIN
    tiles = ()
    if DIM <= K1 + K2:
        for first in tl.static_range(0, K1, W1):
            k = first + tl.arange(0, W1)
            tile = _load(q_rows[:, None] + k[None, :], real, k, DIM, first + W1 > DIM, True)
            tiles = tiles + (tile,)  # type: ignore[assignment]  # noqa: RUF005
        if K2 > 0:
            for first in tl.static_range(K1, K1 + K2, W2):
                k = first + tl.arange(0, W2)
                tile = _load(q_rows[:, None] + k[None, :], real, k, DIM, first + W2 > DIM, True)
                tiles = tiles + (tile,)  # type: ignore[assignment]  # noqa: RUF005
    return tiles


@triton.jit
def _has_nonzero(tokens, mask, DIM: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return for each row whether an element is not 0 (NaN is not 0). `tokens` points to the rows' first elements."""
    k = tl.arange(0, BLOCK_K)
    found = mask & (mask != mask)
    for first in range(0, DIM, BLOCK_K):
        x = tl.load(tokens[:, None] + (first + k)[None, :], mask=mask[:, None] & (first + k < DIM)[None, :], other=0.0)
        found |= tl.max((x.to(tl.float32) != 0).to(tl.int32), axis=1) == 1
    return found


@triton.jit
def _similarity(
    q_rows,
    q_tiles,
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
    """Compute the dot products of one tile. With SCALED, multiply them by the documents' scales.

    If DIM <= K1 + K2, q_tiles are the query's tiles, which are loaded already. Otherwise both sides are read K1
    dimensions at a time, which are a chain: the sums of _GROUP dimensions are added, and then the sums of these.
    """
    if SWAP:
        s = tl.zeros([BLOCK_D, BLOCK_Q], tl.float32)
    else:
        s = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    if DIM <= K1 + K2:
        W1: tl.constexpr = K1 if K1 < CHAIN else CHAIN
        W2: tl.constexpr = K2 if K2 < CHAIN else CHAIN
        for i in tl.static_range(0, K1 // W1):
            k = i * W1 + tl.arange(0, W1)
            d = _load(d_rows[:, None] + k[None, :], inside, k, DIM, i * W1 + W1 > DIM, MASKED)
            if i == 0:
                s = _dot(q_tiles[i], d, s, SWAP, PRECISION, INTERPRETED)
            else:
                s = _add_chain(q_tiles[i], d, s, SWAP, PRECISION, INTERPRETED)
        if K2 > 0:
            for i in tl.static_range(0, K2 // W2):
                k = K1 + i * W2 + tl.arange(0, W2)
                d = _load(d_rows[:, None] + k[None, :], inside, k, DIM, K1 + i * W2 + W2 > DIM, MASKED)
                if K1 + K2 <= CHAIN:
                    s = _dot(q_tiles[K1 // W1 + i], d, s, SWAP, PRECISION, INTERPRETED)
                else:
                    s = _add_chain(q_tiles[K1 // W1 + i], d, s, SWAP, PRECISION, INTERPRETED)
    else:
        k1 = tl.arange(0, K1)
        for begin in range(0, DIM, _GROUP):
            part = tl.zeros_like(s)
            for first in range(begin, tl.minimum(begin + _GROUP, DIM), K1):
                k = first + k1
                q = _load(q_rows[:, None] + k[None, :], real, k, DIM, DIM % K1 != 0, True)
                d = _load(d_rows[:, None] + k[None, :], inside, k, DIM, DIM % K1 != 0, MASKED)
                part = _add_chain(q, d, part, SWAP, PRECISION, INTERPRETED)
            s += part
    if SCALED:
        scale_pointers = d_scales + first_row + tl.arange(0, BLOCK_D)
        if MASKED:
            scales = tl.load(scale_pointers, mask=inside, other=0.0)
        else:
            scales = tl.load(scale_pointers)
        s *= tl.expand_dims(scales, 1 if SWAP else 0)
    return s


@triton.jit
def _store(
    best,
    has_token,
    where,
    document,
    number,
    scores,
    argmax,
    real,
    owned,
    slot,
    token,
    query,
    tile,
    nq,
    nd,
    num_pairs,
    max_lq,
    BLOCK_Q: tl.constexpr,
    QUERIES: tl.constexpr,
    PAIRS: tl.constexpr,
    ARGMAX: tl.constexpr,
):
    """Add up the maxima of each query, and store the scores of one document.

    The sum is in float64. So the sizes of the tiles can change a score only in its last bit, and in at most one of 2^29
    scores.
    """
    block = tile * 0
    if QUERIES == 1:
        block = tile % tl.cdiv(tl.maximum(max_lq, 1), BLOCK_Q)
    value = tl.where(real & has_token, best, 0.0).to(tl.float64)
    nothing = tl.where(has_token | (block > 0), 0.0, EMPTY_DOCUMENT_SCORE)
    if PAIRS:
        pair = number
    else:
        pair = query * nd + document
    if QUERIES == 1:
        total = tl.sum(value, axis=0) + nothing
        tl.store(scores + block.to(tl.int64) * num_pairs + pair, total.to(scores.dtype.element_ty))
    else:
        slots = tl.arange(0, QUERIES)
        mine = (slot[:, None] == slots[None, :]) & owned[:, None]
        total = tl.sum(tl.where(mine, value[:, None], 0.0), axis=0) + nothing
        per_tile = BLOCK_Q // tl.maximum(max_lq, 1)
        queries = tile.to(tl.int64) * per_tile + slots
        stored = (slots < per_tile) & (queries < nq)
        tl.store(scores + queries * nd + document, total.to(scores.dtype.element_ty), mask=stored)
    if ARGMAX:
        where = tl.where(real & has_token, where, -1)
        tl.store(argmax + pair * max_lq + token, where.to(argmax.dtype.element_ty), mask=owned)


@triton.jit
def _document(pairs, order, number, PAIRS: tl.constexpr):
    """Return the document with this number: the document of a pair, the entry of `order`, or the number itself."""
    if PAIRS:
        return tl.load(pairs + 2 * number + 1)
    elif order is not None:
        return tl.load(order + number).to(tl.int64)
    else:
        return number


@triton.jit
def _tile(
    q_rows,
    q_tiles,
    real,
    d_tokens,
    d_scales,
    start,
    length,
    row,
    d_rows,
    D_STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SWAP: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Compute the similarities with BLOCK_D tokens of a document, from `row` on.

    Also returns where the tile begins, counted from the first row of the document. The last tile of a document begins
    before `row`, so that it ends with the document. A document that is shorter than a tile has one tile, which also
    covers rows of neighbouring documents. The similarities with these rows are set to -inf.
    """
    columns = tl.arange(0, BLOCK_D)
    first = tl.minimum(start + tl.maximum(tl.minimum(row, length - BLOCK_D), 0), d_rows - BLOCK_D)
    offsets = columns * D_STRIDE
    if BLOCK_D * D_STRIDE >= 2**31:
        offsets = columns.to(tl.int64) * D_STRIDE
    s = _similarity(
        q_rows, q_tiles, real, d_tokens + first * D_STRIDE + offsets, columns, d_scales, first,
        DIM, K1, K2, BLOCK_Q, BLOCK_D, False, SWAP, SCALED, PRECISION, INTERPRETED,
    )  # fmt: skip
    shift = (first - start).to(tl.int32)
    if length < BLOCK_D:
        inside = (columns + shift >= 0) & (columns + shift < length)
        s = tl.where(tl.expand_dims(inside, 1 if SWAP else 0), s, float("-inf"))
    return s, shift


@triton.jit
def _nothing_yet(BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, SWAP: tl.constexpr):
    """Return the maxima before the first tile, and the places in the document at which they are."""
    if SWAP:
        return tl.full([BLOCK_D, BLOCK_Q], float("-inf"), tl.float32), tl.zeros([BLOCK_D, BLOCK_Q], tl.int32)
    else:
        return tl.full([BLOCK_Q, 4], float("-inf"), tl.float32), tl.zeros([BLOCK_Q, 4], tl.int32)


@triton.jit
def _reduce(
    s,
    shift,
    columns,
    top,
    at,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SWAP: tl.constexpr,
    ARGMAX: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Update the maxima with a tile: with SWAP one maximum for each element, else four maxima for each query token.

    NVIDIA's matrix instructions give each row of products to four threads: each thread has two of every eight products.
    Each of the four threads has a maximum of its own, so threads exchange nothing before the document ends.
    """
    if SWAP:
        if ARGMAX:
            at = tl.where(s > top, shift, at)
        top = _nan_or_greater(top, s)
    else:
        s = tl.reshape(s, [BLOCK_Q, BLOCK_D // 8, 4, 2])
        largest = _max(_max(s, 3, INTERPRETED), 1, INTERPRETED)
        if ARGMAX:
            # Find the first column that has the maximum. If a product is less than the maximum by d, then d * 2^127 is
            # added to the number of its column. For d >= 2^-120, the sum is greater than the number of any column, so
            # the least sum is the number of the first column that has the maximum. If a maximum is so small that d may
            # be less than 2^-120, _finish asks for the document to be done again. This way takes a multiplication and
            # an addition but no comparison, because the hardware that compares is busy with the maxima.
            tl.static_assert(BLOCK_D <= 128)
            numbers = tl.reshape(columns.to(tl.float32), [1, BLOCK_D // 8, 4, 2])
            numbers = tl.fma(s - largest[:, None, :, None], -(2.0**127), numbers)
            column = tl.min(tl.min(numbers, axis=3), axis=1)
            at = tl.where(largest > top, shift + column.to(tl.int32), at)
        top = _nan_or_greater(top, largest)
    return top, at


@triton.jit
def _finish(
    top,
    at,
    columns,
    real,
    nothing_real,
    SWAP: tl.constexpr,
    ARGMAX: tl.constexpr,
    SKIP_ZERO_D: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """After the last tile of a document, return the maximum of each query token and its place in the document.

    Also returns whether the document must be done again, with masks. With ARGMAX it must if a place is not certain.
    With SKIP_ZERO_D it must if a maximum is 0 or NaN, and if `nothing_real`, that is if no query token is real: then no
    maximum shows whether all rows are zeros.
    """
    where = 0
    again = 0
    if SWAP:
        best = _max(top, 0, INTERPRETED)
        if ARGMAX:
            where = tl.min(tl.where(top == best[None, :], at + columns[:, None], _NOWHERE), axis=0)
            again |= _any(real & (best != best)).to(tl.int32)
    else:
        best = _max(top, 1, INTERPRETED)
        if ARGMAX:
            where = tl.min(tl.where(top == best[:, None], at, _NOWHERE), axis=1)
            # Two different float32 numbers differ by 2^-120 or more, if one of them is 2^-96 or more.
            unsure = (tl.abs(best) < 2.0**-96) | (tl.abs(best) == float("inf")) | (best != best)
            again |= _any(real & unsure).to(tl.int32)
    if SKIP_ZERO_D:
        again |= _any(real & ((best == 0) | (best != best))).to(tl.int32) | nothing_real
    return best, where, again


@triton.jit
def _start(starts, item, longest):
    """Return the first row of an item, int64. If `starts` is None, items of length `longest` follow one another."""
    if starts is None:
        return item.to(tl.int64) * longest
    else:
        return tl.load(starts + item)


@triton.jit
def _length(lengths, item, longest):
    """Return the number of rows of an item, int32. If `lengths` is None, every item has the length `longest`."""
    if lengths is None:
        return (item * 0).to(tl.int32) + longest
    else:
        return tl.load(lengths + item).to(tl.int32)


@triton.jit
def _query_tokens(tile, nq, max_lq, BLOCK_Q: tl.constexpr, QUERIES: tl.constexpr):
    """Return for the rows of a tile: the query, its number in the tile, the token of the query, and whether it is one.

    With QUERIES == 1 the tile holds one query or a part of one, and the query is a scalar.
    """
    rows = tl.arange(0, BLOCK_Q)
    width = tl.maximum(max_lq, 1)
    if QUERIES == 1:
        blocks = tl.cdiv(width, BLOCK_Q)
        token = tile % blocks * BLOCK_Q + rows
        return (tile // blocks).to(tl.int64), rows, token, token < max_lq
    else:
        per_tile = BLOCK_Q // width
        slot = rows // width
        token = rows - slot * width
        query = tile.to(tl.int64) * per_tile + slot
        owned = (slot < per_tile) & (query < nq) & (token < max_lq)
        return tl.minimum(query, nq - 1), slot, token, owned


# Scores one tile of query tokens against one document after another.
#
# Tile map. BLOCK_Q rows of a tile are query tokens, BLOCK_D rows are document tokens. A query takes max(1, max_lq)
# rows. So a tile holds BLOCK_Q // max_lq whole queries, or a part of a query that is longer than a tile. Programs with
# neighbouring numbers have the same documents and different tiles. They run together, so a document is read from memory
# once. `shares` programs have the same queries. Each of them scores every `shares`-th document, 31 documents at most.
# With `order`, documents are counted in this order, which is by length. So all programs have about the same number of
# tokens, and the longest documents come first. With `pairs` a program has one pair. A program loads the start and the
# length of a document while it scores the document before. A processor runs several programs, so that the last tile of
# one program is multiplied while the others read.
#
# With SWAP the rows of the products are document tokens and the columns are query tokens. SWAP is for few query tokens:
# a matrix instruction takes at least 8 columns, but at least 16 rows, or 64 rows where a group of warps multiplies.
# With SWAP there is one maximum for each element of a tile, and the rows are compared once, after the last tile.
# Without SWAP each tile is reduced at once to four maxima for each query token, one for each thread that holds a part
# of the row.
#
# The loop over tiles uses no masks, except for documents that are shorter than a tile. The last tile begins at row
# length - BLOCK_D, so it overlaps the tile before. The overlap changes no maximum: max(x, x) = x. The first of equal
# tokens wins, because a later tile wins only with a greater product, and among the maxima that are kept the one with
# the lowest place is taken. The tile of a short document also reads rows of its neighbours, which are left out.
#
# A second loop, with masks, does some documents again:
# - With SKIP_ZERO_D, rows of zeros are padding and must be left out. Only if a maximum is 0 or NaN can such a row have
#   won.
# - With ARGMAX, the first loop cannot find the place of a NaN, which is equal to nothing, or of a maximum that is too
#   small or too large, as _finish says.
# - If all documents together have fewer rows than one tile, the second loop does everything.
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
    max_ld,
    tiles,
    shares,
    d_rows,
    Q_STRIDE: tl.constexpr,
    D_STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    QUERIES: tl.constexpr,
    SWAP: tl.constexpr,
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
    MASKED_D: tl.constexpr = BLOCK_D if BLOCK_D < 64 else 64
    pid = tl.program_id(0)
    tile = pid % tiles
    share = (pid // tiles).to(tl.int64)
    query, slot, token, owned = _query_tokens(tile, nq, max_lq, BLOCK_Q, QUERIES)
    if PAIRS:
        query = tl.load(pairs + 2 * share)
    shares = shares.to(tl.int64)
    if PAIRS:
        own = 1
    else:
        own = tl.cdiv(nd - share, shares).to(tl.int32)
    # These loads begin before the program waits for the queries.
    document = _document(pairs, order, share, PAIRS)
    start = _start(d_starts, document, max_ld)
    length = _length(d_lengths, document, max_ld)
    real = owned & (token < _length(q_lengths, query, max_lq))
    q_rows = q_tokens + (_start(q_starts, query, max_lq) + token) * Q_STRIDE
    q_tiles = _query_tiles(q_rows, real, DIM, K1, K2)
    if SKIP_ZERO_Q:
        if DIM <= K1 + K2:
            nonzero = tl.max((q_tiles[0].to(tl.float32) != 0).to(tl.int32), axis=1)
            for i in tl.static_range(1, len(q_tiles)):
                nonzero |= tl.max((q_tiles[i].to(tl.float32) != 0).to(tl.int32), axis=1)
            real &= nonzero == 1
        else:
            real &= _has_nonzero(q_rows, real, DIM, K1)
    nothing_real = 0
    if SKIP_ZERO_D:
        nothing_real = 1 - _any(real).to(tl.int32)

    redo = 0  # a bit for each document that must be done again; a program has at most 31 documents
    columns = tl.arange(0, BLOCK_D)
    if d_rows < BLOCK_D:
        redo = -1
    else:
        for place in range(0, own):
            # Load the start and the length of the next document while this document is scored.
            following = _document(pairs, order, share + tl.minimum(place + 1, own - 1) * shares, PAIRS)
            next_start = _start(d_starts, following, max_ld)
            next_length = _length(d_lengths, following, max_ld)
            top, at = _nothing_yet(BLOCK_Q, BLOCK_D, SWAP)
            for t in tl.range(0, tl.cdiv(length, BLOCK_D), num_stages=STAGES):
                s, shift = _tile(
                    q_rows, q_tiles, real, d_tokens, d_scales, start, length, t * BLOCK_D, d_rows,
                    D_STRIDE, DIM, K1, K2, BLOCK_Q, BLOCK_D, SWAP, SCALED, PRECISION, INTERPRETED,
                )  # fmt: skip
                top, at = _reduce(s, shift, columns, top, at, BLOCK_Q, BLOCK_D, SWAP, ARGMAX, INTERPRETED)
            best, where, again = _finish(
                top, at, columns, real, nothing_real, SWAP, ARGMAX, SKIP_ZERO_D, INTERPRETED,
            )  # fmt: skip
            if SKIP_ZERO_D or ARGMAX:
                redo |= again << place
            _store(
                best, length > 0, where, document, share, scores, argmax, real, owned, slot, token, query, tile,
                nq, nd, num_pairs, max_lq, BLOCK_Q, QUERIES, PAIRS, ARGMAX,
            )  # fmt: skip
            document, start, length = following, next_start, next_length

    if redo != 0:
        tl.debug_barrier()  # other threads will store to the same places again
        for place in range(0, own):
            if (redo >> place) & 1:
                document = _document(pairs, order, share + place * shares, PAIRS)
                start = _start(d_starts, document, max_ld)
                length = _length(d_lengths, document, max_ld)
                best = tl.full([BLOCK_Q], float("-inf"), tl.float32)
                where = tl.full([BLOCK_Q], _NOWHERE, tl.int32)
                has_token = length < 0
                few = tl.arange(0, MASKED_D)
                for row in tl.range(0, length, MASKED_D, num_stages=1):
                    inside = few < length - row
                    masked_rows = d_tokens + (start + row + few) * D_STRIDE
                    s = _similarity(
                        q_rows, q_tiles, real, masked_rows, inside, d_scales, start + row,
                        DIM, K1, K2, BLOCK_Q, MASKED_D, True, SWAP, SCALED, PRECISION, INTERPRETED,
                    )  # fmt: skip
                    if SKIP_ZERO_D:
                        inside &= _has_nonzero(masked_rows, inside, DIM, K1)
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
                _store(
                    best, has_token, where, document, share, scores, argmax, real, owned, slot, token, query, tile,
                    nq, nd, num_pairs, max_lq, BLOCK_Q, QUERIES, PAIRS, ARGMAX,
                )  # fmt: skip
