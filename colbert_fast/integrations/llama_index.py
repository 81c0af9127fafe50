"""For LlamaIndex: a node postprocessor that keeps the nodes with the best late-interaction scores."""

from __future__ import annotations

from typing import Any

from colbert_fast._extras import need

need("colbert_fast.integrations.llama_index", "integrations", {"llama-index-core": "0.14"})

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import Field, model_validator

from colbert_fast.integrations._fields import CONFIG, Device, Model, ModelOptions


class LateInteractionRerank(BaseNodePostprocessor):
    """Ranks the nodes of a retriever with :func:`colbert_fast.rerank`.

    The text of a node is what LlamaIndex embeds: ``get_content(MetadataMode.EMBED)``. The result holds new nodes with
    the new scores. The nodes that came in keep their scores.

    Parameters
    ----------
    model
        An encoder, or the path or name of a checkpoint, which is loaded at first use. `to_dict` gives the path or the
        name, and None for an encoder.
    top_n
        How many nodes are kept. None: all.
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

    @model_validator(mode="before")
    @classmethod
    def _without_class_name(cls, data: Any) -> Any:
        """Let `model_validate` take what `model_dump` gives, which has the name of the class too."""
        return {key: data[key] for key in data if key != "class_name"} if isinstance(data, dict) else data

    @classmethod
    def class_name(cls) -> str:
        return "LateInteractionRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            msg = "query_bundle or query_str is required; got neither"
            raise ValueError(msg)
        query, nodes = query_bundle.query_str, list(nodes)
        told = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: repr(self.model),
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=told) as event:
            texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
            found = self.model.rank(query, texts, self.top_n, self.normalize)
            best = [nodes[i].model_copy(update={"score": score}) for i, score in found]
            event.on_end(payload={EventPayload.NODES: best})
        return best

    def __getstate__(self) -> dict[str, Any]:
        self.model.__reduce__()  # raises the error for an encoder, which the base class would drop with a log line
        state: dict[str, Any] = super().__getstate__()
        return state
