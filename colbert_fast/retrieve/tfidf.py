"""`retrieve.TfIdf`: search by the cosine of TF-IDF vectors."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from colbert_fast._extras import need
from colbert_fast._integers import positive_int
from colbert_fast.retrieve.vectorizers import plain
from colbert_fast.utils.batches import batchify
from colbert_fast.utils.documents import checked_fields, checked_list, texts_by_key
from colbert_fast.utils.duplicates import QueryDict, queries_of

if TYPE_CHECKING:
    from typing_extensions import Self

need("colbert_fast.retrieve.TfIdf", "retrieval", {"scikit-learn": "1.1"})

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer


class TfIdf:
    """Search by the cosine of TF-IDF vectors; a drop-in for neural-cherche's `retrieve.TfIdf`.

    scikit-learn's `TfidfVectorizer` makes the vectors, of length 1, over character n-grams.

    Parameters
    ----------
    key
        The field that identifies a document.
    on
        The field or the fields of a document's text. Several fields are joined by spaces. A document may lack some.
    tfidf
        A vectorizer with the methods `fit_transform(raw_documents=)` and `transform(raw_documents=)`, such as the
        `TfidfVectorizer` of scikit-learn and of lenlp. None: 3 to 5 characters of the text without case, accents and
        punctuation.
    fit
        Whether the first `encode_documents` fits the vectorizer. False: it is fitted already.

    Attributes
    ----------
    documents
        The documents that were added, each as a dict with the field `key`, in their order.
    n_documents
        The number of these documents.

    Raises
    ------
    TypeError, ValueError
        `key` or `on` are no names of fields, or the vectorizer lacks a method.
    ImportError
        scikit-learn is missing, when this class is first looked up.
    """

    def __init__(self, key: str, on: str | Sequence[str], tfidf: Any = None, fit: bool = True) -> None:
        self.key: str
        self.on: list[str]
        self.key, self.on = checked_fields(key, on)
        if tfidf is None:
            tfidf = TfidfVectorizer(analyzer="char", ngram_range=(3, 5), preprocessor=plain, dtype=np.float32)
        for name in ("fit_transform", "transform"):
            if not callable(getattr(tfidf, name, None)):
                msg = f"the vectorizer must have a method {name}(raw_documents=); got {type(tfidf).__name__}"
                raise TypeError(msg)
        self.vectorizer: Any = tfidf
        self.fit: bool = fit
        self.documents: list[dict[str, Hashable]] = []
        self.n_documents: int = 0
        self._added: set[Hashable] = set()
        # The vectors of the documents, as they were added. `matrix` makes one matrix of them when it is needed.
        self._rows: list[csr_matrix] = []
        self._matrix: csr_matrix | None = None

    def encode_documents(self, documents: Iterable[Mapping[str, Any]]) -> dict[Any, csr_matrix]:
        """Turn documents into sparse vectors. The first call fits the vectorizer, if `fit` is True.

        Parameters
        ----------
        documents
            Dicts with the fields `key` and `on`. Two documents with one key must have the same text.

        Returns
        -------
        dict
            For each document, by its key: a row [1, features] of the vectorizer's dtype, by default float32.

        Raises
        ------
        TypeError, ValueError
            Not a list of dicts; a field that is not a str; a key with two texts; no document has a field of `on`; or
            documents without any n-gram to fit to.
        """
        texts = texts_by_key(documents, self.key, self.on, optional=True)
        if not texts:
            return {}
        encode = self.vectorizer.fit_transform if self.fit else self._transform
        matrix = csr_matrix(encode(raw_documents=list(texts.values())))
        self.fit = False
        return {key: matrix[number] for number, key in enumerate(texts)}

    def encode_queries(self, queries: Iterable[str], warn_duplicates: bool = True) -> dict[str, csr_matrix]:
        """Turn queries into sparse vectors.

        Parameters
        ----------
        queries
            n texts.
        warn_duplicates
            Kept for compatibility. There is nothing to warn of: a repeated query gets its result as often as it was
            given.

        Returns
        -------
        dict
            For each text: a row [1, features], as from `encode_documents`. It remembers the order of the queries.

        Raises
        ------
        TypeError, ValueError
            Not a list of str; or the vectorizer is not fitted yet.
        """
        texts = checked_list("queries", queries, str, "str")
        if self.fit:
            msg = "the vectorizer is not fitted: call encode_documents first"
            raise ValueError(msg)
        matrix = csr_matrix(self._transform(raw_documents=texts)) if texts else None
        return QueryDict(texts, [] if matrix is None else [matrix[number] for number in range(len(texts))])

    def add(self, documents_embeddings: Mapping[Any, csr_matrix]) -> Self:
        """Add documents to search, and return the retriever. A document that was added before stays as it is.

        Parameters
        ----------
        documents_embeddings
            What `encode_documents` gave.

        Raises
        ------
        TypeError, ValueError
            Not a mapping, or rows of another vectorizer.
        """
        if not isinstance(documents_embeddings, Mapping):
            msg = f"documents_embeddings must be a dict of rows; got {type(documents_embeddings).__name__}"
            raise TypeError(msg)
        new = {key: row for key, row in documents_embeddings.items() if key not in self._added}
        self._check_rows(new)
        if new:
            self._rows += new.values()
            self._added |= new.keys()
            self.documents += [{self.key: key} for key in new]
            self.n_documents = len(self.documents)
            self._matrix = None
        return self

    def __call__(
        self,
        queries_embeddings: Mapping[str, csr_matrix],
        k: int | None = None,
        batch_size: int = 2000,
        tqdm_bar: bool = True,
    ) -> list[list[dict[str, Any]]]:
        """Find the documents with the highest scores for each query. Documents with the score 0 are left out.

        Parameters
        ----------
        queries_embeddings
            What `encode_queries` gave. Repeated queries have a result each.
        k
            Largest number of documents to return for each query. None: all that have a score above 0.
        batch_size
            Number of queries that are scored at once. It changes the memory that is needed, and no score.
        tqdm_bar
            Whether to show a progress bar.

        Returns
        -------
        list of list of dict
            For each query the documents, best first: the key of each, and its score as "similarity". Documents with
            equal scores have the order in which they were added.

        Raises
        ------
        TypeError, ValueError
            Not a mapping; rows of another vectorizer; or `k` or `batch_size` is not an int of 1 or more.
        """
        most = self.n_documents if k is None else positive_int(k, "k")
        if not isinstance(queries_embeddings, Mapping):
            msg = f"queries_embeddings must be a dict of rows; got {type(queries_embeddings).__name__}"
            raise TypeError(msg)
        self._check_rows(queries_embeddings)
        queries = queries_of(queries_embeddings)
        found: list[list[dict[str, Any]]] = []
        for batch in batchify(queries, batch_size, f"{type(self).__name__} retriever", tqdm_bar):
            if not self.documents:
                found += [[] for _ in batch]
                continue
            scores = csr_matrix(vstack([queries_embeddings[query] for query in batch]) @ self.matrix)
            found += [self._best(scores[number], most) for number in range(len(batch))]
        return found

    @property
    def matrix(self) -> csr_matrix | None:
        """The vectors of the documents that were added, [features, documents]. None: no document was added."""
        if self._matrix is None and self._rows:
            self._rows = [csr_matrix(vstack(self._rows))]
            self._matrix = self._weighted(self._rows[0]).T.tocsr()
        return self._matrix

    def _weighted(self, rows: csr_matrix) -> csr_matrix:
        """Return the weights that a query's vector is multiplied with."""
        return rows

    def _best(self, scores: csr_matrix, most: int) -> list[dict[str, Any]]:
        order = np.lexsort((scores.indices, -scores.data))[:most]
        return [
            {**self.documents[scores.indices[place]], "similarity": float(scores.data[place])}
            for place in order
            if scores.data[place] > 0
        ]

    def _transform(self, raw_documents: list[str]) -> Any:
        try:
            return self.vectorizer.transform(raw_documents=raw_documents)
        except NotFittedError:
            msg = "fit=False needs a vectorizer that is fitted; this one is not"
            raise ValueError(msg) from None

    def _check_rows(self, rows: Mapping[Any, Any]) -> None:
        """Raise unless all rows, and the documents that were added, are of one vectorizer."""
        width = self._rows[0].shape[1] if self._rows else None
        for key, row in rows.items():
            if getattr(row, "ndim", 0) != 2 or row.shape[0] != 1:
                msg = f"the vector of {key!r} must be a sparse row [1, features]; got {type(row).__name__}"
                raise TypeError(msg)
            width = row.shape[1] if width is None else width
            if row.shape[1] != width:
                msg = (
                    f"all vectors must be of one fitted vectorizer; the vector of {key!r} has {row.shape[1]} features "
                    f"and the vectors before it have {width}"
                )
                raise ValueError(msg)
