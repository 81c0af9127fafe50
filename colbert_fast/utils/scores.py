"""The scores of training triples: queries with their positive and their negative documents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from colbert_fast._maxsim import maxsim_pairs
from colbert_fast._warnings import warn_caller
from colbert_fast.packed import Tokens


def colbert_scores(
    anchor_embeddings: Tokens,
    positive_embeddings: Tokens,
    negative_embeddings: Tokens,
    in_batch_negatives: bool = False,
) -> dict[str, Tensor]:
    """Score each query with its positive and its negative document.

    `score = sum over query tokens i of max over document tokens j of <q_i, d_j>`. neural-cherche's
    `utils.colbert_scores` takes the same arguments and gives the same numbers: a row of zeros of a padded document is
    a token, whose similarity is 0. A row of zeros of a padded query adds 0 to the score, and gets no gradient here.
    (neural-cherche gives it one, which the encoder then multiplies by 0.)

    Parameters
    ----------
    anchor_embeddings
        n queries, padded as [n, length, dim], or in any other form that `colbert_fast.maxsim` takes, such as
        `PackedTokens`. One query stands for as many queries as there are documents.
    positive_embeddings, negative_embeddings
        The positive and the negative document of each query, n documents each.
    in_batch_negatives
        Whether the positive document of the query before it, or of the last query for the first one, is another
        negative document of each query.

    Returns
    -------
    dict
        "positive_scores": [n]. "negative_scores": [n], or [n, 2] with `in_batch_negatives`, where the second column
        has the scores of the other queries' positive documents. float32, or float64 from float64 embeddings, on the
        device of the documents. Differentiable in all three arguments; the similarities of the tokens are not kept
        for the gradients.

    Raises
    ------
    TypeError
        Embeddings of an unknown kind or dtype, or `in_batch_negatives` is no bool.
    ValueError
        The numbers of queries and documents do not fit, there are none, or the dims differ.

    Warns
    -----
    UserWarning
        With `in_batch_negatives` and one positive document, which is its own negative document.
    """
    counts = _counts(anchor_embeddings, positive_embeddings, negative_embeddings)
    check_triples(counts, in_batch_negatives)
    n_anchors, n = counts["anchor_embeddings"], counts["positive_embeddings"]
    own = torch.arange(n)
    query = own if n_anchors == n else torch.zeros_like(own)
    pairs = torch.stack([query, own], dim=1)
    with _naming("negative_embeddings"):
        negative_scores = maxsim_pairs(anchor_embeddings, negative_embeddings, pairs, pad="zero")
    if not in_batch_negatives:
        with _naming("positive_embeddings"):
            positive_scores = maxsim_pairs(anchor_embeddings, positive_embeddings, pairs, pad="zero")
        return {"positive_scores": positive_scores, "negative_scores": negative_scores}
    if n == 1:
        warn_caller("in_batch_negatives needs at least two triples: here the only positive is its own negative")
    both = torch.cat([pairs, torch.stack([query, own.roll(1)], dim=1)])
    with _naming("positive_embeddings"):
        positive_scores, others = maxsim_pairs(anchor_embeddings, positive_embeddings, both, pad="zero").view(2, n)
    return {"positive_scores": positive_scores, "negative_scores": torch.stack([negative_scores, others], dim=1)}


def check_triples(counts: dict[str, int], in_batch_negatives: Any) -> None:
    """Raise ValueError unless there are one or n queries, n positive and n negative documents, with n at least 1.

    `counts` holds the three numbers under the names of the arguments, in this order. If `in_batch_negatives` is no
    bool, this raises TypeError.
    """
    if not isinstance(in_batch_negatives, bool):
        msg = f"in_batch_negatives must be True or False; got {in_batch_negatives!r}"
        raise TypeError(msg)
    anchors, positives, negatives = counts.values()
    if not positives or positives != negatives or anchors not in (1, positives):
        names = list(counts)
        msg = (
            f"{names[0]}, {names[1]} and {names[2]} must hold the same number of items, at least one "
            f"(one query may stand for n); got {anchors}, {positives} and {negatives}"
        )
        raise ValueError(msg)


@contextmanager
def _naming(b: str) -> Iterator[None]:
    """Say in an error of `maxsim_pairs` which arguments its a and its b are."""
    try:
        yield
    except (TypeError, ValueError) as error:
        msg = f"{error} (a is anchor_embeddings, b is {b})"
        raise type(error)(msg) from None


def _counts(anchors: Any, positives: Any, negatives: Any) -> dict[str, int]:
    """Return the number of items of each argument. One [length, dim] tensor is one item, as in `maxsim`."""
    counts = {}
    sides = {"anchor_embeddings": anchors, "positive_embeddings": positives, "negative_embeddings": negatives}
    for name, side in sides.items():
        try:
            counts[name] = 1 if getattr(side, "ndim", 3) == 2 else len(side)
        except TypeError:
            msg = f"{name} must be a [n, length, dim] tensor, PackedTokens or a list; got {type(side).__name__}"
            raise TypeError(msg) from None
    return counts
