"""A program of a user. mypy checks its types in `make lint`, and nothing runs it.

Each `type: ignore` is a mistake that the types refuse: mypy says so where they no longer do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import assert_type

import colbert_fast as cf
from colbert_fast import losses, models, rank, retrieve, train, utils


def scoring(a: Tensor, b: Tensor, mask: Tensor, items: list[Tensor], array: np.ndarray[Any, Any]) -> None:
    assert_type(cf.__version__, str)
    assert_type(cf.maxsim(a, b, mask, b_mask=mask, chunk_elements=2**20, length_normalize=True, device="cpu"), Tensor)
    assert_type(cf.maxsim(items, array, pad="zero" if len(items) else "skip", backend="cpu"), Tensor)
    assert_type(cf.maxsim_pairwise(a, b), Tensor)
    assert_type(cf.maxsim_pairs(a, b, [[0, 1]]), Tensor)
    assert_type(cf.maxsim_with_argmax(a, b), tuple[Tensor, Tensor])
    assert_type(cf.topk(a, b, 10, candidates=[[0, 1]]), tuple[Tensor, Tensor])
    assert_type(cf.get_num_threads(), int)
    cf.set_num_threads(2)
    for backend in cf.backends():
        assert_type(backend.name, str)
        assert_type(backend.unsupported, str | None)
    cf.maxsim(a, b, pad="drop")  # type: ignore[arg-type]
    cf.maxsim(a)  # type: ignore[call-arg]
    cf.topk(a, b, "10")  # type: ignore[arg-type]
    cf.maxsimm(a, b)  # type: ignore[attr-defined]
    cf.set_num_threads("2")  # type: ignore[arg-type]


def packing(items: list[Tensor], padded: Tensor) -> cf.PackedTokens:
    packed = cf.PackedTokens.from_list(items)
    assert_type(packed, cf.PackedTokens)
    assert_type(cf.PackedTokens.from_padded(padded), cf.PackedTokens)
    assert_type(cf.PackedTokens.from_nested(padded), cf.PackedTokens)
    assert_type(cf.PackedTokens.cat([packed, packed]), cf.PackedTokens)
    assert_type(packed.to_padded(), tuple[Tensor, Tensor])
    assert_type(packed.with_tokens(packed.tokens), cf.PackedTokens)
    assert_type(packed.to(torch.float16).to("cpu", torch.bfloat16), cf.PackedTokens)
    assert_type(packed.quantize(), cf.PackedTokens)
    assert_type((packed.tokens, packed.starts, packed.lengths), tuple[Tensor, Tensor, Tensor])
    assert_type(packed.scales, Tensor | None)
    assert_type((len(packed), packed.max_length, packed.rows, packed.dim), tuple[int, int, int, int])
    assert_type((packed.dtype, packed.device), tuple[torch.dtype, torch.device])
    packed.save("documents.safetensors")
    assert_type(cf.PackedTokens.load("documents.safetensors"), cf.PackedTokens)
    packed.quantize("int4")  # type: ignore[arg-type]
    packed.tokens = padded  # type: ignore[misc]
    return packed


def collecting(packed: cf.PackedTokens) -> None:
    collection = cf.Collection("folder", codes="int4", exact=None, read_only=False, wait=1.0)
    assert_type(collection, cf.Collection)
    assert_type(collection.add(["a", "b"], packed, [{"year": 2024}, None], replace=True), int)
    assert_type(collection["a"], Tensor)
    assert_type(collection[["a", "b"]], cf.PackedTokens)
    assert_type(list(collection), list[str])
    assert_type((collection.path, collection.codes, collection.exact), tuple[str, str, str | None])
    assert_type((collection.dim, collection.about), tuple[int | None, dict[str, str]])
    assert_type(collection.ids("year > ?", (2020,)), list[str])
    assert_type(collection.recall(packed, 10, 100), float)
    assert_type(collection.metadata("a"), dict[str, Any] | None)
    assert_type(collection.delete(["a"]), int)
    found = collection.topk(packed, 10, where="year > ?", parameters=(2020,), among=["b"])
    assert_type(found.ids, list[list[str | None]])
    assert_type(found.scores, Tensor)
    collection.update(["b"], [{"year": 2025}])
    collection.describe({"model": "mine"})
    for act in (collection.compact, collection.refresh, collection.verify, collection.close):
        act()
    collection[0]  # type: ignore[call-overload]
    cf.Collection("folder", code="int4")  # type: ignore[call-arg]


def encoding(texts: list[str]) -> None:
    model = models.ColBERT("a/model", embedding_size=128, device="cpu", max_length_query=32)
    assert_type(model, models.ColBERT)
    assert_type(model.encode_queries(texts), cf.PackedTokens)
    assert_type(model.encode_documents(texts, batch_size=8), cf.PackedTokens)
    assert_type(model.encode(texts), dict[str, Tensor])
    assert_type(model.scores(texts, texts), Tensor)
    assert_type(model.save_pretrained("folder"), models.ColBERT)
    assert_type((model.device, model.embedding_size), tuple[str, int])
    assert_type((model.max_length_query, model.max_length_document), tuple[int, int])
    assert_type((model.query_prefix, model.document_prefix), tuple[str, str])
    assert_type(model.linear, torch.nn.Linear | None)
    explanation = model.explain(texts[0], texts[1])
    assert_type(explanation, cf.Explanation)
    assert_type(cf.explain(model, texts[0], texts[1]), cf.Explanation)
    assert_type((explanation.score, explanation.to_html()), tuple[float, str])
    assert_type([row.similarity for row in explanation.rows], list[float])
    assert_type(explanation.to_dict(), dict[str, Any])
    models.ColBERT(128)  # type: ignore[arg-type]
    models.Colbert("a/model")  # type: ignore[attr-defined]
    model.save_pretrained()  # type: ignore[call-arg]


def ranking(model: models.ColBERT, documents: list[dict[str, str]], queries: list[str]) -> None:
    ranker = rank.ColBERT(key="id", on=["title", "text"], model=model)
    embedded = ranker.encode_documents(documents)
    asked = ranker.encode_queries(queries)
    assert_type(embedded, rank.TokenEmbeddings)
    assert_type(ranker([documents], asked, embedded, k=10), list[list[dict[str, Any]]])
    retriever = retrieve.ColBERT(key="id", on="text", model=model)
    assert_type(retriever.add(embedded), retrieve.ColBERT)
    retriever(asked, k=10)
    first = retrieve.BM25(key="id", on="text")
    first.add(first.encode_documents(documents))
    assert_type(retrieve.TfIdf(key="id", on="text"), retrieve.TfIdf)
    cf.rerank(model, queries[0], documents, 10, normalize=True)
    rank.ColBERT("id", "text")  # type: ignore[call-arg]
    retrieve.Splade("id", "text")  # type: ignore[attr-defined]


def training(model: models.ColBERT, queries: list[str], documents: list[dict[str, str]]) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    for anchor, positive, negative in utils.iter([("q", "a", "b")], epochs=1, batch_size=8):
        assert_type(train.train_colbert(model, optimizer, anchor, positive, negative), dict[str, Tensor])
    loaded = utils.load_beir("scifact")
    assert_type(loaded, tuple[list[dict[str, str]], list[str], dict[str, dict[str, int]]])
    triples = utils.get_beir_triples("id", ["text"], documents, queries, loaded[2])
    assert_type(triples, list[tuple[str, str, str]])
    assert_type(utils.freeze_layers(model, 5), models.ColBERT)
    assert_type(utils.evaluate([], loaded[2], queries, metrics=["ndcg@10"]), dict[str, float] | float)
    assert_type(utils.colbert_scores(torch.ones(1), torch.ones(1), torch.ones(1)), dict[str, Tensor])
    losses.Ranking()(torch.ones(2), torch.ones(2))
    utils.evaluate([])  # type: ignore[call-arg]
    losses.Flops()  # type: ignore[attr-defined]
