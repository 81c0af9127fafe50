"""MaxSim in plain torch: runs wherever torch runs, in bounded memory. Tests compare every other backend with it.

The library that multiplies matrices for torch may add products in any order. So float32 matrices are multiplied BLOCK
dimensions at a time: in every order, a product passes at most 128 roundings, 7.6e-6 of the sum of |products|. The sums
of blocks are added in pairs, as in the C++ tiers, which costs one rounding for each doubling of their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from colbert_fast._backends.problem import EMPTY_DOCUMENT_SCORE, Backend, Problem, Scored

BLOCK = 128


def score(p: Problem) -> Scored:
    return _score(p, argmax=False)


def score_argmax(p: Problem) -> Scored:
    return _score(p, argmax=True)


def _check_bounds(p: Problem) -> None:
    """Refuse items and pairs that are not there: torch would count negative numbers from the end.

    Only on a CPU, where the check costs little. On another device it would wait, and the kernels of torch check indices
    there themselves.
    """
    if p.d_tokens.device.type != "cpu":
        return
    for name, tokens, starts, lengths, longest in (
        ("q", p.q_tokens, p.q_starts, p.q_lengths, p.max_lq),
        ("d", p.d_tokens, p.d_starts, p.d_lengths, p.max_ld),
    ):
        rows = tokens.shape[0]
        outside = (starts < 0) | (lengths < 0) | (lengths > longest) | (starts > rows - lengths)
        if bool(outside.any()):
            i = int(outside.int().argmax())
            msg = f"item {i} of {name} is the rows [{int(starts[i])}, +{int(lengths[i])}) of {rows}, at most {longest}"
            raise ValueError(msg)
    if p.pairs is not None and len(p.pairs):
        counts = torch.tensor([p.q_starts.shape[0], p.d_starts.shape[0]], device="cpu")
        outside = ((p.pairs < 0) | (p.pairs >= counts)).any(1)
        if bool(outside.any()):
            i = int(outside.int().argmax())
            msg = f"pairs[{i}] is {tuple(p.pairs[i].tolist())}; there are {counts[0]} queries and {counts[1]} documents"
            raise ValueError(msg)


def _score(p: Problem, *, argmax: bool) -> Scored:
    _check_bounds(p)
    device = p.d_tokens.device
    compute = _compute_dtype(p)
    # Maxima are added in float64, as in the C++ tiers, except on MPS, which has no float64.
    wide = compute if device.type == "mps" else torch.float64
    scores = torch.full((p.num_pairs,), EMPTY_DOCUMENT_SCORE, dtype=compute, device=device)
    winners = torch.full((p.num_pairs, p.max_lq), -1, dtype=p.argmax_dtype, device=device) if argmax else None
    if p.num_pairs == 0 or p.max_ld == 0 or p.d_tokens.shape[0] == 0:
        return Scored(scores.view(p.shape), winners, p.num_pairs > 0)
    empty_document = False
    for numbers, queries, documents in _chunks(p):
        q, q_mask = _pad(p.q_tokens, p.q_starts[queries], p.q_lengths[queries], 0)
        q = q.to(compute)
        d, d_mask = _pad_documents(p, documents, compute)
        if p.skip_zero_q:
            q_mask = q_mask & q.any(-1)
        if p.pairs is None:
            q_mask = q_mask.unsqueeze(1)
        similarity = _similarity(q, d, paired=p.pairs is not None)
        best, where = _maxima(similarity, d_mask)
        if p.skip_zero_d and _zero_rows_may_win(best, q_mask):
            d_mask = d_mask & d.any(-1)
            best, where = _maxima(similarity, d_mask)
        if winners is not None:
            where = _first_of_equals(q, d, similarity, best, where)
        has_token = d_mask.any(-1)
        counts = q_mask & has_token.unsqueeze(-1)
        total = torch.where(counts, best, 0.0).sum(-1, dtype=wide).to(compute)
        scores[numbers] = torch.where(has_token, total, EMPTY_DOCUMENT_SCORE)
        if winners is not None:
            winners[numbers, : where.shape[-1]] = torch.where(counts, where, -1).to(p.argmax_dtype)
        if device.type == "cpu":
            empty_document = empty_document or not bool(has_token.all())
    return Scored(scores.view(p.shape), winners, empty_document)


def backward(
    p: Problem, grad_scores: Tensor, argmax: Tensor, for_q: bool, for_d: bool
) -> tuple[Tensor | None, Tensor | None]:
    _check_bounds(p)
    compute = _compute_dtype(p)
    device = p.q_tokens.device
    grad_q = torch.zeros(p.q_tokens.shape, dtype=compute, device=device) if for_q else None
    grad_d = torch.zeros(p.d_tokens.shape, dtype=compute, device=device) if for_d else None
    chunk = max(1, p.chunk_elements // max(1, p.max_lq * p.q_tokens.shape[1]))
    for numbers in torch.arange(p.num_pairs, device=device).split(chunk):
        winner = argmax[numbers]
        if p.pairs is not None:
            query, document = p.pairs[numbers].unbind(1)
        else:
            query = numbers.div(p.shape[1], rounding_mode="floor")
            document = numbers.remainder(p.shape[1])
        # There is no gradient for a winner that is not a token of its document, or for a row that is no query token.
        real = (winner >= 0) & (winner < p.d_lengths[document].unsqueeze(1))
        real &= torch.arange(winner.shape[1], device=device) < p.q_lengths[query].unsqueeze(1)
        pair, token = real.nonzero(as_tuple=True)
        number, query, document = numbers[pair], query[pair], document[pair]
        q_row = p.q_starts[query] + token
        d_row = p.d_starts[document] + winner[pair, token]
        weight = grad_scores[number].to(compute).unsqueeze(1)
        if grad_q is not None:
            rows = p.d_tokens[d_row].to(compute)
            if p.d_scales is not None:
                rows *= p.d_scales[d_row].unsqueeze(1)
            _add_rows(grad_q, q_row, weight * rows)
        if grad_d is not None:
            _add_rows(grad_d, d_row, weight * p.q_tokens[q_row].to(compute))
    return grad_q, grad_d


def _compute_dtype(p: Problem) -> torch.dtype:
    return torch.float64 if p.q_tokens.dtype == torch.float64 else torch.float32


def _chunks(p: Problem) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Cut the work so that a chunk's similarities and padded copies stay within ``chunk_elements``.

    :func:`_waiting` says how many matrices of similarities exist at a time. Yields pair numbers, query numbers and
    document numbers: ``[nq, nd], [nq], [nd]``, or ``[p]`` each with pairs. Documents of similar length go together, so
    that little of a chunk is padding.
    """
    device = p.d_tokens.device
    dim = p.q_tokens.shape[1]
    similarities = p.max_lq * _waiting(dim, _compute_dtype(p))
    if p.pairs is not None:
        lengths, by_length = p.d_lengths[p.pairs[:, 1]].sort(stable=True)
        for some in _split(lengths.tolist(), similarities + dim, p.max_lq * dim, p.chunk_elements):
            numbers = by_length[some]
            yield numbers, p.pairs[numbers, 0], p.pairs[numbers, 1]
        return
    nq, nd = p.shape
    lengths, by_length = p.d_lengths.sort(stable=True)
    widths = lengths.tolist()
    queries_at_once = max(1, p.chunk_elements // max(1, p.max_lq * dim + similarities * p.max_ld))
    for queries in torch.arange(nq, device=device).split(queries_at_once):
        for some in _split(widths, len(queries) * similarities + dim, 0, p.chunk_elements):
            documents = by_length[some]
            yield queries.unsqueeze(1) * nd + documents, queries, documents


def _split(widths: list[int], per_token: int, per_item: int, budget: int) -> Iterator[slice]:
    """Yield ranges of ascending ``widths`` whose padded cost is within ``budget``; a single item may exceed it."""
    start = 0
    for end, width in enumerate(widths):
        if end > start and (end + 1 - start) * (width * per_token + per_item) > budget:
            yield slice(start, end)
            start = end
    if widths:
        yield slice(start, len(widths))


def _pad(tokens: Tensor, starts: Tensor, lengths: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Lay items out as ``[n, width, dim]``, with a mask ``[n, width]`` of the rows that are tokens.

    Other rows hold anything. Copies, unless the items are equally long and follow one another, as in a padded tensor.
    The width is the length of the longest item, but at least ``least``: there is no maximum over nothing.
    """
    width = max(least, int(lengths.max()))
    position = torch.arange(width, device=tokens.device)
    mask = position < lengths.unsqueeze(1)
    first = int(starts[0])
    if width and bool((starts == first + width * torch.arange(len(starts), device=tokens.device)).all() & mask.all()):
        return tokens.narrow(0, first, len(starts) * width).unflatten(0, (len(starts), width)), mask
    rows = torch.where(mask, starts.unsqueeze(1) + position, 0)
    return tokens[rows], mask


def _pad_documents(p: Problem, documents: Tensor, compute: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return :func:`_pad` of some documents, in the dtype of the arithmetic."""
    starts, lengths = p.d_starts[documents], p.d_lengths[documents]
    d, mask = _pad(p.d_tokens, starts, lengths, 1)
    d = d.to(compute)
    if p.d_scales is not None:
        d *= _pad(p.d_scales.unsqueeze(1), starts, lengths, 1)[0]
    return d, mask


def _similarity(q: Tensor, d: Tensor, *, paired: bool) -> Tensor:
    """Return the dot products ``[nq, nd, lq, ld]``, or with pairs ``[p, lq, ld]``."""
    # torch.autocast would multiply in half precision.
    device = q.device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        if paired:
            return _product(q, d.transpose(1, 2))
        flat = _product(q.flatten(0, 1), d.flatten(0, 1).T)
    return flat.view(q.shape[0], q.shape[1], d.shape[0], d.shape[1]).transpose(1, 2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``, over all dimensions at once or in blocks whose sums are added in pairs."""
    dim = a.shape[-1]
    if dim <= BLOCK or a.dtype == torch.float64:
        return a @ b
    # For each bit that is 1 in the number of blocks so far: the sum of as many blocks as that bit stands for.
    waiting: list[Tensor] = []
    for block, first in enumerate(range(0, dim, BLOCK)):
        total = a[..., first : first + BLOCK] @ b[..., first : first + BLOCK, :]
        while waiting and (block & 1 or first + BLOCK >= dim):
            total = waiting.pop().add_(total)
            block >>= 1
        waiting.append(total)
    return waiting[0]


def _waiting(dim: int, compute: torch.dtype) -> int:
    """Return how many matrices of similarities :func:`_product` has at a time, at most."""
    return 1 if compute == torch.float64 else 1 + (max(0, dim - 1) // BLOCK).bit_length()


def _maxima(similarity: Tensor, d_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum over document tokens and its first position; NaN wins. Overwrites masked similarities."""
    best, where = similarity.masked_fill_(~d_mask.unsqueeze(-2), float("-inf")).max(-1)
    # If all similarities are -inf, masked positions are as good as real ones, and max may return one of them.
    first = d_mask.int().argmax(-1, keepdim=True)
    return best, torch.where(best == float("-inf"), first, where)


def _first_of_equals(q: Tensor, d: Tensor, similarity: Tensor, best: Tensor, where: Tensor) -> Tensor:
    """If the winning row has equals in its document, let the first of the equal rows win.

    The products of equal rows should be equal, but a product of matrices may add up the last rows in another order.
    Only rows whose similarity is close to the maximum are compared.
    """
    # More than twice the error of a sum of products: 1e-5, or dim / 2 units of float64.
    error = 2.0**-15 if q.dtype == torch.float32 else torch.finfo(q.dtype).eps * (q.shape[-1] + 8)
    if q.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest" and q.dtype == torch.float32:
        error = 2.0**-8  # CUDA may round factors to 8 or 11 bits
    norms = torch.linalg.vector_norm(q, dim=-1)
    longest = torch.linalg.vector_norm(d, dim=-1).amax(-1)
    slack = error * (norms * longest.unsqueeze(1) if similarity.ndim == 3 else norms.unsqueeze(1) * longest[:, None])
    close = (similarity >= (best - slack).unsqueeze(-1)) & (similarity != float("-inf"))
    tied = close.sum(-1, keepdim=True) > 1
    if not bool(tied.any()):
        return where
    rows = close.logical_and_(tied).any(-2)
    document, row = (rows if rows.ndim == 2 else rows.any(0)).nonzero(as_tuple=True)
    # Adding 0 turns -0 into +0: the two are equal, but their bits are not.
    values = d[document, row] + 0.0
    integers = values.view(torch.int64 if q.dtype == torch.float64 else torch.int32)
    order = _by_content(integers, document)
    document, row, integers = document[order], row[order], integers[order]
    same = torch.zeros(len(row), dtype=torch.bool, device=q.device)
    same[1:] = (document[1:] == document[:-1]) & (integers[1:] == integers[:-1]).all(-1)
    number = torch.arange(len(row), device=q.device)
    start = torch.where(same, 0, number).cummax(0).values
    first = torch.arange(d.shape[1], device=q.device).repeat(d.shape[0], 1)
    first[document, row] = row[start]
    return first.expand(*where.shape[:-1], -1).gather(-1, where)


def _by_content(integers: Tensor, document: Tensor) -> Tensor:
    """Return an order that puts equal rows of a document next to each other, and keeps their order among themselves."""
    mixed = integers ^ (integers >> 16)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(2**31, (integers.shape[1],), generator=generator, dtype=integers.dtype)
    # A sum of integers wraps around, and does not depend on the order of its terms.
    order = (mixed * factors.to(integers.device)).sum(-1).argsort(stable=True)
    return order[document[order].argsort(stable=True)]


def _zero_rows_may_win(best: Tensor, q_mask: Tensor) -> bool:
    """Return whether a row of zeros may have won.

    A row of zeros scores 0, or NaN against an infinite query: if no maximum is 0 or NaN, no row of zeros has won.
    """
    suspect = ((best == 0) | best.isnan()) & q_mask
    return bool(suspect.any()) or not bool(q_mask.any())


def _add_rows(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """Compute ``total[rows] += values`` in one fixed order. On CUDA index_add_ has none, but index_put_ sorts."""
    if total.device.type == "cuda":
        total.index_put_((rows,), values, accumulate=True)
    else:
        total.index_add_(0, rows, values)


BACKEND = Backend(
    name="torch",
    unsupported=None,
    device=None,
    dtypes=(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    score=score,
    score_argmax=score_argmax,
    backward=backward,
    int8=True,
)
