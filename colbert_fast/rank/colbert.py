"""`rank.ColBERT`: the documents of each query, best first."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from colbert_fast._encoders import encode, uses_mean
from colbert_fast._integers import positive_int
from colbert_fast._topk import topk
from colbert_fast.packed import PackedTokens
from colbert_fast.rank.embeddings import TokenEmbeddings, check_dims, token_embeddings
from colbert_fast.utils.batches import batchify
from colbert_fast.utils.documents import checked_fields, checked_list, keys_of, texts_by_key
from colbert_fast.utils.duplicates import queries_of


class ColBERT:
    """Rank documents for queries by MaxSim, exactly; a drop-in for neural-cherche's `rank.ColBERT`.

    Texts are encoded at their own length and packed once. The scores of a batch of queries with all their documents are
    one call of :func:`colbert_fast.topk`, on the ranker's device. They equal the scores of `models.ColBERT.scores`.

    Parameters
    ----------
    key
        The field that identifies a document.
    on
        The field or the fields of a document's text. Several fields are joined by spaces.
    model
        `models.ColBERT`, sentence-transformers' `MultiVectorEncoder` or PyLate's `ColBERT`.
    device
        Where documents are scored. None: the device of the model. Embeddings are kept in CPU memory.

    Raises
    ------
    TypeError, ValueError
        `key` or `on` are no names of fields.
    """

    def __init__(self, key: str, on: str | Sequence[str], model: Any, device: str | torch.device | None = None) -> None:
        self.key: str
        self.on: list[str]
        self.key, self.on = checked_fields(key, on)
        self.model = model
        self.device: str | torch.device = model.device if device is None else device

    def encode_documents(
        self,
        documents: Iterable[Mapping[str, Any]],
        batch_size: int = 32,
        tqdm_bar: bool = True,
        query_mode: bool = False,
        desc: str = "documents embeddings",
        **kwargs: Any,
    ) -> TokenEmbeddings:
        """Embed documents. Equal texts pass through the model once.

        Parameters
        ----------
        documents
            Dicts with the fields `key` and `on`. Two documents with one key must have the same text.
        batch_size
            Largest number of texts of one pass through the model.
        tqdm_bar
            Whether to show a progress bar.
        query_mode
            True: embed as queries.
        desc
            The name of the progress bar, if the model is `models.ColBERT`.
        **kwargs
            Other options of the model's own method, such as `max_length`.

        Returns
        -------
        TokenEmbeddings
            A mapping from each document's key to an array, float32 [length, dim].

        Raises
        ------
        TypeError, ValueError
            Not a list of dicts; a missing field, or one that is not a str; or a key with two texts.
        """
        settings = {"batch_size": batch_size, "tqdm_bar": tqdm_bar, "desc": desc, **kwargs}
        return self._encoded(texts_by_key(documents, self.key, self.on), query_mode, settings, document=True)

    def encode_candidates_documents(
        self,
        documents: Iterable[Mapping[str, Any]],
        candidates: Iterable[Iterable[Mapping[str, Any]]],
        batch_size: int = 32,
        tqdm_bar: bool = True,
        query_mode: bool = False,
        **kwargs: Any,
    ) -> TokenEmbeddings:
        """Embed the documents that are a candidate of any query.

        Parameters
        ----------
        documents
            Dicts with the fields `key` and `on`.
        candidates
            The candidates of each query: dicts with the field `key`, such as a retriever gives.
        batch_size, tqdm_bar, query_mode, **kwargs
            As for `encode_documents`.

        Returns
        -------
        TokenEmbeddings
            As from `encode_documents`, in the order in which the documents come in `candidates`.

        Raises
        ------
        TypeError, ValueError
            As `encode_documents`; or a candidate is not among the documents.
        """
        listed, keys = keys_of(documents, self.key)
        named: dict[Hashable, list[Mapping[str, Any]]] = {}
        for document, name in zip(listed, keys, strict=True):
            named.setdefault(name, []).append(document)
        needed = dict.fromkeys(name for _, names in self._candidates("candidates", candidates) for name in names)
        for name in needed:
            if name not in named:
                msg = f"candidates has a document with the {self.key} {name!r}, which is not in documents"
                raise ValueError(msg)
        chosen = [document for name in needed for document in named[name]]
        return self.encode_documents(chosen, batch_size, tqdm_bar, query_mode, **kwargs)

    def encode_queries(
        self,
        queries: Iterable[str],
        batch_size: int = 32,
        tqdm_bar: bool = True,
        query_mode: bool = True,
        warn_duplicates: bool = True,
        desc: str = "queries embeddings",
        **kwargs: Any,
    ) -> TokenEmbeddings:
        """Embed queries. A repeated query passes through the model once, and gets its result as often as it was given.

        Parameters
        ----------
        queries
            n texts.
        batch_size, tqdm_bar, query_mode, desc, **kwargs
            As for `encode_documents`.
        warn_duplicates
            Kept for compatibility. There is nothing to warn of, because repeated queries get their results.

        Returns
        -------
        TokenEmbeddings
            A mapping from each text to an array, float32 [length, dim], which remembers the order of the queries.

        Raises
        ------
        TypeError
            Not a list of str.
        """
        given = checked_list("queries", queries, str, "str")
        settings = {"batch_size": batch_size, "tqdm_bar": tqdm_bar, "desc": desc, **kwargs}
        return self._encoded({text: text for text in given}, query_mode, settings, order=given)

    def __call__(
        self,
        documents: Iterable[Iterable[Mapping[str, Any]]],
        queries_embeddings: Mapping[str, Any],
        documents_embeddings: Mapping[Any, Any],
        batch_size: int = 32,
        tqdm_bar: bool = True,
        k: int | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Rank the documents of each query.

        Parameters
        ----------
        documents
            For each query a list of documents, which may be empty: dicts with the field `key`.
        queries_embeddings
            What `encode_queries` gave; or a dict of arrays or tensors [length, dim] by query. The queries have the
            order in which they were given, with repetitions, or the order of the dict.
        documents_embeddings
            What `encode_documents` gave; or a dict of arrays or tensors [length, dim] by the document's key. Zero rows
            at the end of an array are padding, and count as they do in the model's own score.
        batch_size
            Number of queries that are scored in one call. It changes the memory that is needed, and no score.
        tqdm_bar
            Whether to show a progress bar.
        k
            Number of documents to return for each query. None: all.

        Returns
        -------
        list of list of dict
            For each query its documents, best first, each with its score as "similarity". Documents with equal scores
            keep their order.

        Raises
        ------
        TypeError, ValueError
            The lists do not fit the queries; a document has no key or no embedding; embeddings of different dims.
        """
        if k is not None:
            k = positive_int(k, "k")
        candidates = self._candidates("documents", documents)
        queries, q_all = self._queries(queries_embeddings)
        if len(candidates) != len(queries):
            msg = (
                "documents must have one list of documents for each query; "
                f"got {len(candidates)} lists and {len(queries)} queries in queries_embeddings"
            )
            raise ValueError(msg)
        keys = [name for _, names in candidates for name in names]
        d_all = token_embeddings(documents_embeddings, keys, "documents_embeddings", pad_row=self._pads)
        check_dims(q_all, d_all)
        ranked: list[list[dict[str, Any]]] = []
        for batch in batchify(range(len(queries)), batch_size, f"{type(self).__name__} ranker", tqdm_bar):
            lists = [candidates[index][0] for index in batch]
            numbers = d_all.numbers(name for index in batch for name in candidates[index][1])
            q = q_all.packed[q_all.numbers(queries[index] for index in batch)]
            ranked += self._best(q, d_all.packed, numbers, lists, k)
        return ranked

    def _best(
        self,
        q: PackedTokens,
        d_all: PackedTokens,
        numbers: list[int],
        lists: list[list[Mapping[str, Any]]],
        k: int | None,
    ) -> list[list[dict[str, Any]]]:
        """Rank the documents of a batch of queries. ``numbers`` says for each document which item of d_all it is."""
        if not numbers:
            return [[] for _ in lists]
        # A document of several queries moves to the device once. Then each place in the lists has an item of its own,
        # over the same rows, so that the numbers that come back are places.
        items, places = torch.tensor(numbers).unique(return_inverse=True)
        d = d_all[items].to(self.device)[places]
        sizes = [len(documents) for documents in lists]
        rows = list(torch.arange(len(numbers)).split(sizes))
        most = max(sizes) if k is None else min(k, max(sizes))
        scores, best = topk(q.to(self.device), d, most, candidates=rows, length_normalize=uses_mean(self.model))
        return scored([document for documents in lists for document in documents], scores, best)

    def _candidates(self, name: str, lists: Any) -> list[tuple[list[Mapping[str, Any]], list[Hashable]]]:
        """Return for each query its documents and their keys."""
        given = checked_list(name, lists, Iterable, "lists of dicts, one list for each query")
        return [keys_of(documents, self.key, f"{name}[{index}]") for index, documents in enumerate(given)]

    def _queries(self, embeddings: Any) -> tuple[list[str], TokenEmbeddings]:
        """Return the queries with repetitions, and their embeddings."""
        queries = queries_of(embeddings) if isinstance(embeddings, Mapping) else []
        # A zero row of a query adds 0 to the score, as if it were not there.
        return queries, token_embeddings(embeddings, queries, "queries_embeddings", pad_row=False)

    @property
    def _pads(self) -> bool:
        """Whether the zero rows after a document count in the model's own score."""
        padded = getattr(self.model, "padding", None) == "max_length"
        return padded and bool(getattr(self.model, "_scores_padding", False))

    def _encoded(
        self,
        texts: Mapping[Any, str],
        query_mode: bool,
        settings: dict[str, Any],
        *,
        document: bool = False,
        order: list[str] | None = None,
    ) -> TokenEmbeddings:
        """Embed the text of each key. ``settings`` has batch_size, tqdm_bar, desc and the options of the model."""
        shown, label = settings.pop("tqdm_bar"), settings.pop("desc")
        height, pads = self._padding(query_mode, settings)
        if hasattr(self.model, "encode_packed"):  # models.ColBERT, whose progress bar can be named
            settings["desc"] = f"{type(self).__name__} {label}"
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts.values()))}
        packed = encode(self.model, list(numbers), query=query_mode, show_progress_bar=shown, **settings)
        if document and query_mode and pads:  # the model gives a document its pad row, and a query none
            row = packed.tokens.new_zeros(1, packed.dim)
            packed = PackedTokens.from_list(
                [item if len(item) >= height else torch.cat([item, row]) for item in packed]
            )
        if len(numbers) < len(texts):
            packed = packed[[numbers[text] for text in texts.values()]]
        found = TokenEmbeddings(pad_row=document and pads)
        found.add_packed(list(texts), packed, height, order)
        return found

    def _padding(self, query_mode: bool, settings: dict[str, Any]) -> tuple[int, bool]:
        """Return how many rows neural-cherche would pad a text to (0: it would not), and whether pad rows score."""
        if not hasattr(self.model, "encode_packed"):
            return 0, False
        options = {name: value for name, value in settings.items() if name != "batch_size"}
        encoding = self.model._encoding(query_mode, options)
        height = encoding.max_length if encoding.padding == "max_length" else 0
        return height, bool(self.model._scores_padding and height)


def scored(documents: Sequence[Mapping[str, Any]], scores: Tensor, best: Tensor) -> list[list[dict[str, Any]]]:
    """Return for each query its best documents, each with its score as "similarity".

    `scores` and `best` are what `topk` gives, [nq, k]; a place of -1 is none.
    """
    return [
        [{**documents[place], "similarity": value} for value, place in zip(values, places, strict=True) if place >= 0]
        for values, places in zip(scores.tolist(), best.tolist(), strict=True)
    ]
