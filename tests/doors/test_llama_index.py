from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from counting import QUERY, TEXTS, Counting
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import ValidationError

from colbert_fast.integrations.llama_index import LateInteractionRerank


def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text, id_=f"n{i}"), score=-i) for i, text in enumerate(TEXTS)]


def test_ranks_with_a_bundle_and_with_a_string(encoder: Counting) -> None:
    given, expected = nodes(), encoder.best()
    encoder.documents.clear()
    rerank = LateInteractionRerank(model=encoder)
    found = rerank.postprocess_nodes(given, query_str=QUERY)
    assert encoder.documents == [len(set(TEXTS))]  # once, and equal texts once
    assert [node.node.node_id for node in found] == [f"n{i}" for i, _ in expected]
    assert [node.score for node in found] == pytest.approx([score for _, score in expected], rel=1e-5)
    assert found == rerank.postprocess_nodes(given, QueryBundle(QUERY))
    assert found == asyncio.run(rerank.apostprocess_nodes(given, QueryBundle(QUERY)))
    assert given == nodes()


def test_the_text_is_what_llama_index_embeds(encoder: Counting) -> None:
    node = TextNode(text="bananas", metadata={"title": "fruit", "secret": "paris"})
    node.excluded_embed_metadata_keys = ["secret"]
    (found,) = LateInteractionRerank(model=encoder).postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    assert found.score == pytest.approx(encoder.by_hand(QUERY, ["title: fruit\n\nbananas"])[0], rel=1e-5)


def test_top_n_and_normalize(encoder: Counting) -> None:
    rerank = LateInteractionRerank(model=encoder, top_n=2, normalize=True)
    found = rerank.postprocess_nodes(nodes(), query_str=QUERY)
    assert [node.node.node_id for node in found] == [f"n{i}" for i, _ in encoder.best()][:2]
    assert all(0 <= node.score <= 1 for node in found)
    assert rerank.postprocess_nodes([], query_str=QUERY) == []


def test_the_callback_manager_hears_of_it(encoder: Counting) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    rerank = LateInteractionRerank(model=encoder, top_n=1, callback_manager=CallbackManager([handler]))
    rerank.postprocess_nodes(nodes(), query_str=QUERY)
    ((start, end),) = handler.get_event_pairs(CBEventType.RERANKING)
    assert (start.payload["query_str"], start.payload["top_k"]) == (QUERY, 1)
    assert len(end.payload["nodes"]) == 1


def test_saves_the_name_and_never_the_weights(checkpoint: str, loads: list[Any], encoder: Counting) -> None:
    rerank = LateInteractionRerank(model=checkpoint, top_n=3)
    assert isinstance(rerank, BaseNodePostprocessor)
    assert not loads
    rerank.postprocess_nodes(nodes(), query_str=QUERY)
    saved = rerank.to_dict()
    settings = {"model": checkpoint, "top_n": 3, "normalize": False, "device": None, "model_kwargs": {}}
    assert saved == {**settings, "class_name": "LateInteractionRerank"}
    assert LateInteractionRerank.model_validate(rerank.model_dump()).to_dict() == saved
    assert LateInteractionRerank.from_json(rerank.to_json()).to_dict() == saved
    assert pickle.loads(pickle.dumps(rerank)).to_dict() == saved
    assert len(loads) == 1
    given = LateInteractionRerank(model=encoder)
    assert given.to_dict()["model"] is None
    with pytest.raises(TypeError, match="an encoder is not pickled"):
        pickle.dumps(given)


def test_how_the_checkpoint_is_loaded(checkpoint: str, loads: list[Any], encoder: Counting) -> None:
    settings = {"model": checkpoint, "device": "cpu", "model_kwargs": {"max_length_query": 30}}
    rerank = LateInteractionRerank(**settings)
    assert settings.items() <= rerank.to_dict().items()
    for one in (rerank, pickle.loads(pickle.dumps(rerank)), LateInteractionRerank.from_json(rerank.to_json())):
        one.postprocess_nodes(nodes(), query_str=QUERY)
        assert loads.pop() == (checkpoint, {"max_length_query": 30, "device": "cpu"})
    with pytest.raises(TypeError, match="only a checkpoint that is loaded here takes device"):
        LateInteractionRerank(model=encoder, device="cpu")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        LateInteractionRerank(model=checkpoint, top_k=3)
    with pytest.raises(ValidationError, match="frozen"):
        rerank.device = "cuda"


class Named(NodeWithScore):
    retriever: str


def test_nodes_from_a_generator_keep_what_they_hold(encoder: Counting) -> None:
    given = [Named(**vars(node), retriever=f"r{i}") for i, node in enumerate(nodes())]
    found = LateInteractionRerank(model=encoder).postprocess_nodes((node for node in given), query_str=QUERY)
    assert [node.retriever for node in found] == [f"r{i}" for i, _ in encoder.best()]
    assert [node.score for node in given] == [node.score for node in nodes()]


def test_errors(encoder: Counting) -> None:
    rerank = LateInteractionRerank(model=encoder)
    with pytest.raises(ValueError, match="query_bundle or query_str is required"):
        rerank.postprocess_nodes(nodes())
    with pytest.raises(ValidationError, match="top_n"):
        LateInteractionRerank(model=encoder, top_n=0)
    with pytest.raises(TypeError, match="model must be an encoder"):
        LateInteractionRerank.from_dict({"model": None})
