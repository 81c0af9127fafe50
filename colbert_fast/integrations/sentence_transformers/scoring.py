"""The scoring functions of sentence-transformers, under their own names, with the kernels of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

import colbert_fast._maxsim as ours
from colbert_fast import _ops
from colbert_fast._arrays import Mask, tensor_of
from colbert_fast._lowering import flat_candidates
from colbert_fast.integrations._padding import padded
from colbert_fast.packed import Tokens

# Where a document has no token, sentence-transformers writes one record to this logger, and so do we.
_LOGGER = "sentence_transformers.util.similarity"
_NO_TOKEN = (
    "A document has no token that can be scored: MultiVectorMask removed all of them (see its keep_only_token_ids and "
    "skiplist_words), the mask keeps none, or the embedding has no rows. Such a document scores -1e9, below every real "
    "document; length_normalize divides this score too."
)


def maxsim(
    a: Tokens,
    b: Tokens,
    a_mask: Mask | None = None,
    b_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Score every query against every document, as ``sentence_transformers.util.maxsim``.

    This is ``colbert_fast.maxsim`` with the arguments of that library alone. Only the notice of a document without
    a token differs: it is a record of that library's logger, once, instead of a warning.

    Returns
    -------
    torch.Tensor
        ``[A, B]``, as of ``colbert_fast.maxsim``.
    """
    return _logged(ours.maxsim, a, b, a_mask, b_mask, chunk_elements, length_normalize, device)


def maxsim_pairwise(
    a: Tokens,
    b: Tokens,
    a_mask: Mask | None = None,
    b_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Score query i against document i, as ``sentence_transformers.util.maxsim_pairwise``.

    This is ``colbert_fast.maxsim_pairwise`` in the way that :func:`maxsim` is ``colbert_fast.maxsim``.

    Returns
    -------
    torch.Tensor
        ``[A]``, as of ``colbert_fast.maxsim_pairwise``.
    """
    return _logged(ours.maxsim_pairwise, a, b, a_mask, b_mask, chunk_elements, length_normalize, device)


def mean_maxsim(
    a: Tokens,
    b: Tokens,
    a_mask: Mask | None = None,
    b_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = True,
    device: torch.device | str | None = None,
) -> Tensor:
    """Score with :func:`maxsim`, and divide by the number of the query's tokens unless told otherwise."""
    return maxsim(a, b, a_mask, b_mask, chunk_elements, length_normalize, device)


def mean_maxsim_pairwise(
    a: Tokens,
    b: Tokens,
    a_mask: Mask | None = None,
    b_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = True,
    device: torch.device | str | None = None,
) -> Tensor:
    """Score with :func:`maxsim_pairwise`, and divide by the number of the query's tokens unless told otherwise."""
    return maxsim_pairwise(a, b, a_mask, b_mask, chunk_elements, length_normalize, device)


def colbert_scores(
    queries_embeddings: Tokens,
    documents_embeddings: Tokens,
    queries_mask: Mask | None = None,
    documents_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
) -> Tensor:
    """Score every query against every document of every group: in-batch negatives with hard negatives.

    For ``MultiVectorMultipleNegativesRankingLoss`` and its cached form. All groups are scored in one call.

    Parameters
    ----------
    queries_embeddings
        ``[Q, tokens, dim]``, or any other form that ``colbert_fast.maxsim`` takes.
    documents_embeddings
        ``[D, N, tokens, dim]``: D groups of N documents. Documents in a form that ``colbert_fast.maxsim`` takes
        (a list of ``[length, dim]``, or ``[D, tokens, dim]``) are scored too, as groups of one document.
    queries_mask
        ``[Q, tokens]``, true or non-zero where a row is a token. Without it rows of zeros are padding.
    documents_mask
        ``[D, N, tokens]`` for groups, likewise.
    chunk_elements, length_normalize
        As in ``colbert_fast.maxsim``.

    Returns
    -------
    torch.Tensor
        ``[Q, D * N]``: the score of query i and document n of group j is at ``[i, j * N + n]``. float32 (float64 if
        either side is), on the device of the documents, differentiable. -1e9 for a document without tokens.

    Raises
    ------
    TypeError, ValueError
        As ``colbert_fast.maxsim``, whose ``a`` and ``b`` are the queries and the documents; also if the groups
        have different shapes, or the mask does not fit.
    """
    if _ndim(documents_embeddings) == 4:
        queries_embeddings = _stacked_if_equal(queries_embeddings, "queries_embeddings")
        groups = padded(documents_embeddings, "documents_embeddings", 4)
        mask = _stacked_if_equal(documents_mask, "documents_mask")
        documents_embeddings, documents_mask = flat_candidates(groups, mask)
    return maxsim(
        queries_embeddings, documents_embeddings, queries_mask, documents_mask, chunk_elements, length_normalize
    )


def colbert_scores_pairwise(
    queries_embeddings: Tokens,
    documents_embeddings: Tokens,
    queries_mask: Mask | None = None,
    documents_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
) -> Tensor:
    """Score query i against document i: for ``MultiVectorMarginMSELoss`` and ``MultiVectorDistillationEvaluator``.

    Arguments, errors and precision are as in ``colbert_fast.maxsim_pairwise``.

    Returns
    -------
    torch.Tensor
        ``[B]``, float32 (float64 if either side is), on the device of the documents. Differentiable.
    """
    return maxsim_pairwise(
        queries_embeddings, documents_embeddings, queries_mask, documents_mask, chunk_elements, length_normalize
    )


def colbert_kd_scores(
    queries_embeddings: Tokens,
    documents_embeddings: Tokens,
    queries_mask: Mask | None = None,
    documents_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
) -> Tensor:
    """Score each query against its own group of documents: for ``MultiVectorDistillKLDivLoss``.

    Parameters
    ----------
    queries_embeddings
        ``[B, tokens, dim]``, or any other form that ``colbert_fast.maxsim_pairwise`` takes.
    documents_embeddings
        ``[B, n_ways, tokens, dim]``: the documents of each query.
    queries_mask
        ``[B, tokens]``, true or non-zero where a row is a token. Without it rows of zeros are padding.
    documents_mask
        ``[B, n_ways, tokens]``, likewise.
    chunk_elements, length_normalize
        As in ``colbert_fast.maxsim``.

    Returns
    -------
    torch.Tensor
        ``[B, n_ways]``, float32 (float64 if either side is), on the device of the documents. Differentiable.

    Raises
    ------
    TypeError, ValueError
        As ``colbert_fast.maxsim_pairwise``, whose ``a`` and ``b`` are the queries and the documents; also if the
        documents are not ``[B, n_ways, tokens, dim]``, or the mask does not fit.
    """
    if (ndim := _ndim(documents_embeddings)) != 4:
        msg = (
            f"documents_embeddings must be [B, n_ways, tokens, dim], the documents of each query; got {ndim} dimensions"
        )
        raise ValueError(msg)
    queries = _stacked_if_equal(queries_embeddings, "queries_embeddings")
    documents = padded(documents_embeddings, "documents_embeddings", 4)
    mask = _stacked_if_equal(documents_mask, "documents_mask")
    return maxsim_pairwise(queries, documents, queries_mask, mask, chunk_elements, length_normalize)


def mean_colbert_scores(
    queries_embeddings: Tokens,
    documents_embeddings: Tokens,
    queries_mask: Mask | None = None,
    documents_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = True,
) -> Tensor:
    """Score with :func:`colbert_scores`, and divide by the number of the query's tokens unless told otherwise."""
    return colbert_scores(
        queries_embeddings, documents_embeddings, queries_mask, documents_mask, chunk_elements, length_normalize
    )


def mean_colbert_scores_pairwise(
    queries_embeddings: Tokens,
    documents_embeddings: Tokens,
    queries_mask: Mask | None = None,
    documents_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = True,
) -> Tensor:
    """Score with :func:`colbert_scores_pairwise`, and divide by the number of query tokens unless told otherwise."""
    return colbert_scores_pairwise(
        queries_embeddings, documents_embeddings, queries_mask, documents_mask, chunk_elements, length_normalize
    )


def mean_colbert_kd_scores(
    queries_embeddings: Tokens,
    documents_embeddings: Tokens,
    queries_mask: Mask | None = None,
    documents_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = True,
) -> Tensor:
    """Score with :func:`colbert_kd_scores`, and divide by the number of the query's tokens unless told otherwise."""
    return colbert_kd_scores(
        queries_embeddings, documents_embeddings, queries_mask, documents_mask, chunk_elements, length_normalize
    )


def _logged(score: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Score, and log that a document has no token. torch.compile cannot trace this, and then it is a warning."""
    if torch.compiler.is_compiling():
        return score(*arguments)
    token = _ops.tell_of_empty_document.set(_log_empty_document)
    try:
        return score(*arguments)
    finally:
        _ops.tell_of_empty_document.reset(token)


def _log_empty_document() -> None:
    logging.get_logger(_LOGGER).warning_once(_NO_TOKEN)


def _ndim(value: Any) -> int:
    """Return the number of dimensions, where a list counts as one."""
    depth = 0
    while isinstance(value, (list, tuple)) and len(value):
        value, depth = value[0], depth + 1
    return depth + int(getattr(value, "ndim", 0))


def _stacked_if_equal(value: Any, name: str) -> Any:
    """Stack a list of equal shapes. Rows of zeros in the tensor are then padding, as in the library."""
    if not isinstance(value, (list, tuple)) or not len(value):
        return value
    parts = [tensor_of(part, f"{name}[{i}]") for i, part in enumerate(value)]
    return torch.stack(parts) if all(part.shape == parts[0].shape for part in parts) else value
