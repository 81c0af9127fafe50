"""Wrong programs, which a type checker refuses: an ignore that is not needed is an error. They are never run."""

from __future__ import annotations

import torch
from colbert_fast.maxsim import nothing  # type: ignore[import-not-found]  # noqa: F401
from torch import Tensor

import colbert_fast as cf
from colbert_fast import losses, models, rank, retrieve, train, utils


def names(encoder: models.ColBERT, books: cf.Collection) -> None:
    cf.maxsimm  # type: ignore[attr-defined]
    models.Splade  # type: ignore[attr-defined]
    losses.Flops  # type: ignore[attr-defined]
    rank.Splade  # type: ignore[attr-defined]
    retrieve.Splade  # type: ignore[attr-defined]
    train.train_splade  # type: ignore[attr-defined]
    utils.dense_scores  # type: ignore[attr-defined]
    encoder.encode_query(["one"])  # type: ignore[operator]
    books.search  # type: ignore[attr-defined]


def arguments(encoder: models.ColBERT, books: cf.Collection, a: Tensor) -> None:
    packed = cf.PackedTokens.from_list([a])
    cf.maxsim(a, a, pad="none")  # type: ignore[arg-type]
    cf.maxsim(a, a, mask=a)  # type: ignore[call-arg]
    cf.maxsim(a)  # type: ignore[call-arg]
    cf.topk(a, a, "3")  # type: ignore[arg-type]
    cf.set_num_threads(2.5)  # type: ignore[arg-type]
    packed["one"]  # type: ignore[call-overload]
    packed.quantize("int4")  # type: ignore[arg-type]
    packed.tokens = a  # type: ignore[misc]
    books.topk(a, 3, candidates="all")  # type: ignore[arg-type]
    books[3]  # type: ignore[call-overload]
    encoder.save_pretrained("folder", format="pylate")  # type: ignore[arg-type]
    encoder.encode_documents(3)  # type: ignore[arg-type]
    losses.Ranking()(a)  # type: ignore[call-arg]


def results(encoder: models.ColBERT, a: Tensor) -> None:
    scores: list[float] = cf.maxsim(a, a)  # type: ignore[assignment]
    best, numbers, rest = cf.topk(a, a, 3)  # type: ignore[misc]
    cf.rerank(encoder, "one query", [])[0][0]  # type: ignore[index]
    queries: torch.Tensor = encoder.encode_queries(["one"])  # type: ignore[assignment]
