"""MaxSim over every layout, device and dtype: the public functions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from colbert_fast._arrays import Mask, aligned
from colbert_fast._backends.problem import CHUNK_ELEMENTS
from colbert_fast._forks import safe_after_fork
from colbert_fast._integers import Integers, check_range, integer_tensor, positive_int
from colbert_fast._lowering import flat_candidates
from colbert_fast._scoring import (
    Pad,
    checked_sides,
    number_of,
    score,
    token_counts,
)
from colbert_fast.packed import PackedTokens, Tokens


@safe_after_fork
def maxsim(
    a: Tokens,
    b: Tokens,
    a_mask: Mask | None = None,
    b_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: torch.device | str | None = None,
    *,
    pad: Pad = "skip",
    backend: str | None = None,
) -> Tensor:
    """Score every query against every document.

    ``scores[i, j] = sum_s max_t <a[i][s], b[j][t]>`` (ColBERT, Khattab & Zaharia 2020, equation 3).
    ``sentence_transformers.util.maxsim`` takes the same arguments and gives the same scores.

    Parameters
    ----------
    a
        Queries. A list of ``[length, dim]`` tensors or arrays; a padded ``[A, length, dim]`` tensor or array; one
        ``[length, dim]``; a jagged nested tensor; or :class:`PackedTokens`. float32, bfloat16, float16, float64;
        integers become float32.
    b
        Documents, in any of these forms and dtypes, with the dim of ``a``; or int8 :class:`PackedTokens`, made by
        ``quantize``. The dtype may differ from the dtype of ``a``. A list in CPU memory is scored where it lies.
    a_mask
        ``[A, length]``, ``[1, length]`` or a list of 1-D masks: true or non-zero where a row is a token.
        Other rows are left out of the sum. Without a mask, rows of zeros of a padded ``a`` are padding.
    b_mask
        The same for documents: other rows are left out of the maximum.
    chunk_elements
        The most elements of an intermediate, where a backend has one, and of the documents that are moved to
        ``device`` at a time. Default 2**24.
    length_normalize
        Divide by the number of the query's tokens, or by 1 if it has none (MeanMaxSim): scores of unit vectors then
        lie between -1 and 1. Rows of zeros of a padded ``a`` without a mask are no tokens.
    device
        The device to score on. The documents are moved there in pieces. Default: the device of the documents.
    pad
        What rows of zeros are in a padded ``b`` without a mask. ``"skip"``: padding, which never scores, as in
        sentence-transformers. ``"zero"``: tokens, so that a document with such a row scores at least 0 for each query
        token, as in neural-cherche, PyLate and colpali-engine. Every row of a list or of :class:`PackedTokens` is a
        token either way; in a padded ``a`` a row of zeros adds 0 to the sum either way.
    backend
        A name of :func:`backends`, or the part before its colon. Default: the best that can run.

    Returns
    -------
    torch.Tensor
        ``[A, B]`` on the device of the documents (of the queries, if the documents are numpy arrays): float32, or
        float64 if either side is. -1e9 for a document without tokens, else 0 for a query without tokens, NaN if
        either has a NaN in a token. Differentiable in ``a``, and in ``b`` unless that is int8.

    Raises
    ------
    TypeError
        An input of an unknown kind or dtype.
    ValueError
        Shapes that do not fit, an unknown backend or ``pad``, or ``pad="zero"`` beside ``b_mask``.
    NotImplementedError
        The backend cannot run; the message says why.

    Notes
    -----
    Products and sums are in float32 at least: within 1e-5 of float64 on the inputs as given, for every dtype and dim.
    Two sides of different dtypes are scored as given: the documents are not copied, and each side gets its gradient
    in its own dtype. int8 documents stand for ``scale * token``. Where products cancel, the error is relative to the
    sum over query tokens of (sum over dimensions of ``|products|`` with the winning document token), as for every
    float32 library. Deterministic: the same inputs give the same bits on any number of threads.
    """
    q, d, skip_zero, home = checked_sides(a, b, a_mask, b_mask, pad, device, move_documents=False)
    chunk_elements = CHUNK_ELEMENTS if chunk_elements is None else positive_int(chunk_elements, "chunk_elements")
    target = q._like.device
    if d._like.device == target:
        scores = score(q, d, None, skip_zero, chunk_elements, backend)
    else:
        parts = parts_of(d, chunk_elements)
        moved = (score(q, part.to(target), None, skip_zero, chunk_elements, backend).to(home) for part in parts)
        scores = torch.cat(list(moved), dim=1)
    if length_normalize:
        scores = scores / token_counts(q, skip_zero[0]).to(scores.device).unsqueeze(1)
    return scores


@safe_after_fork
def maxsim_pairwise(
    a: Tokens,
    b: Tokens,
    a_mask: Mask | None = None,
    b_mask: Mask | None = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: torch.device | str | None = None,
    *,
    pad: Pad = "skip",
    backend: str | None = None,
) -> Tensor:
    """Score query i against document i, or against its own candidates.

    ``scores[i] = sum_s max_t <a[i][s], b[i][t]>``, or ``scores[i, n] = sum_s max_t <a[i][s], b[i, n, t]>``.
    Arguments, errors and precision are as in :func:`maxsim`, except as follows.
    ``sentence_transformers.util.maxsim_pairwise`` takes the same arguments, but no candidates.

    Parameters
    ----------
    b
        As many documents as ``a`` has queries. Or N candidates for each of B queries, a padded
        ``[B, N, length, dim]`` tensor or array, as in distillation and reranking.
    b_mask
        For candidates: ``[B, N, length]``, where B and N may be 1 for a mask that is the same everywhere.

    Returns
    -------
    torch.Tensor
        ``[A]``, or ``[B, N]`` for candidates, float32 (float64 if either side is) on the device of the documents.
        Differentiable.

    Raises
    ------
    ValueError
        As :func:`maxsim`; also if ``a`` does not hold as many queries as ``b`` has documents or groups of candidates.

    Notes
    -----
    With ``pad="zero"`` this is the score of the padded embeddings that ``models.ColBERT.encode`` returns, as its
    ``scores`` computes it.
    """
    shape = None
    # The compiler of torch 2.4 cannot ask with a default whether a tensor has a name.
    dims = b.ndim if isinstance(b, torch.Tensor) else getattr(b, "ndim", 0)
    if dims == 4 and not (isinstance(b, torch.Tensor) and b.is_nested):
        shape = b.shape[:2]  # type: ignore[union-attr]
        b, b_mask = flat_candidates(b, b_mask)
    q, d, skip_zero, home = checked_sides(a, b, a_mask, b_mask, pad, device)
    count = number_of(q)
    given = number_of(d) if shape is None else shape[0]
    if count != given:
        msg = f"a and b must hold the same number of items to be scored in pairs; got {count} and {given}"
        raise ValueError(msg)
    number = torch.arange(count, device=q._like.device)
    if shape is None:
        pairs = torch.stack([number, number], dim=1)
    else:
        query = number.unsqueeze(1).expand(shape).reshape(-1)
        pairs = torch.stack([query, torch.arange(number_of(d), device=query.device)], dim=1)
    chunk_elements = CHUNK_ELEMENTS if chunk_elements is None else positive_int(chunk_elements, "chunk_elements")
    scores = score(q, d, pairs, skip_zero, chunk_elements, backend).to(home)
    counts = token_counts(q, skip_zero[0]).to(home) if length_normalize else None
    if shape is not None:
        scores = scores.view(shape)
        counts = None if counts is None else counts.unsqueeze(1)
    return scores if counts is None else scores / counts


@safe_after_fork
def maxsim_pairs(
    a: Tokens,
    b: Tokens,
    pairs: Integers,
    *,
    length_normalize: bool = False,
    pad: Pad = "skip",
    backend: str | None = None,
) -> Tensor:
    """Score any list of (query, document) pairs: candidates to rerank, distillation groups, hard negatives.

    ``scores[k] = sum_s max_t <a[i][s], b[j][t]>`` with ``(i, j) = pairs[k]``.

    Parameters
    ----------
    a
        Queries, in any form that :func:`maxsim` takes.
    b
        Documents, likewise.
    pairs
        ``[p, 2]`` integers: the number of a query and the number of a document. In any order; repetition is allowed.
        If the pairs are on a GPU, checking them waits for the GPU once, except under ``torch.compile``. If they are
        not, copying them to a GPU waits.
    length_normalize, pad, backend
        As in :func:`maxsim`.

    Returns
    -------
    torch.Tensor
        ``[p]``, float32 (float64 if either side is) on the device of the documents. Differentiable.

    Raises
    ------
    TypeError
        As :func:`maxsim`; also if ``pairs`` does not hold integers.
    ValueError
        As :func:`maxsim`; also if ``pairs`` is not ``[p, 2]``, or names a query or document that is not there.
    """
    q, d, skip_zero, home = checked_sides(a, b, pad=pad)
    checked = checked_pairs(pairs, number_of(q), number_of(d)).to(home)
    scores = score(q, d, checked, skip_zero, CHUNK_ELEMENTS, backend)
    if length_normalize:
        scores = scores / token_counts(q, skip_zero[0])[checked[:, 0]]
    return scores


def parts_of(d: PackedTokens, chunk_elements: int) -> Iterator[PackedTokens]:
    """Cut documents into parts of about ``chunk_elements`` elements. Each part holds only the rows of its items."""
    first, rows = 0, 0
    lengths = d.lengths.tolist()
    for i, length in enumerate([*lengths, 0]):
        if i < len(lengths) and (i == first or (rows + length) * d.dim <= chunk_elements):
            rows += length
            continue
        yield d._cut(d.starts[first:i], d.lengths[first:i])._own(wait=True)
        first, rows = i, length


def checked_pairs(pairs: Integers, nq: int, nd: int) -> Tensor:
    tensor = integer_tensor(pairs, "pairs")
    if tensor.numel() == 0 and tensor.ndim <= 2:
        tensor = tensor.reshape(0, 2)
    if tensor.ndim != 2 or tensor.shape[1] != 2:
        msg = f"pairs must be [p, 2], (query, document) numbers; got shape {list(tensor.shape)}"
        raise ValueError(msg)
    if not torch.compiler.is_compiling():
        check_range(tensor, {"queries": nq, "documents": nd}, "pairs")
    return aligned(tensor.contiguous())
