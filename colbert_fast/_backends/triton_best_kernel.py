"""The Triton kernel that finds the best scores of each query: `best_kernel`. `triton_best` launches it."""

# Annotations in this file are Triton's, not Python's. An `if` on a constexpr is decided by the compiler and must stay a
# statement.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

# The arguments whose values and alignment do not change the compiled code.
_ANY_VALUE = ["scores", "keys", "kept", "best", "numbers", "nd", "width", "chunks", "k"]
# The key of a place without a score.
_LAST = tl.constexpr(2**63 - 1)


@triton.jit
def _key(score, document):
    """Return an int64 key for each score. All keys differ, and ascending keys are documents as `cf.topk` orders them.

    The upper half is the score as an int32 that is less for a greater score: -2^31 for NaN. 0.0 and -0.0 are equal. The
    lower half is the number of the document. No key is _LAST, because no score is turned into 2^31 - 1.
    """
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    # Negative floats are ordered as their magnitudes are: all other bits are flipped. Then the order is reversed.
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    falling = tl.where(score != score, -(2**31), falling)
    return (falling.to(tl.int64) << 32) | document.to(tl.int64)


# Sorts one chunk of CHUNK places of one query, and keeps the first ones: the first KEPT keys for another launch, or
# in the last launch the scores and the numbers of the k best documents.
#
# The first launch reads `scores` [nq, nd], whose width is nd; later ones read `keys` [nq, width], which are what an
# earlier launch kept of its chunks. In the last launch there is one chunk, and `kept` is None.
@triton.jit(do_not_specialize=_ANY_VALUE)
def best_kernel(scores, keys, kept, best, numbers, nd, width, chunks, k, CHUNK: tl.constexpr, KEPT: tl.constexpr):
    pid = tl.program_id(0)
    query = (pid // chunks).to(tl.int64)
    rank = tl.arange(0, CHUNK)
    place = pid % chunks * CHUNK + rank
    there = place < width
    if keys is None:
        score = tl.load(scores + query * nd + place, mask=there, other=0.0)
        key = tl.where(there, _key(score, place), _LAST)
    else:
        key = tl.load(keys + query * width + place, mask=there, other=_LAST)
    key = tl.sort(key)
    if kept is not None:
        tl.store(kept + pid.to(tl.int64) * KEPT + rank, key, mask=rank < KEPT)
    else:
        document = key & 0x7FFFFFFF
        wanted = rank < k
        tl.store(numbers + query * k + rank, document, mask=wanted)
        tl.store(best + query * k + rank, tl.load(scores + query * nd + document, mask=wanted), mask=wanted)
