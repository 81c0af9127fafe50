# needs: models
"""The contrastive loss of sentence-transformers over our scores, and its gradients."""

import torch

from colbert_fast.integrations.sentence_transformers import colbert_scores

# What MultiVectorMultipleNegativesRankingLoss hands to its similarity_fct: queries, and a positive and a negative
# document for each of them.
queries = torch.nn.functional.normalize(torch.randn(8, 32, 128), dim=-1).requires_grad_()
documents = torch.nn.functional.normalize(torch.randn(8, 2, 180, 128), dim=-1).requires_grad_()
documents_mask = torch.arange(180) < torch.randint(30, 181, (8, 2, 1))

scores = colbert_scores(queries, documents, documents_mask=documents_mask)
loss = torch.nn.functional.cross_entropy(scores, 2 * torch.arange(8))  # the positive of query i is in column 2 * i
loss.backward()
print("every query against every document of the batch:", list(scores.shape))
print("loss:", round(loss.item(), 3))
print("length of the gradient of the documents:", round(documents.grad.norm().item(), 3))
