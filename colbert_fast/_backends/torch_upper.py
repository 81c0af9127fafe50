"""Upper bounds of scores, from codes, in plain torch: on every device, in bounded memory.

The bound that every backend computes, for a query of the tokens q_i and a document of the tokens x_j:

    U = sum_i max_j ( m_j <y_i, v_j> + slack_j |q_i| )  +  norm sum_i |R q_i - y_i|

m_j, v_j and slack_j are the multiplier, the integers and the slack of token j. ``norm`` is the norm of the document, so
|m_j v_j| <= norm. R is the rotation, and y_i is what is multiplied in place of R q_i. U is at least the score, because
for each i and j

    <q_i, x_j> <= <R q_i, m_j v_j> + slack_j |q_i| <= <y_i, m_j v_j> + |R q_i - y_i| norm + slack_j |q_i|

THE ARITHMETIC. Each query token is divided by its largest number. Then y_i is the sum of two numbers of bfloat16 for
each dimension, which differs from R q_i by 2^-16 of its length at most. The integers are bfloat16 numbers, too. So the
products are exact even where torch is allowed to multiply float32 matrices in TF32 or bfloat16, and only their sums are
rounded. Let u be the error of one rounding: 2^-24, or 2^-22 where a GPU truncates. A sum of n products passes at most n
roundings, so it is off by n u |y_i| |v_j|. Sums of blocks are added in pairs, and then those of the two parts of y_i.
The product with m_j, the product with slack_j and the last sum are rounded once each. In total this is at most

    margin(dim) |q_i| norm + 4 u slack_j |q_i|

The first part is added to |R q_i - y_i|. For the second part, |q_i| is multiplied by 1 + _MORE_SLACK. Numbers below the
normal range of float32 may be lost: each counts for less than 2^-100 |q_i|, so the norm is taken to be greater by
MORE_NORM. Maxima are added in float64, and the sum is rounded up. What float64 loses is far less than all of these.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from colbert_fast._backends.problem import CHUNK_ELEMENTS, EMPTY_DOCUMENT_SCORE
from colbert_fast._backends.torch_ import BLOCK, _product, _split, _waiting
from colbert_fast._codecs import Codes, integers, rotate
from colbert_fast.packed import PackedTokens

_MORE_SLACK = 2.0**-19
MORE_NORM = 2.0**-80
# The products with longer documents could overflow. Their bound is +inf.
LONGEST = 2.0**100
# Up to this dim, queries are multiplied by the matrix of the rotation; it has 2 MiB then.
_DENSE = 512
# No query token is divided by less. It is far below the numbers of float32, and the square of its inverse is a number.
_LEAST_SCALE = 2.0**-200
MOST = torch.finfo(torch.float32).max


class Rotated(NamedTuple):
    """Query tokens in float64, on their device if it has float64, else on the CPU."""

    rows: Tensor  # [..., dim]: R q
    norms: Tensor  # [...]: |q| (1 + _MORE_SLACK)
    scales: Tensor  # [...]: the largest magnitude in R q, or a little more than 0


def rotated(tokens: Tensor, codes: Codes) -> Rotated:
    """Rotate query tokens ``[..., dim]`` as the codes were. Does not wait for a GPU."""
    device = tokens.device if tokens.device.type != "mps" else torch.device("cpu")
    tokens = tokens.detach().to(device).to(torch.float64)
    if codes.dim <= _DENSE:
        rows = tokens @ _rotation(codes.dim, codes.seed, device)
    else:
        rows = rotate(tokens.reshape(-1, codes.dim), codes.seed).view(tokens.shape)
    norms = torch.linalg.vector_norm(tokens, dim=-1) * (1 + _MORE_SLACK)
    return Rotated(rows, norms, rows.abs().amax(-1).clamp_(min=_LEAST_SCALE))


@functools.lru_cache(16)
def _rotation(dim: int, seed: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return rotate(torch.eye(dim, dtype=torch.float64, device="cpu"), seed).to(device)


def margin(dim: int) -> float:
    """Return the error of m <y, v> as a multiple of |q| norm, in float32 or in int8, whose sums are exact.

    The 16 roundings more than those of the sum are for what follows it, and for y, which may be longer than R q.
    """
    roundings = min(dim, BLOCK) + (dim // BLOCK).bit_length() + 16
    return roundings * 2.0**-22


def distance(q: Rotated, y: Tensor) -> Tensor:
    """Return what is multiplied by the norm of a document, ``[...]``: |R q - y| and the margin.

    ``y [..., dim]`` is what is multiplied in place of ``q.rows``, in float64.
    """
    off: Tensor = torch.linalg.vector_norm(q.rows - y, dim=-1)
    return off.add_(q.norms, alpha=margin(y.shape[-1]))


def rounded_up(bounds: Tensor, norms: Tensor, lengths: Tensor) -> Tensor:
    """Return the bounds ``[A, n]`` as float32 numbers that are not less, and the bounds of special documents."""
    bounds = torch.add(bounds, bounds.abs(), alpha=2.0**-22).add_(2.0**-120).clamp_(min=-MOST).to(torch.float32)
    # A bound is NaN where an infinite slack or huge queries of float64 met a zero.
    bounds.nan_to_num_(float("inf"), float("inf"))
    bounds.masked_fill_((norms > LONGEST) | norms.isnan(), float("inf"))
    return bounds.masked_fill_(lengths == 0, EMPTY_DOCUMENT_SCORE)


def upper_bounds(queries: PackedTokens, codes: Codes) -> Tensor:
    """Return the bounds ``[A, n]``, float32, on the device of the codes."""
    device = codes.device
    if device.type != "mps":
        queries = queries.to(device)
    _check_bounds(codes)
    out = torch.full((len(queries), len(codes.lengths)), EMPTY_DOCUMENT_SCORE, dtype=torch.float32, device=device)
    # torch.autocast would multiply in half precision.
    off = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
    with torch.no_grad(), off:
        _fill(out, queries, codes)
    return out


def _fill(out: Tensor, queries: PackedTokens, codes: Codes) -> None:
    dim, device = codes.dim, codes.device
    length = queries.max_length
    lengths, by_length = codes.lengths.sort(stable=True)
    widths = lengths.tolist()
    empty = sum(width == 0 for width in widths)
    if empty == len(widths) or not len(queries):
        return
    if not length:
        out.masked_fill_(codes.lengths > 0, 0.0)
        return
    # A row of levels becomes `dim` numbers. For each query token there are two products, and the values.
    lane = 2 * _waiting(dim, torch.float32) + 2
    at_once = max(1, CHUNK_ELEMENTS // (2 * length * (lane + dim)))
    for first in range(0, len(queries), at_once):
        lanes = _Lanes.of(queries, slice(first, first + at_once), codes)
        per_row = 2 * dim + lanes.mask.numel() * lane
        for some in _split(widths[empty:], per_row, 0, CHUNK_ELEMENTS):
            documents = by_length[empty:][some]
            width = widths[empty:][some][-1]
            best = _best(lanes, codes, documents, width, max(1, CHUNK_ELEMENTS // (len(documents) * per_row)))
            out[first : first + at_once, documents] = lanes.bounds(best, codes.norms[documents]).to(device)


def _check_bounds(codes: Codes) -> None:
    """Refuse items that are not there, because torch would count negative numbers from the end.

    Only on a CPU, where the check costs little. The kernels of torch check indices elsewhere.
    """
    if not codes.levels.is_cpu:
        return
    rows = codes.levels.shape[0]
    outside = (codes.starts < 0) | (codes.lengths < 0) | (codes.starts > rows - codes.lengths)
    if bool(outside.any()):
        i = int(outside.int().argmax())
        msg = f"item {i} of the codes is the rows [{int(codes.starts[i])}, +{int(codes.lengths[i])}) of {rows}"
        raise ValueError(msg)


class _Lanes(NamedTuple):
    """Some queries, all padded to one length, as they are multiplied."""

    parts: Tensor  # [dim, 2 * lanes] float32: the two parts of each query token
    norms: Tensor  # [lanes] float32
    scales: Tensor  # [lanes] float64
    mask: Tensor  # [A, length]: which lanes are query tokens
    distances: Tensor  # [A] float64

    @classmethod
    def of(cls, queries: PackedTokens, some: slice, codes: Codes) -> _Lanes:
        starts, lengths = queries.starts[some].unsqueeze(1), queries.lengths[some].unsqueeze(1)
        position = torch.arange(queries.max_length, device=starts.device)
        mask = position < lengths
        q = rotated(queries.tokens[torch.where(mask, starts + position, 0)], codes)
        mask = mask.to(q.rows.device)
        scales = q.scales.unsqueeze(-1)
        rows = q.rows / scales
        high = rows.to(torch.bfloat16).to(torch.float64)
        low = (rows - high).to(torch.bfloat16).to(torch.float64)
        distances = torch.where(mask, distance(q, (high + low) * scales), 0.0).sum(1)
        parts = torch.cat([high.flatten(0, 1), low.flatten(0, 1)]).to(torch.float32).T
        norms = (q.norms / q.scales).to(torch.float32).flatten()
        device = codes.device
        return cls(parts.to(device), norms.to(device), q.scales.flatten(), mask, distances)

    def bounds(self, best: Tensor, norms: Tensor) -> Tensor:
        """Return the bounds ``[A, n]`` from the maxima ``[n, lanes]`` and the norms of the documents ``[n]``."""
        device = self.scales.device
        best, norms = best.to(device), norms.to(device)
        weighted = (best.to(torch.float64) * self.scales).view(-1, *self.mask.shape)
        sums = torch.where(self.mask, weighted, 0.0).sum(2).T
        sums += self.distances.unsqueeze(1) * (norms.to(torch.float64) + MORE_NORM)
        return rounded_up(sums, norms, torch.ones_like(norms))


def _best(lanes: _Lanes, codes: Codes, documents: Tensor, width: int, step: int) -> Tensor:
    """Return the maximum for each document and lane, ``[n, lanes]``; ``step`` tokens of each document at a time."""
    best: Tensor | None = None
    starts, last = codes.starts[documents].unsqueeze(1), codes.lengths[documents].unsqueeze(1) - 1
    for rows in _positions(width, step, starts.device):
        # The last token of a shorter document is taken several times, which changes no maximum.
        numbers = (starts + torch.minimum(rows, last)).flatten()
        high, low = _product(integers(codes, numbers), lanes.parts).chunk(2, dim=1)
        values = (high + low).mul_(codes.multipliers[numbers].to(torch.float32).unsqueeze(1))
        values.addcmul_(codes.slack[numbers].to(torch.float32).unsqueeze(1), lanes.norms)
        largest = values.view(len(documents), -1, values.shape[1]).amax(1)
        best = largest if best is None else torch.maximum(best, largest)
    assert best is not None
    return best


def _positions(width: int, step: int, device: torch.device) -> Iterator[Tensor]:
    for first in range(0, width, step):
        yield torch.arange(first, min(width, first + step), device=device)
