from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import pytest
from counting import QUERY, TEXTS, Counting
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ValidationError

from colbert_fast.integrations.langchain import LateInteractionReranker


def documents() -> list[Document]:
    return [Document(text, id=f"d{i}", metadata={"source": i}) for i, text in enumerate(TEXTS)]


def test_ranks_and_keeps_what_the_documents_hold(encoder: Counting) -> None:
    given, expected = documents(), encoder.best()
    encoder.documents.clear()
    found = LateInteractionReranker(model=encoder).compress_documents(given, QUERY)
    assert encoder.documents == [len(set(TEXTS))]  # once, and equal texts once
    assert [document.id for document in found] == [f"d{i}" for i, _ in expected]
    for document, (i, score) in zip(found, expected, strict=True):
        assert isinstance(document, Document)
        assert document.page_content == TEXTS[i]
        assert document.metadata == {"source": i, "relevance_score": pytest.approx(score, rel=1e-5)}
        assert type(document.metadata["relevance_score"]) is float
    assert given == documents()


def test_top_n_and_normalize(encoder: Counting) -> None:
    compressor = LateInteractionReranker(model=encoder, top_n=2, normalize=True)
    found = compressor.compress_documents(tuple(documents()), QUERY)
    assert [document.metadata["source"] for document in found] == [i for i, _ in encoder.best()][:2]
    assert all(0 <= document.metadata["relevance_score"] <= 1 for document in found)
    assert compressor.compress_documents([], QUERY) == []


def test_the_asynchronous_form(encoder: Counting) -> None:
    compressor = LateInteractionReranker(model=encoder)
    found = asyncio.run(compressor.acompress_documents(documents(), QUERY))
    assert found == compressor.compress_documents(documents(), QUERY)


def test_saves_the_name_and_never_the_weights(checkpoint: str, loads: list[Any], encoder: Counting) -> None:
    compressor = LateInteractionReranker(model=checkpoint, top_n=3)
    assert isinstance(compressor, BaseDocumentCompressor)
    assert not loads
    compressor.compress_documents(documents(), QUERY)
    saved = compressor.model_dump()
    assert saved == {"model": checkpoint, "top_n": 3, "normalize": False, "device": None, "model_kwargs": {}}
    again = LateInteractionReranker.model_validate_json(compressor.model_dump_json())
    assert again.model_dump() == saved
    assert len(pickle.dumps(compressor)) < 1000
    assert pickle.loads(pickle.dumps(compressor)).model_dump() == saved
    assert len(loads) == 1
    given = LateInteractionReranker(model=encoder)
    assert given.model_dump()["model"] is None
    assert copy.deepcopy(given).model.get() is encoder
    assert LateInteractionReranker.model_json_schema()["required"] == ["model"]
    with pytest.raises(TypeError, match="an encoder is not pickled"):
        pickle.dumps(given)


def test_how_the_checkpoint_is_loaded(checkpoint: str, loads: list[Any], encoder: Counting) -> None:
    settings = {"model": checkpoint, "device": "cpu", "model_kwargs": {"max_length_query": 30}}
    compressor = LateInteractionReranker(**settings)
    assert compressor.model_dump() == {**settings, "top_n": None, "normalize": False}
    for one in (compressor, pickle.loads(pickle.dumps(compressor)), LateInteractionReranker(**compressor.model_dump())):
        one.compress_documents(documents(), QUERY)
        assert loads.pop() == (checkpoint, {"max_length_query": 30, "device": "cpu"})
    assert LateInteractionReranker.model_fields["device"].default is None
    with pytest.raises(TypeError, match="only a checkpoint that is loaded here takes device"):
        LateInteractionReranker(model=encoder, device="cpu")


def test_what_cannot_be_obeyed_is_refused(checkpoint: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        LateInteractionReranker(model=checkpoint, top_k=3)
    with pytest.raises(ValidationError, match="device"):
        LateInteractionReranker(model=checkpoint, device=3)
    compressor = LateInteractionReranker(model=checkpoint)
    for name, value in (("model", checkpoint), ("device", "cpu"), ("model_kwargs", {})):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(compressor, name, value)


def test_documents_from_a_generator(encoder: Counting) -> None:
    compressor = LateInteractionReranker(model=encoder)
    assert compressor.compress_documents(iter(documents()), QUERY) == compressor.compress_documents(documents(), QUERY)


def test_errors(encoder: Counting) -> None:
    for wrong in (0, -1, "many"):
        with pytest.raises(ValidationError, match="top_n"):
            LateInteractionReranker(model=encoder, top_n=wrong)
    with pytest.raises(TypeError, match="model must be an encoder"):
        LateInteractionReranker(model=None)
    with pytest.raises(TypeError, match="query must be one str"):
        LateInteractionReranker(model=encoder).compress_documents(documents(), None)
