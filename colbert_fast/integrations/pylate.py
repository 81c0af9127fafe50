"""PyLate's scoring functions, with its names, arguments and padding: `from colbert_fast.integrations import pylate`.

They need no PyLate. In PyLate a masked token, and a row of zeros, has the similarity 0 and may win with it, so that a
document with such a row scores at least 0 for each query token. That is so here too. One thing differs: scores of
half-precision embeddings are float32, and are not rounded to half precision.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from colbert_fast._arrays import Mask
from colbert_fast._extras import need
from colbert_fast._maxsim import maxsim, maxsim_pairwise
from colbert_fast.integrations._padding import (
    in_pairs,
    matrices,
    padded,
    pieces_times_mask,
    times_mask,
    wants_gradient,
    with_row_of_zeros,
)
from colbert_fast.integrations._patching import Patch, means_automatic, unless_named
from colbert_fast.packed import Tokens

__all__ = ["ColBERTScores", "colbert_kd_scores", "colbert_scores", "colbert_scores_pairwise", "patched", "rerank"]


def colbert_scores(
    queries_embeddings: Tokens,
    documents_embeddings: Tokens,
    queries_mask: Mask | None = None,
    documents_mask: Mask | None = None,
    backend: str | None = None,
) -> Tensor:
    """Score every query against every document, as ``pylate.scores.colbert_scores``.

    Parameters
    ----------
    queries_embeddings
        ``[A, length, dim]`` tensor or array, or a list of ``[length, dim]``. Without masks, also anything
        else that ``cf.maxsim`` takes, such as lists whose items differ in length.
    documents_embeddings
        The same for B documents.
    queries_mask
        ``[A, length]``, bool or numbers: each similarity is multiplied by its query token's entry.
    documents_mask
        ``[B, length]``, bool or numbers: each similarity is multiplied by its document token's entry. So a masked token
        has the similarity 0, and wins where the other similarities are negative. A NaN in a masked token reaches
        the scores, as in PyLate.
    backend
        None or ``"auto"``: the best of this package that can run. Otherwise a name of ``cf.backends()``.

    Returns
    -------
    torch.Tensor
        ``[A, B]`` on the device of the documents: float32, or float64 if either side is. Differentiable.

    Raises
    ------
    TypeError, ValueError
        As ``cf.maxsim``; also ValueError for a mask that does not fit, and for the backends of PyLate.
    """
    if queries_mask is not None:
        queries = padded(queries_embeddings, "queries_embeddings", 3)
        queries_embeddings = times_mask(queries, queries_mask, "queries_mask")
    if documents_mask is not None:
        documents = padded(documents_embeddings, "documents_embeddings", 3)
        differentiable = wants_gradient(queries_embeddings, documents, queries_mask, documents_mask)
        pieces = pieces_times_mask(documents, documents_mask, "documents_mask", differentiable=differentiable)
        found = [maxsim(queries_embeddings, piece, pad="zero", backend=_backend(backend)) for piece in pieces]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)
    return maxsim(queries_embeddings, documents_embeddings, pad="zero", backend=_backend(backend))


def colbert_scores_pairwise(
    queries_embeddings: Tokens, documents_embeddings: Tokens, backend: str | None = None
) -> Tensor:
    """Score query i against document i, as ``pylate.scores.colbert_scores_pairwise``: one call instead of a loop.

    Arguments are as in :func:`colbert_scores`. Lists may hold items of any length.

    Returns
    -------
    torch.Tensor
        ``[A]``, float32 (float64 if either side is) on the device of the documents. Differentiable.

    Raises
    ------
    ValueError
        As :func:`colbert_scores`; also if there are not equally many queries and documents. PyLate leaves out
        queries or documents that have no partner.
    """
    return maxsim_pairwise(queries_embeddings, documents_embeddings, pad="zero", backend=_backend(backend))


def colbert_kd_scores(
    queries_embeddings: Any,
    documents_embeddings: Any,
    queries_mask: Mask | None = None,
    documents_mask: Mask | None = None,
    backend: str | None = None,
) -> Tensor:
    """Score each query against its own candidates, as ``pylate.scores.colbert_kd_scores``, for distillation.

    Parameters
    ----------
    queries_embeddings
        ``[A, length, dim]`` tensor or array, or a list of A matrices of one shape.
    documents_embeddings
        ``[A, n, length, dim]``: the n candidates of each query. One side may hold a single item, which then goes with
        every item of the other side.
    queries_mask, documents_mask
        ``[A, length]`` and ``[A, n, length]``, with the meaning that they have in :func:`colbert_scores`.
    backend
        As in :func:`colbert_scores`.

    Returns
    -------
    torch.Tensor
        ``[A, n]``, float32 (float64 if either side is) on the device of the documents. Differentiable.

    Raises
    ------
    TypeError, ValueError
        As :func:`colbert_scores`.
    """
    queries = padded(queries_embeddings, "queries_embeddings", 3)
    documents = padded(documents_embeddings, "documents_embeddings", 4)
    queries, documents = _masked(*in_pairs(queries, documents), queries_mask, documents_mask)
    return maxsim_pairwise(queries, documents, pad="zero", backend=_backend(backend))


class ColBERTScores:
    """Score every query against the documents of all queries, as ``pylate.scores.ColBERTScores``.

    It is the default ``score_metric`` of PyLate's contrastive losses: ``losses.Contrastive(model, ColBERTScores())``.
    """

    def __call__(
        self,
        queries_embeddings: Any,
        documents_embeddings: Any,
        queries_mask: Mask | None = None,
        documents_mask: Mask | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Score queries ``[A, length, dim]`` against documents ``[D, n, length, dim]`` in one call.

        Masks and the backend are as in :func:`colbert_kd_scores`. Returns ``[A, D * n]``: column ``j * n + k`` has the
        scores of document k of group j.
        """
        queries = padded(queries_embeddings, "queries_embeddings", 3)
        documents = padded(documents_embeddings, "documents_embeddings", 4)
        queries, documents = _masked(queries, documents, queries_mask, documents_mask)
        return maxsim(queries, documents.flatten(0, 1), pad="zero", backend=_backend(backend))


def rerank(
    documents_ids: Sequence[Sequence[Any]],
    queries_embeddings: Any,
    documents_embeddings: Sequence[Any],
    device: torch.device | str | None = None,
) -> list[list[dict[str, Any]]]:
    """Sort the candidates of each query by their score, as ``pylate.rank.rerank``.

    Parameters
    ----------
    documents_ids
        For each query, the ids of its candidates.
    queries_embeddings
        For each query ``[length, dim]``: a list of tensors or arrays, or ``[A, length, dim]``; or one query alone.
    documents_embeddings
        For each query, its candidates: a list of ``[length, dim]``, or ``[n, length, dim]``. A query may have no
        candidates, where PyLate raises an error. A candidate that is shorter than the longest one of the same query
        scores at least 0 for each query token, because PyLate pads it with zeros.
    device
        The device to score on. Default: the device of the query.

    Returns
    -------
    list of list of dict
        For each query ``[{"id": ..., "score": ...}, ...]``, the best first; among equal scores in the order given.

    Raises
    ------
    TypeError, ValueError
        As ``cf.maxsim``; also ValueError if the three do not hold equally many queries, or if a query has
        more or fewer ids than candidates.
    """
    queries = [queries_embeddings] if getattr(queries_embeddings, "ndim", 0) == 2 else queries_embeddings
    queries = matrices(queries, "queries_embeddings")
    counts = len(queries), len(documents_ids), len(documents_embeddings)
    if len(set(counts)) > 1:
        msg = (
            "queries_embeddings, documents_ids and documents_embeddings must hold one entry for each query; "
            f"got {counts[0]}, {counts[1]} and {counts[2]}"
        )
        raise ValueError(msg)
    found = []
    for i, (query, ids, documents) in enumerate(zip(queries, documents_ids, documents_embeddings, strict=True)):
        candidates = matrices(documents, f"documents_embeddings[{i}]")
        if len(ids) != len(candidates):
            msg = f"documents_ids[{i}] must hold one id for each candidate; got {len(ids)} for {len(candidates)}"
            raise ValueError(msg)
        found.append(_ranked(ids, query if device is None else query.to(device), candidates))
    return found


def _ranked(ids: Sequence[Any], query: Tensor, candidates: list[Tensor]) -> list[dict[str, Any]]:
    if not candidates:
        return []
    with torch.no_grad():
        scores = maxsim([query], with_row_of_zeros(candidates), device=query.device)[0]
        best, order = torch.sort(scores, descending=True, stable=True)
    return [{"id": ids[i], "score": score} for i, score in zip(order.tolist(), best.tolist(), strict=True)]


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Let PyLate score with this package inside of a `with` block, or in a function with ``@patched()`` above it.

    ``pylate.scores.colbert_scores``, ``colbert_scores_pairwise``, ``colbert_kd_scores``, ``ColBERTScores`` and
    ``pylate.rank.rerank`` become the functions of this module, wherever a loaded module, a class, a default argument, a
    model or a loss refers to them. Where a backend of PyLate is named, with ``backend=`` or with the environment
    variable ``PYLATE_SCORES_BACKEND``, PyLate's own function runs as before: ``"auto"`` alone means this package.

    Blocks may nest. The end of the outermost block, also by an exception, puts everything back. The patch holds for
    the whole process, so other threads see it too. To enter and to leave takes some tenths of a second: put the block
    around a program's main part, not around every call.

    Raises
    ------
    ImportError
        PyLate is not installed, or is older than 1.6.
    """
    need("colbert_fast.integrations.pylate.patched()", None, {"pylate": "1.6"})
    with _PATCH.active():
        yield


def _masked(queries: Tensor, documents: Tensor, queries_mask: Any, documents_mask: Any) -> tuple[Tensor, Tensor]:
    if queries_mask is not None:
        queries = times_mask(queries, queries_mask, "queries_mask")
    if documents_mask is not None:
        documents = times_mask(documents, documents_mask, "documents_mask")
    return queries, documents


def _backend(backend: str | None) -> str | None:
    """Return the name of a backend of this package, or None for the best. PyLate takes names in any case."""
    if backend is None or means_automatic(backend):
        return None
    if isinstance(backend, str) and backend.lower() in ("flash", "lik"):
        msg = f"backend={backend!r} is one of PyLate: call pylate.scores for it, or name one of colbert_fast.backends()"
        raise ValueError(msg)
    return backend


def _replacements() -> dict[Callable[..., Any], Callable[..., Any]]:
    scores = importlib.import_module("pylate.scores.colbert")
    ranking = importlib.import_module("pylate.rank.rank")
    ours: dict[Callable[..., Any], Callable[..., Any]] = {
        scores.colbert_scores: colbert_scores,
        scores.colbert_scores_pairwise: colbert_scores_pairwise,
        scores.colbert_kd_scores: colbert_kd_scores,
        vars(scores.ColBERTScores)["__call__"]: ColBERTScores.__call__,
        ranking.rerank: rerank,
    }
    return {theirs: unless_named(theirs, our, "PYLATE_SCORES_BACKEND") for theirs, our in ours.items()}


_PATCH = Patch(_replacements)
