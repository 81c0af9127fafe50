"""`retrieve.ColBERT`: exact search by MaxSim over all documents that were added."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from colbert_fast import rank
from colbert_fast._encoders import uses_mean
from colbert_fast._integers import positive_int
from colbert_fast._topk import topk
from colbert_fast.packed import PackedTokens
from colbert_fast.rank.colbert import scored
from colbert_fast.rank.embeddings import TokenEmbeddings, check_dims, token_embeddings
from colbert_fast.utils.batches import batchify
from colbert_fast.utils.documents import keys_of


class ColBERT(rank.ColBERT):
    """Search all documents that were added, exactly, by MaxSim; a drop-in for neural-cherche's `retrieve.ColBERT`.

    Documents are encoded and packed once, and move to the retriever's device once. A batch of queries is one call of
    :func:`colbert_fast.topk`.

    Parameters
    ----------
    key, on, model, device
        As for `rank.ColBERT`.

    Attributes
    ----------
    documents
        The documents that are searched, in their order: those that were added, each as a dict with the field `key`. The
        list and its dicts may be changed, and each result has all fields of its document.
    """

    def __init__(self, key: str, on: str | Sequence[str], model: Any, device: str | torch.device | None = None) -> None:
        super().__init__(key, on, model, device)
        self.documents: list[dict[str, Hashable]] = []
        self.documents_embeddings = TokenEmbeddings(pad_row=self._pads)
        # Copies of all documents on the device, in their order; and the batch and the numbers of the copied items.
        self._index: PackedTokens | None = None
        self._indexed: tuple[PackedTokens | None, list[int]] = (None, [])

    @property
    def documents_embeddings(self) -> TokenEmbeddings:
        """The embeddings of the documents by their keys. They may be changed, or replaced by a dict of arrays."""
        return self._embeddings

    @documents_embeddings.setter
    def documents_embeddings(self, embeddings: Mapping[Any, Any]) -> None:
        keys = list(embeddings) if isinstance(embeddings, Mapping) else []
        self._embeddings = token_embeddings(embeddings, keys, "documents_embeddings", pad_row=self._pads)

    def add(self, documents_embeddings: Mapping[Any, Any]) -> ColBERT:
        """Add documents to search, and return the retriever. A document that was added before stays as it is.

        Parameters
        ----------
        documents_embeddings
            What `encode_documents` gave; or a dict of arrays or tensors [length, dim] by the document's key.

        Raises
        ------
        TypeError, ValueError
            Not a mapping to embeddings, or embeddings of another dim.
        """
        keys = list(documents_embeddings) if isinstance(documents_embeddings, Mapping) else []
        new = [key for key in keys if key not in self.documents_embeddings]
        given = token_embeddings(documents_embeddings, new, "documents_embeddings", pad_row=self._pads)
        if new:
            self.documents_embeddings.add_from(given, new)
            self.documents += [{self.key: key} for key in new]
        return self

    def __call__(  # type: ignore[override]
        self,
        queries_embeddings: Mapping[str, Any],
        batch_size: int = 32,
        tqdm_bar: bool = True,
        k: int | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Find the documents with the highest scores for each query, among all that were added.

        Parameters
        ----------
        queries_embeddings
            What `encode_queries` gave; or a dict of arrays or tensors [length, dim] by query. Repeated queries have a
            result each.
        batch_size
            Number of queries that are scored in one call. It changes the memory that is needed, and no score.
        tqdm_bar
            Whether to show a progress bar.
        k
            Number of documents to return for each query. None: all.

        Returns
        -------
        list of list of dict
            For each query the documents, best first: the key of each, and its score as "similarity". Documents with
            equal scores have the order in which they were added.

        Raises
        ------
        TypeError, ValueError
            Not a mapping to embeddings; embeddings of different dims; or a document without its key or embedding.
        """
        most = len(self.documents) if k is None else min(positive_int(k, "k"), len(self.documents))
        queries, embeddings = self._queries(queries_embeddings)
        documents, mean = self._on_device(), uses_mean(self.model)
        check_dims(embeddings, self.documents_embeddings)
        found: list[list[dict[str, Any]]] = []
        for batch in batchify(queries, batch_size, f"{type(self).__name__} retriever", tqdm_bar):
            if most == 0:
                found += [[] for _ in batch]
                continue
            q = embeddings.packed[embeddings.numbers(batch)].to(self.device)
            scores, best = topk(q, documents, most, length_normalize=mean)
            found += scored(self.documents, scores, best)
        return found

    def _on_device(self) -> PackedTokens:
        _, keys = keys_of(self.documents, self.key)
        embeddings = token_embeddings(self.documents_embeddings, keys, "documents_embeddings", pad_row=self._pads)
        numbers, packed = embeddings.numbers(keys), embeddings.packed
        if self._index is None or self._indexed[0] is not packed or self._indexed[1] != numbers:
            self._index, self._indexed = packed[numbers].to(self.device), (packed, numbers)
        return self._index
