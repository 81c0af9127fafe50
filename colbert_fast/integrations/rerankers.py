"""For rerankers: a ranker by late interaction. Importing this module adds it to the library's list of rankers."""

from __future__ import annotations

from copy import copy
from typing import Any

from colbert_fast._extras import need

need("colbert_fast.integrations.rerankers", "integrations", {"rerankers": "0.10"})

from rerankers.documents import Document
from rerankers.models import AVAILABLE_RANKERS
from rerankers.models.ranker import BaseRanker
from rerankers.results import RankedResults, Result

from colbert_fast.integrations._lazy import LazyEncoder


class LateInteractionRanker(BaseRanker):
    """Ranks documents with :func:`colbert_fast.rerank`.

    ``Reranker("checkpoint", model_type="colbert_fast")`` makes one too.

    Parameters
    ----------
    model_name_or_path
        The path or name of a checkpoint, which is loaded at first use; or an encoder.
    verbose
        Kept for compatibility: nothing is printed here.
    normalize
        Scores in 0..1.
    **kwargs
        Keyword arguments of `colbert_fast.models.ColBERT`, such as ``device``.
    """

    def __init__(self, model_name_or_path: Any, verbose: int = 1, normalize: bool = False, **kwargs: Any) -> None:
        self.model: LazyEncoder = LazyEncoder(model_name_or_path, **kwargs)
        self.verbose = verbose
        self.normalize = normalize

    def score(self, query: str, doc: str) -> float:
        """Return the score of one document."""
        return self.rank(query, doc)[0].score  # type: ignore[no-any-return]

    def rank(
        self,
        query: str,
        docs: str | list[str] | Document | list[Document],
        doc_ids: list[str] | list[int] | None = None,
        metadata: list[dict[str, Any]] | None = None,
    ) -> RankedResults:
        """Return copies of all documents, best first, with their scores.

        ``doc_ids`` and ``metadata`` replace what a document holds. A document without an id gets its position as id.

        Raises
        ------
        TypeError
            ``query`` is not a str.
        ValueError
            ``doc_ids`` or ``metadata`` do not have one entry for each document; or the ranker normalizes, and the
            model's embeddings are no unit vectors.
        """
        listed = [docs] if isinstance(docs, (str, Document)) else list(docs)
        for name, given in (("doc_ids", doc_ids), ("metadata", metadata)):
            if given is not None and len(given) != len(listed):
                msg = f"{name} needs one entry for each of the {len(listed)} docs; got {len(given)}"
                raise ValueError(msg)
        # The library's own `prep_docs` changes the documents that it gets.
        prepared = [copy(doc) if isinstance(doc, Document) else Document(doc) for doc in listed]
        for i, document in enumerate(prepared):
            if doc_ids is not None or document.doc_id is None:
                document.doc_id = i if doc_ids is None else doc_ids[i]
            if metadata is not None:
                document.metadata = metadata[i]
        found = self.model.rank(query, [document.text for document in prepared], normalize=self.normalize)
        results = [Result(prepared[i], score=score, rank=rank) for rank, (i, score) in enumerate(found, start=1)]
        return RankedResults(results, query=query, has_scores=True)


AVAILABLE_RANKERS["colbert_fast"] = LateInteractionRanker
