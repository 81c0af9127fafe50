"""BM25 by bm25s, with English stop words and the Snowball stemmer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from colbert_fast.cli.notices import progress
from colbert_fast.cli.runs import Ranking


def search(queries: Sequence[str], documents: Sequence[str], k: int) -> list[Ranking]:
    """Find the k best documents of each query. Equal scores keep the order of the documents.

    Documents that share no word with the query have score 0 and come last, so that there are k results wherever there
    are k documents, as in exact search.
    """
    import bm25s
    import Stemmer

    shown = sys.stderr.isatty()
    stemmer = Stemmer.Stemmer("english")

    def words_of(texts: Sequence[str]) -> list[list[str]]:
        found: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=shown
        )
        return found

    corpus = words_of(documents)
    index = bm25s.BM25()
    if any(corpus):
        index.index(corpus, show_progress=shown)
    known = set().union(*corpus)
    rankings = []
    with progress(len(queries), "bm25: queries") as bar:
        for words in words_of(queries):
            words = [word for word in words if word in known]
            scores = index.get_scores(words) if words else np.zeros(len(documents), np.float32)
            rankings.append(_best(scores, k))
            bar.update()
    return rankings


def _best(scores: np.ndarray[Any, Any], k: int) -> Ranking:
    """Return the k best. bm25s itself leaves the order of equal scores open."""
    some = np.arange(len(scores))
    if k < len(scores):
        some = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    some = some[np.argsort(-scores[some], kind="stable")][:k]
    return list(zip(some.tolist(), scores[some].tolist(), strict=True))
