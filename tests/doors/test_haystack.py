from __future__ import annotations

from typing import Any

import pytest
import torch
from counting import QUERY, TEXTS, Counting
from haystack import Document, Pipeline
from haystack.components.joiners import DocumentJoiner
from haystack.core.errors import SerializationError
from haystack.utils import ComponentDevice

from colbert_fast.integrations.haystack import LateInteractionRanker


def documents() -> list[Document]:
    return [Document(id=f"d{i}", content=text, score=-i, meta={"n": i}) for i, text in enumerate(TEXTS)]


def test_ranks_and_keeps_what_the_documents_hold(encoder: Counting) -> None:
    given, expected = documents(), encoder.best()
    encoder.documents.clear()
    found = LateInteractionRanker(encoder).run(QUERY, given)["documents"]
    assert encoder.documents == [len(set(TEXTS))]  # once, and equal texts once
    assert [document.id for document in found] == [f"d{i}" for i, _ in expected]
    assert [document.score for document in found] == pytest.approx([score for _, score in expected], rel=1e-5)
    assert [(document.content, document.meta) for document in found] == [(TEXTS[i], {"n": i}) for i, _ in expected]
    assert given == documents()


def test_top_k_and_normalize(encoder: Counting) -> None:
    ranker = LateInteractionRanker(encoder, top_k=3, normalize=True)
    found = ranker.run(QUERY, documents())["documents"]
    assert [document.id for document in found] == [f"d{i}" for i, _ in encoder.best()][:3]
    assert all(0 <= document.score <= 1 for document in found)
    assert len(ranker.run(QUERY, documents(), top_k=1)["documents"]) == 1
    assert ranker.run(QUERY, []) == {"documents": []}


def test_equal_ids_and_documents_without_text(encoder: Counting) -> None:
    given = [Document(id="a", content="paris"), Document(id="b", content=None), Document(id="a", content="berlin")]
    found = LateInteractionRanker(encoder).run(QUERY, given)["documents"]
    assert {document.id: document.content for document in found} == {"a": "paris", "b": None}
    scores = dict(zip("ab", encoder.by_hand(QUERY, ["paris", ""]), strict=True))
    assert {document.id: document.score for document in found} == pytest.approx(scores, rel=1e-5)


def test_in_a_pipeline_that_is_saved(checkpoint: str, loads: list[Any], encoder: Counting) -> None:
    pipeline = Pipeline()
    pipeline.add_component("joiner", DocumentJoiner(sort_by_score=False))
    pipeline.add_component("ranker", LateInteractionRanker(checkpoint, top_k=2))
    pipeline.connect("joiner.documents", "ranker.documents")
    saved = pipeline.dumps()
    again = Pipeline.loads(saved, allowed_modules=["colbert_fast.integrations.haystack"])
    assert again.dumps() == saved
    assert not loads
    again.warm_up()
    assert len(loads) == 1
    inputs = {"joiner": {"documents": documents()}, "ranker": {"query": QUERY}}
    found = again.run(inputs)["ranker"]["documents"]
    assert [document.id for document in found] == [f"d{i}" for i, _ in encoder.best()][:2]
    assert len(loads) == 1


def test_to_dict(checkpoint: str, encoder: Counting) -> None:
    settings = {"model": checkpoint, "top_k": 2, "normalize": True, "device": None, "model_kwargs": {}}
    ranker = LateInteractionRanker(**settings)
    saved = ranker.to_dict()
    assert saved == {
        "type": "colbert_fast.integrations.haystack.LateInteractionRanker",
        "init_parameters": settings,
    }
    assert LateInteractionRanker.from_dict(saved).to_dict() == saved
    with pytest.raises(SerializationError, match="an encoder cannot be saved with a pipeline"):
        LateInteractionRanker(encoder).to_dict()


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), ComponentDevice.from_str("cpu")], ids=repr)
def test_how_the_checkpoint_is_loaded(
    checkpoint: str, loads: list[Any], encoder: Counting, device: ComponentDevice | str | torch.device
) -> None:
    options = {"max_length_query": 30, "dtype": torch.float32, "model_kwargs": {"attn_implementation": "eager"}}
    pipeline = Pipeline()
    pipeline.add_component("ranker", LateInteractionRanker(checkpoint, device=device, model_kwargs=options))
    saved = pipeline.dumps()
    again = Pipeline.loads(saved, allowed_modules=["colbert_fast.integrations.haystack"])
    assert again.dumps() == saved
    for one in (pipeline, again):
        one.warm_up()
        assert loads.pop() == (checkpoint, {**options, "device": "cpu"})
    assert options["dtype"] is torch.float32
    data = again.get_component("ranker").to_dict()
    assert data["init_parameters"]["device"] == {"type": "single", "device": "cpu"}
    assert LateInteractionRanker.from_dict(data).to_dict() == data == again.get_component("ranker").to_dict()
    with pytest.raises(TypeError, match="only a checkpoint that is loaded here takes device"):
        LateInteractionRanker(encoder, device=device)


def test_documents_from_a_generator(encoder: Counting) -> None:
    ranker = LateInteractionRanker(encoder)
    assert ranker.run(QUERY, (document for document in documents())) == ranker.run(QUERY, documents())


def test_errors(encoder: Counting) -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="top_k"):
            LateInteractionRanker(encoder, top_k=wrong)
        with pytest.raises(ValueError, match="top_k"):
            LateInteractionRanker(encoder).run(QUERY, documents(), top_k=wrong)
    with pytest.raises(ValueError, match="device"):
        LateInteractionRanker("checkpoint", device=3)
    with pytest.raises(TypeError, match="model must be an encoder"):
        LateInteractionRanker(None)
