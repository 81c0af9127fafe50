"""Upper bounds of scores from codes: the checks, and the choice of a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from colbert_fast._backends import cpu_upper, select, torch_upper, triton_upper
from colbert_fast._codecs import Codes
from colbert_fast._forks import safe_after_fork
from colbert_fast.packed import PackedTokens


@safe_after_fork
def upper_bounds(queries: PackedTokens, codes: Codes, *, backend: str | None = None) -> Tensor:
    """Bound every score from above: ``bounds[i, j] >= sum_s max_t <queries[i][s], x[j][t]>``.

    x are the tokens that the codes were made of. The inequality holds in real arithmetic.

    Parameters
    ----------
    queries
        Floating point, with the dim of the codes, not rotated, finite; on any device.
    codes
        What :func:`encode` returns, on any device. Documents without tokens are allowed.
    backend
        As in :func:`maxsim`. Default: the best that can run on the device of the codes.

    Returns
    -------
    torch.Tensor
        ``[A, n]`` float32 on the device of the codes. -1e9 for a document without tokens, else 0 or next to nothing for
        a query without tokens. A bound may be +inf, and is never NaN. Not differentiable.

    Raises
    ------
    TypeError
        Queries of int8.
    ValueError
        Queries of another dim, or with a NaN or an infinity; an unknown backend. To check the queries waits for their
        device.
    NotImplementedError
        The backend cannot run; the message says why.
    """
    return bounded(checked(queries, codes), codes, backend)


def checked(queries: PackedTokens, codes: Codes) -> PackedTokens:
    """Return the queries, or raise if :func:`upper_bounds` refuses them. Waits for their device."""
    if queries.scales is not None:
        msg = "queries must be floating point; got int8: queries.to(dtype=torch.float32) gives what they stand for"
        raise TypeError(msg)
    if queries.rows == 0 and queries.dim != codes.dim:
        queries = queries.with_tokens(queries.tokens.new_empty(0, codes.dim))
    if queries.dim != codes.dim:
        msg = f"queries and codes need the same dim; got queries [*, {queries.dim}] and codes [*, {codes.dim}]"
        raise ValueError(msg)
    _check_finite(queries)
    return queries


def bounded(queries: PackedTokens, codes: Codes, backend: str | None) -> Tensor:
    """Return the bounds of queries that are checked. In Triton, does not wait for their device if it is the codes'."""
    name, _, tier = select(codes.device, queries.dtype, backend).name.partition(":")
    if name == "cpu":
        queries = queries.to("cpu")
        return cpu_upper.upper_bounds(tier, queries.tokens, queries.starts, queries.lengths, codes)
    if name == "triton":
        return triton_upper.upper_bounds(queries, codes)
    return torch_upper.upper_bounds(queries, codes)


def _check_finite(queries: PackedTokens) -> None:
    """Raise if a query has a NaN or an infinity. Rows that belong to no query may have them."""
    finite = queries.tokens.detach().isfinite()
    if bool(finite.all()):
        return
    bad = torch.nn.functional.pad((~finite).any(1).cumsum(0), (1, 0))
    hit = bad[queries.starts + queries.lengths] > bad[queries.starts]
    if bool(hit.any()):
        msg = f"queries must be finite; query {int(hit.int().argmax())} has a NaN or an infinity"
        raise ValueError(msg)
