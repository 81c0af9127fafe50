"""The Triton kernels of the gradients: `rank_kernel` sorts query tokens, `grad_kernel` adds up the gradients.

:mod:`colbert_fast._backends.triton_` launches them: `grad_kernel` alone for queries, first `rank_kernel` for documents.
Nothing here depends on the vendor of the GPU: the caller gives the sizes of tiles and the numbers of warps and stages,
and all loads go through pointers.

A document row wins a query token if the maximum of the token is at this row.
"""

# Annotations in this file are Triton's, not Python's. An `if` on a constexpr is decided by the compiler and must stay a
# statement. A choice that the GPU makes for each element is a tl.where.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# ruff: noqa: SIM108

from __future__ import annotations

import triton
import triton.language as tl

_NOWHERE = tl.constexpr(2**31 - 1)

# The arguments of the two kernels whose values and alignment do not change the compiled code: all arguments except the
# rows of the other side and of the gradient.
_ANY_VALUE = [
    *("own_starts", "own_lengths", "other_starts", "other_scales", "pairs", "order", "bounds", "grad_scores", "argmax"),
    *("d_starts", "ranked", "num_pairs", "num_rows", "num_items", "num_others", "nq", "nd", "max_lq", "token_bits"),
]


@triton.jit
def _pair_and_token(chunk, place, max_lq, token_bits, LOG_CHUNK: tl.constexpr):
    """Return the pair and the query token of a place in a chunk. Pairs are counted from the first pair of the chunk.

    Each pair has 2 ** token_bits places in a chunk. A query with more tokens than a chunk has places takes several
    chunks.
    """
    part = chunk % tl.cdiv(max_lq, 1 << LOG_CHUNK)
    return place >> token_bits, (part << LOG_CHUNK) + (place & ((1 << token_bits) - 1))


@triton.jit
def _first_pair(chunk, max_lq, token_bits, LOG_CHUNK: tl.constexpr):
    """Return the number of the first pair of a chunk, int64."""
    parts = tl.cdiv(max_lq, 1 << LOG_CHUNK).to(tl.int64)
    return chunk // parts << (LOG_CHUNK - token_bits)


# Sorts the query tokens of a chunk by the document row that won them, for grad_kernel.
#
# Pairs are numbered by document, and pairs of one document by query. If the caller gave `pairs`, `order` sorts them in
# this way. For each token a program writes a key: row << LOG_CHUNK | place in the chunk. Places without a token, and
# tokens that no row won, come last.
@triton.jit(do_not_specialize=_ANY_VALUE)
def rank_kernel(
    d_starts,
    pairs,
    order,
    argmax,
    ranked,
    num_pairs,
    nq,
    nd,
    max_lq,
    token_bits,
    LOG_CHUNK: tl.constexpr,
    PAIRS: tl.constexpr,
):
    chunk = tl.program_id(0)
    place = tl.arange(0, 1 << LOG_CHUNK)
    number, token = _pair_and_token(chunk, place, max_lq, token_bits, LOG_CHUNK)
    first = _first_pair(chunk, max_lq, token_bits, LOG_CHUNK)
    known = (number < num_pairs - first) & (token < max_lq)
    number = tl.where(known, number, 0)
    if PAIRS:
        pair = tl.load(order + first + number)
        item = tl.load(pairs + 2 * pair + 1)
    else:  # Only the division of scalars is in int64; the division of each element is in int32.
        query = (first % nq).to(tl.int32) + number
        item = first // nq + query // nq
        pair = (query % nq).to(tl.int64) * nd + item
    winner = tl.load(argmax + pair * max_lq + token, mask=known, other=-1).to(tl.int64)
    row = tl.load(d_starts + item) + winner
    last: tl.constexpr = 2**31 - 1 if ranked.dtype.element_ty == tl.int32 else 2**63 - 1
    key = tl.where(winner >= 0, (row << LOG_CHUNK) + place, last).to(ranked.dtype.element_ty)
    tl.store(ranked + (chunk.to(tl.int64) << LOG_CHUNK) + place, tl.sort(key))


# Computes the gradient of one tile of token rows, of queries (FOR_Q) or of documents, in the dtype of these rows.
#
# A program owns BLOCK_R rows and BLOCK_K dimensions of the result, and writes all of them. So no two programs add to
# the same number, and the order of the additions is fixed: by the number of the item that holds the row, then by the
# number of the pair, then by token. Items may share rows and may lie in any order. So a program searches all items,
# ITEMS at a time, for items that have rows in its tile. With `pairs`, item i is in the pairs
# order[bounds[i] : bounds[i + 1]].
#
# The gradient of a query token gathers the document rows that won the token. The gradient of a document row adds up the
# query tokens that the row won. In each chunk of `ranked` these query tokens follow one another. They are taken BLOCK_T
# at a time: a matrix of weights [BLOCK_R, BLOCK_T] has one column for each query token, with the token's weight in the
# row that won it and 0 elsewhere. This matrix times the query tokens [BLOCK_T, BLOCK_K] is the sum. There are no
# atomics. For each query token and dimension there are about BLOCK_R products, however long the documents are.
#
# 0 * inf is NaN, which would reach rows that won nothing. So a tile that is not finite at the end is computed again,
# one query token at a time.
@triton.jit(do_not_specialize=_ANY_VALUE)
def grad_kernel(
    own_starts,
    own_lengths,
    other_tokens,
    other_starts,
    other_scales,
    pairs,
    order,
    bounds,
    grad_scores,
    argmax,
    ranked,
    grad,
    num_rows,
    num_items,
    num_others,
    nd,
    max_lq,
    token_bits,
    STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ITEMS: tl.constexpr,
    LOG_CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    FOR_Q: tl.constexpr,
    PAIRS: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid = tl.program_id(0)
    k_blocks: tl.constexpr = (DIM + BLOCK_K - 1) // BLOCK_K
    row = (pid // k_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = pid % k_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    total = _grad_tile(
        own_starts, own_lengths, other_tokens, other_starts, other_scales, pairs, order, bounds,
        grad_scores, argmax, ranked, row, k, num_items, num_others, nd, max_lq, token_bits,
        STRIDE, DIM, BLOCK_R, BLOCK_T, BLOCK_K, ITEMS, LOG_CHUNK, STAGES, FOR_Q, PAIRS, SCALED, False, PRECISION,
    )  # fmt: skip
    if not FOR_Q:
        finite = (tl.abs(total) < float("inf")).to(tl.int32)
        if tl.min(tl.min(finite, axis=1), axis=0) == 0:
            total = _grad_tile(
                own_starts, own_lengths, other_tokens, other_starts, other_scales, pairs, order, bounds,
                grad_scores, argmax, ranked, row, k, num_items, num_others, nd, max_lq, token_bits,
                STRIDE, DIM, BLOCK_R, BLOCK_T, BLOCK_K, ITEMS, LOG_CHUNK, 1, FOR_Q, PAIRS, SCALED, True, PRECISION,
            )  # fmt: skip
    tl.store(
        grad + row[:, None] * DIM + k[None, :],
        total.to(grad.dtype.element_ty),
        mask=(row < num_rows)[:, None] & (k < DIM)[None, :],
    )


@triton.jit
def _add_weighted(weights, x, total, PRECISION: tl.constexpr):
    """Add weights [rows, tokens] times x [tokens, dimensions] to total."""
    if x.dtype == tl.bfloat16:  # a weight is cut into two parts of 8 bits, together twice the bits of the gradient
        high = weights.to(tl.bfloat16)
        low = (weights - high.to(tl.float32)).to(tl.bfloat16)
        return tl.dot(high, x, tl.dot(low, x, total))
    else:
        return tl.dot(weights, x.to(tl.float32), total, input_precision=PRECISION)


@triton.jit
def _grad_step(
    other_starts,
    pairs,
    order,
    grad_scores,
    argmax,
    begin,
    item,
    step,
    per_pair,
    token,
    mine,
    nd,
    max_lq,
    FOR_Q: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Load what one step needs: the weight of a pair, the first row of the item's partner, and the winning row.

    The partner is the other side of the pair. With FOR_Q there is a winning row for each row of the tile, otherwise for
    one query token of the partner.
    """
    i = begin + step // per_pair
    if PAIRS:
        pair = tl.load(order + i)
        other = tl.load(pairs + 2 * pair + (1 if FOR_Q else 0))
    elif FOR_Q:
        pair = item.to(tl.int64) * nd + i
        other = i
    else:
        pair = i * nd + item
        other = i
    winners = argmax + pair * max_lq
    if FOR_Q:
        winner = tl.load(winners + token, mask=mine, other=-1)
    else:
        winner = tl.load(winners + step % per_pair)
    return tl.load(grad_scores + pair), tl.load(other_starts + other), winner


@triton.jit
def _grad_tile(
    own_starts,
    own_lengths,
    other_tokens,
    other_starts,
    other_scales,
    pairs,
    order,
    bounds,
    grad_scores,
    argmax,
    ranked,
    row,
    k,
    num_items,
    num_others,
    nd,
    max_lq,
    token_bits,
    STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ITEMS: tl.constexpr,
    LOG_CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    FOR_Q: tl.constexpr,
    PAIRS: tl.constexpr,
    SCALED: tl.constexpr,
    TOKEN_BY_TOKEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    total = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    k_mask = (k < DIM)[None, :]
    first_row = tl.min(row, axis=0)
    per_pair = 1
    if TOKEN_BY_TOKEN:
        per_pair = max_lq
    for first in range(0, num_items, ITEMS):
        numbers = first + tl.arange(0, ITEMS)
        known = numbers < num_items
        starts = tl.load(own_starts + numbers, mask=known, other=0)
        lengths = tl.load(own_lengths + numbers, mask=known, other=0)
        hit = (lengths > 0) & (starts < first_row + BLOCK_R) & (starts + lengths > first_row)
        item = tl.min(tl.where(hit, numbers, _NOWHERE), axis=0)
        while item < _NOWHERE:
            own_start = tl.load(own_starts + item)
            own_length = tl.load(own_lengths + item)
            token = row - own_start
            mine = (token >= 0) & (token < own_length)
            if PAIRS:
                begin = tl.load(bounds + item)
                end = tl.load(bounds + item + 1)
            else:
                begin = (item * 0).to(tl.int64)
                end = begin + num_others
            if FOR_Q or TOKEN_BY_TOKEN:
                steps = (end - begin).to(tl.int32)
                if TOKEN_BY_TOKEN:
                    steps = (end - begin) * per_pair
                if steps > 0:
                    # Load what the next step needs while this step gathers.
                    next_weight, next_start, next_winner = _grad_step(
                        other_starts, pairs, order, grad_scores, argmax, begin, item, 0, per_pair,
                        token, mine, nd, max_lq, FOR_Q, PAIRS,
                    )  # fmt: skip
                    for step in tl.range(0, steps, num_stages=STAGES):
                        weight, start, winner = next_weight, next_start, next_winner.to(tl.int64)
                        next_weight, next_start, next_winner = _grad_step(
                            other_starts, pairs, order, grad_scores, argmax, begin, item,
                            tl.minimum(step + 1, steps - 1), per_pair, token, mine, nd, max_lq, FOR_Q, PAIRS,
                        )  # fmt: skip
                        if FOR_Q:
                            won = winner >= 0
                            pointers = other_tokens + ((start + winner) * STRIDE)[:, None] + k[None, :]
                            x = tl.load(pointers, mask=won[:, None] & k_mask, other=0.0).to(tl.float32)
                            if SCALED:
                                x *= tl.load(other_scales + start + winner, mask=won, other=0.0)[:, None]
                            total += tl.where(won[:, None], weight * x, 0.0)
                        else:
                            won = mine & (token == winner)
                            used = k < tl.where(winner >= 0, DIM, 0)
                            pointers = other_tokens + (start + step % per_pair) * STRIDE + k
                            x = tl.load(pointers, mask=used, other=0.0).to(tl.float32)
                            total += tl.where(won[:, None], (weight * x)[None, :], 0.0)
            else:
                if not PAIRS:  # `ranked` numbers all pairs by document
                    begin = item.to(tl.int64) * num_others
                    end = begin + num_others
                places = tl.arange(0, 1 << LOG_CHUNK)
                slots = tl.arange(0, BLOCK_T)
                low = (first_row << LOG_CHUNK).to(ranked.dtype.element_ty)
                high = ((first_row + BLOCK_R) << LOG_CHUNK).to(ranked.dtype.element_ty)
                pair_bits = LOG_CHUNK - token_bits
                parts = tl.cdiv(max_lq, 1 << LOG_CHUNK)
                first_chunk = (begin >> pair_bits) * parts
                last_chunk = ((end - 1) >> pair_bits) * parts + parts - 1
                # Load the keys of the next chunk while this chunk is added. A document may be in no pair.
                pairless = begin == end
                known_keys = tl.where(pairless, 0, 1 << LOG_CHUNK)
                next_keys = tl.load(ranked + first_chunk * (1 << LOG_CHUNK) + places, mask=places < known_keys)
                for chunk in range(first_chunk, tl.where(pairless, first_chunk, last_chunk + 1)):
                    in_chunk = ranked + chunk * (1 << LOG_CHUNK)
                    before = (_first_pair(chunk, max_lq, token_bits, LOG_CHUNK) - begin).to(tl.int32)
                    keys = next_keys
                    next_keys = tl.load(ranked + tl.minimum(chunk + 1, last_chunk) * (1 << LOG_CHUNK) + places)
                    # Where the keys of this tile's rows begin and end in the chunk: two counts in one number.
                    counts = tl.sum((keys < low).to(tl.int32) + ((keys < high).to(tl.int32) << 16), axis=0)
                    for step in tl.range(counts & 0xFFFF, counts >> 16, BLOCK_T, num_stages=STAGES):
                        there = step + slots < counts >> 16
                        key = tl.load(in_chunk + step + slots, mask=there, other=0)
                        place = (key & ((1 << LOG_CHUNK) - 1)).to(tl.int32)
                        number, t = _pair_and_token(chunk, place, max_lq, token_bits, LOG_CHUNK)
                        # From here on counted from the first pair of this item. Other items may share the chunk.
                        number += before
                        there &= (number >= 0) & (number < end - begin)
                        number = tl.where(there, number, 0)
                        if PAIRS:
                            pair = tl.load(order + begin + number)
                            other = tl.load(pairs + 2 * pair)
                        else:
                            pair = number.to(tl.int64) * nd + item
                            other = number
                        weight = tl.load(grad_scores + pair, mask=there, other=0.0)
                        pointers = other_tokens + ((tl.load(other_starts + other) + t) * STRIDE)[:, None] + k[None, :]
                        x = tl.load(pointers, mask=there[:, None] & k_mask, other=0.0)
                        won = tl.arange(0, BLOCK_R)[:, None] == (key - low >> LOG_CHUNK)[None, :]
                        total = _add_weighted(tl.where(won, weight[None, :], 0.0), x, total, PRECISION)
            hit &= numbers > item
            item = tl.min(tl.where(hit, numbers, _NOWHERE), axis=0)
    return total
