"""For LangChain: a document compressor that keeps the documents with the best late-interaction scores."""

from __future__ import annotations

from collections.abc import Sequence

from colbert_fast._extras import need

need("colbert_fast.integrations.langchain", "integrations", {"langchain-core": "0.3"})

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field

from colbert_fast.integrations._fields import CONFIG, Device, Model, ModelOptions


class LateInteractionReranker(BaseDocumentCompressor):
    """Ranks the documents of a retriever with :func:`colbert_fast.rerank`.

    Parameters
    ----------
    model
        An encoder, or the path or name of a checkpoint, which is loaded at first use. `model_dump` gives the path or
        the name, and None for an encoder.
    top_n
        How many documents are kept. None: all.
    normalize
        Scores in 0..1.
    device
        The device of a checkpoint that is loaded here. None: CUDA if there is one, else MPS, else the CPU.
    model_kwargs
        More keyword arguments of `colbert_fast.models.ColBERT` for that checkpoint.
    """

    model_config = CONFIG

    device: Device = None
    model_kwargs: ModelOptions = {}  # noqa: RUF012 - pydantic copies it
    model: Model
    top_n: int | None = Field(default=None, ge=1)
    normalize: bool = False

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return copies of the best documents, best first, with their scores in ``metadata["relevance_score"]``.

        Raises
        ------
        TypeError
            ``query`` is not a str.
        ValueError
            The reranker normalizes, and the model's embeddings are no unit vectors.
        """
        documents = list(documents)
        found = self.model.rank(query, [document.page_content for document in documents], self.top_n, self.normalize)
        return [
            documents[i].model_copy(update={"metadata": {**documents[i].metadata, "relevance_score": score}})
            for i, score in found
        ]
