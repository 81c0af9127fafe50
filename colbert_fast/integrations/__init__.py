"""Doors into libraries that score or rerank with late interaction. Each is imported by its own name.

`import colbert_fast.integrations.sentence_transformers`, for example. Nothing is imported or patched before that. A
module whose library is missing raises ImportError with the name of the extra or the package to install.

- Scoring functions with the names of another library: `sentence_transformers`, `pylate`, `colpali`.
- Rerankers for other libraries, with any encoder that `colbert_fast.rerank` takes: `mteb`, `rerankers`, `langchain`,
  `llama_index`, `haystack`.
"""
