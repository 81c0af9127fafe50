# needs: nothing
"""Score, rank and pack embeddings that any encoder has made."""

import torch

import colbert_fast as cf

queries = torch.nn.functional.normalize(torch.randn(2, 32, 128), dim=-1)
pages = [torch.nn.functional.normalize(torch.randn(length, 128), dim=-1) for length in (180, 75, 300)]

documents = cf.PackedTokens.from_list(pages)  # built once, scored many times
print("every query against every document:", cf.maxsim(queries, documents))
scores, numbers = cf.topk(queries, documents, k=2)
print("the two best documents of each query:", numbers)
