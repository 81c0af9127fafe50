"""`retrieve.BM25`: search by BM25."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from colbert_fast._extras import need
from colbert_fast.retrieve.vectorizers import plain

need("colbert_fast.retrieve.BM25", "retrieval", {"scikit-learn": "1.1"})

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from colbert_fast.retrieve.tfidf import TfIdf


class BM25(TfIdf):
    """Search by BM25 over character n-grams; a drop-in for neural-cherche's `retrieve.BM25`.

    The score of a document d for a query q is a sum over the terms t of q, where f(t, x) says how often t is in x:

        f(t, q) * idf(t) * (f(t, d) * (k1 + 1) / (f(t, d) + k1 * (1 - b + b * |d| / average |d|)) + epsilon)
        idf(t) = log(1 + (N - n(t) + 0.5) / (n(t) + 0.5))

    n(t) of the N documents have the term t (Robertson and Zaragoza, 2009; the idf is Lucene's). N, n(t) and the average
    length count all documents that were added.

    Parameters
    ----------
    key, on, fit
        As for `TfIdf`.
    count_vectorizer
        A vectorizer with the methods `fit_transform(raw_documents=)` and `transform(raw_documents=)` that counts terms,
        such as the `CountVectorizer` of scikit-learn and of lenlp. None: 3 to 5 characters inside words, of the text
        without case, accents and punctuation.
    b
        How much longer documents are penalized, from 0 to 1.
    k1
        How slowly the weight of a repeated term saturates, 0 or more.
    epsilon
        Added to the weight of every term that a document has, 0 or more.

    Raises
    ------
    TypeError, ValueError
        As for `TfIdf`; or `b`, `k1` or `epsilon` is no number, or out of its range.
    """

    def __init__(
        self,
        key: str,
        on: str | Sequence[str],
        count_vectorizer: Any = None,
        b: float = 0.75,
        k1: float = 1.5,
        epsilon: float = 0,
        fit: bool = True,
    ) -> None:
        if count_vectorizer is None:
            count_vectorizer = CountVectorizer(
                analyzer="char_wb", ngram_range=(3, 5), preprocessor=plain, dtype=np.float32
            )
        super().__init__(key, on, count_vectorizer, fit)
        for name, value in {"b": b, "k1": k1, "epsilon": epsilon}.items():
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf") or (name == "b" and value > 1):
                msg = f"{name} must be a number {'from 0 to 1' if name == 'b' else 'of 0 or more'}; got {value!r}"
                raise ValueError(msg)
        self.b = b
        self.k1 = k1
        self.epsilon = epsilon

    def add(self, documents_embeddings: Mapping[Any, csr_matrix]) -> BM25:
        """Add documents to search, and return the retriever. A document that was added before stays as it is."""
        super().add(documents_embeddings)
        return self

    def _weighted(self, rows: csr_matrix) -> csr_matrix:
        rows = rows.astype(np.float32)
        rows.eliminate_zeros()
        found_in = np.bincount(rows.indices, minlength=rows.shape[1])
        idf = np.log1p((rows.shape[0] - found_in + 0.5) / (found_in + 0.5))
        sizes = np.asarray(rows.sum(axis=1)).ravel()
        lengths = self.k1 * (1 - self.b + self.b * sizes / (sizes.mean() or 1.0))
        slope = np.repeat(lengths, np.diff(rows.indptr))
        weights = rows.data * (self.k1 + 1) / (rows.data + slope) + self.epsilon
        rows.data = (weights * idf[rows.indices]).astype(np.float32)
        return rows
