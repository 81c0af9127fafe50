"""Upper bounds of scores from codes, by the C++ extension."""

from __future__ import annotations

import torch
from torch import Tensor

from colbert_fast._arrays import aligned
from colbert_fast._codecs import Codes, signs
from colbert_fast._extension import _C
from colbert_fast._threads import get_num_threads


def upper_bounds(tier: str, queries: Tensor, q_starts: Tensor, q_lengths: Tensor, codes: Codes) -> Tensor:
    """Bound every score from above; csrc/per_tier/upper.h has the formula and the proof.

    Parameters
    ----------
    tier
        A tier of the extension that can run here.
    queries
        ``[rows, dim]``, floating point, finite, not rotated, on the CPU.
    q_starts, q_lengths
        ``[A]`` int64: query i is the rows ``[q_starts[i], q_starts[i] + q_lengths[i])``.
    codes
        On the CPU.

    Returns
    -------
    torch.Tensor
        ``[A, n]`` float32, never NaN. -1e9 for an item without tokens, else 0 for a query without tokens.

    Raises
    ------
    ValueError
        Tensors that do not fit together, or an item that is not among their rows.
    """
    bounds = torch.empty((len(q_lengths), len(codes)), dtype=torch.float32, device="cpu")
    queries = aligned(queries.detach().to(torch.float32).resolve_neg().contiguous())

    def plain(tensor: Tensor) -> Tensor:
        return aligned(tensor.contiguous())

    _C.upper(
        tier,
        (0, queries, q_starts, q_lengths, None),
        signs(codes.dim, codes.seed),
        (
            codes.bits,
            codes.dim,
            plain(codes.levels),
            None if codes.low is None else plain(codes.low),
            plain(codes.multipliers),
            plain(codes.slack),
            plain(codes.norms),
            plain(codes.starts),
            plain(codes.lengths),
        ),
        get_num_threads(),
        bounds,
    )
    return bounds
