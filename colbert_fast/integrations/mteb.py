"""For mteb: exact late-interaction search, and reranking of given candidates, in retrieval and reranking tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from colbert_fast._extras import need

need("colbert_fast.integrations.mteb", "integrations", {"mteb": "2.18"})

from mteb._create_dataloaders import create_dataloader
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from colbert_fast._encoders import encode, uses_mean
from colbert_fast._integers import positive_int
from colbert_fast._topk import topk
from colbert_fast.integrations._lazy import LazyEncoder
from colbert_fast.packed import PackedTokens


class LateInteractionSearch:
    """A model that ``mteb.evaluate`` takes: mteb's `SearchProtocol` over :func:`colbert_fast.topk`.

    Parameters
    ----------
    model
        An encoder, or the path or name of a checkpoint, which is loaded at first use.
    name
        What mteb calls the model, in its results and in its cache. None: the path or name of the checkpoint.
    corpus_chunk_size
        How many documents are embedded and searched at once. This bounds the memory for embeddings.
    **kwargs
        Keyword arguments of `colbert_fast.models.ColBERT` for a checkpoint that is loaded here, such as ``device``.
        mteb keeps results apart by those that may change a score.

    Raises
    ------
    TypeError
        Keyword arguments of a checkpoint, but ``model`` is an encoder already.
    ValueError
        An encoder without a name: mteb would take the cached results of another encoder for its own.
    """

    def __init__(self, model: Any, name: str | None = None, corpus_chunk_size: int = 10_000, **kwargs: Any) -> None:
        self.model: LazyEncoder = LazyEncoder(model, **kwargs)
        name = name or self.model.name
        if name is None:
            msg = "name is required for an encoder, because mteb keeps results by the name of the model; got None"
            raise ValueError(msg)
        about = {"name": name, "model_type": ["late-interaction"], "similarity_fn_name": ScoringFunction.MAX_SIM}
        about |= {"revision": kwargs.get("revision"), "experiment_kwargs": self.model.settings() or None}
        self.mteb_model_meta: ModelMeta = ModelMeta.create_empty(overwrites=about)
        self.corpus_chunk_size: int = positive_int(corpus_chunk_size, "corpus_chunk_size")
        self._corpus: Any = None

    def index(self, corpus: Any, **_: Any) -> None:
        """Keep the corpus. `search` embeds it, one part after the other."""
        self._corpus = corpus

    def search(
        self, queries: Any, *, top_k: int, top_ranked: Mapping[str, list[str]] | None = None, **options: Any
    ) -> dict[str, dict[str, float]]:
        """Return ``{query id: {document id: score}}``: the ``top_k`` best documents of each query, best first.

        A query's documents are the whole corpus; or with ``top_ranked`` the list of the query there, which may be
        missing or empty.

        Raises
        ------
        ValueError
            :meth:`index` was not called before.
        """
        if self._corpus is None:
            msg = "index() must come before search()"
            raise ValueError(msg)
        names, ids = list(queries["id"]), list(self._corpus["id"])
        row_of = {document: row for row, document in enumerate(ids)}
        given = None
        if top_ranked is not None:
            given = [dict.fromkeys(row_of[document] for document in top_ranked.get(name, ())) for name in names]
        rows: Sequence[int] = range(len(ids)) if given is None else sorted(set().union(*given))
        q = self._embed(queries, PromptType.query, options)
        best = torch.zeros(len(names), 0, device=q.device)
        best_rows = best.long()
        for start in range(0, len(rows), self.corpus_chunk_size):
            part = rows[start : start + self.corpus_chunk_size]
            place = {row: i for i, row in enumerate(part)}
            candidates = None if given is None else [[place[row] for row in one if row in place] for one in given]
            d = self._embed(self._corpus.select(part), PromptType.document, options)
            scores, places = topk(q, d, top_k, candidates=candidates, length_normalize=uses_mean(self.model.get()))
            best, order = torch.cat([best, scores], dim=1).sort(dim=1, descending=True, stable=True)
            # Place -1, where a query has fewer than top_k documents, stays -1.
            found = torch.tensor([*part, -1], device=q.device)[places]
            best_rows = torch.cat([best_rows, found], dim=1).gather(1, order)
            best, best_rows = best[:, :top_k], best_rows[:, :top_k]
        lists = zip(names, best_rows.tolist(), best.tolist(), strict=True)
        return {name: {ids[row]: score for row, score in zip(*hits, strict=True) if row >= 0} for name, *hits in lists}

    def _embed(self, rows: Any, kind: PromptType, options: Mapping[str, Any]) -> PackedTokens:
        """Embed the texts as mteb prepares them: title and text of a document, text and instruction of a query."""
        given = {name: options.get(name) for name in ("task_metadata", "num_proc")}
        texts = [text for batch in create_dataloader(rows, prompt_type=kind, **given) for text in batch["text"]]
        return encode(self.model.get(), texts, query=kind is PromptType.query, **options["encode_kwargs"])
