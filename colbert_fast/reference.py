"""The definition of MaxSim, in float64: slow and obvious. Tests and benchmarks compare everything else with it.

The package never imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EMPTY_DOCUMENT_SCORE = -1e9


def maxsim_pair(q: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Score one query against one document.

    ``sum_i max_j <q_i, d_j>`` (ColBERT, Khattab & Zaharia 2020, equation 3).

    Parameters
    ----------
    q
        ``[lq, dim]``, any floating dtype.
    d
        ``[ld, dim]``.

    Returns
    -------
    score, argmax : torch.Tensor
        The score, float64 ``[]``: -1e9 for a document without tokens, else 0 for a query without tokens;
        and the document token of each maximum, int64 ``[lq]``: the first of equals, the first NaN if there
        is one, -1 for a document without tokens.
    """
    if d.shape[0] == 0:
        score = torch.full((), EMPTY_DOCUMENT_SCORE, dtype=torch.float64)
        return score, torch.full((q.shape[0],), -1, dtype=torch.int64)
    similarity = q.double() @ d.double().T
    best, argmax = similarity.max(dim=1)
    return best.sum(), argmax


def maxsim(queries: Sequence[Tensor], documents: Sequence[Tensor]) -> Tensor:
    """Score every query against every document: float64 ``[len(queries), len(documents)]``."""
    scores = torch.zeros(len(queries), len(documents), dtype=torch.float64)
    for i, q in enumerate(queries):
        for j, d in enumerate(documents):
            scores[i, j] = maxsim_pair(q, d)[0]
    return scores
