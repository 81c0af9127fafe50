"""The tensors of a new segment, some documents at a time: encoded from tokens, or copied from other segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from colbert_fast import _codecs
from colbert_fast._spans import in_order, rows_in_order
from colbert_fast.collection.layout import CODES, EXACT, Options, suffixes
from colbert_fast.collection.segments import Segment
from colbert_fast.packed import PackedTokens

# So many numbers are encoded at a time: enough for all threads, and few enough to stay in the cache until written.
PART_NUMBERS = 1 << 22


def spans(lengths: Tensor, most: int) -> Iterator[tuple[int, int]]:
    """Cut documents into runs of at most so many tokens, or of one document."""
    ends = [0, *lengths.cumsum(0).tolist()]
    first = 0
    for i in range(1, len(ends)):
        if ends[i] - ends[first] > most and i - 1 > first:
            yield first, i - 1
            first = i - 1
    if first < len(ends) - 1:
        yield first, len(ends) - 1


def encoded(
    options: Options, dim: int, batches: Sequence[PackedTokens], ids: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    """Encode the documents of batches, one batch after the other. A batch without tokens may have another dim.

    Raises
    ------
    ValueError
        A token that is not finite, or not in the dtype in which the collection keeps it.
    """
    done = 0
    for batch in batches:
        for first, last in spans(batch.lengths, max(1, PART_NUMBERS // max(1, batch.tokens.shape[1]))):
            yield _encoded(options, dim, batch[first:last], ids[done + first : done + last])
        done += len(batch)


def _encoded(options: Options, dim: int, batch: PackedTokens, ids: Sequence[str]) -> dict[str, Tensor]:
    own = in_order(batch._rows())
    lengths = own.lengths
    rows = own.tokens.detach().resolve_neg().reshape(len(own.tokens), dim)
    if rows.dtype == torch.float64:
        rows = rows.float()
    kept = rows if options.exact is None else rows.to(EXACT[options.exact])
    part = {"lengths": lengths}
    if options.exact is not None:
        part["exact"] = kept
    try:
        if options.codes == "int4+4":
            codes: tuple[_codecs.Codes, ...] = _codecs.encode_planes(kept, lengths, seed=options.seed)
        else:
            codes = (_codecs.encode(kept, lengths, bits=CODES[options.codes][0], seed=options.seed),)
    except ValueError:
        _check_finite(kept, lengths, ids)  # which says more
        raise
    part["levels"] = codes[-1].levels
    if codes[-1].low is not None:
        part["low"] = codes[-1].low
    for suffix, some in zip(suffixes(options.codes), codes, strict=True):
        part["multipliers" + suffix] = some.multipliers
        part["slack" + suffix] = some.slack
        part["norms" + suffix] = some.norms
    return part


def _check_finite(rows: Tensor, lengths: Tensor, ids: Sequence[str]) -> None:
    wrong = (~rows.isfinite().all(1)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        item = int((lengths.cumsum(0) <= row).sum())
        token = row - int(lengths[:item].sum())
        kept = str(rows.dtype).removeprefix("torch.")
        msg = f"embeddings must be finite numbers in {kept}; token {token} of document {ids[item]!r} is not"
        raise ValueError(msg)


def copied(segments: Sequence[tuple[Segment, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Copy items of segments as they are, code by code. Each segment comes with the numbers of its items."""
    for segment, items in segments:
        starts, lengths = segment.codes[0].starts[items], segment.codes[0].lengths[items]
        most = max(1, PART_NUMBERS // segment.layout.dim)
        for first, last in spans(lengths, most):
            rows = rows_in_order(starts[first:last], lengths[first:last], int(lengths[first:last].sum()))
            part = {}
            for name in segment.layout.entries:
                of_items = name == "lengths" or name.startswith("norms")
                part[name] = segment.tensor(name).index_select(0, items[first:last] if of_items else rows)
            yield part
