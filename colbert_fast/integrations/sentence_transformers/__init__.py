"""sentence-transformers with the kernels of this package: scoring functions, and its MultiVectorEncoder.

The functions have the names, the keywords and the shapes of ``sentence_transformers.util`` (`maxsim`, ...) and of
``sentence_transformers.multi_vector_encoder.scoring`` (`colbert_scores`, ...), so they go where that library takes a
``similarity_fct`` or ``score_functions``. Importing this module patches nothing.
"""

from colbert_fast._extras import need

need("colbert_fast.integrations.sentence_transformers", "models", {"sentence-transformers": "6", "transformers": "5.1"})

from colbert_fast.integrations.sentence_transformers.encoder import (
    MultiVectorEncoder,
    accelerate,
    restore,
    score_functions,
)
from colbert_fast.integrations.sentence_transformers.scoring import (
    colbert_kd_scores,
    colbert_scores,
    colbert_scores_pairwise,
    maxsim,
    maxsim_pairwise,
    mean_colbert_kd_scores,
    mean_colbert_scores,
    mean_colbert_scores_pairwise,
    mean_maxsim,
    mean_maxsim_pairwise,
)

__all__ = [
    "MultiVectorEncoder",
    "accelerate",
    "colbert_kd_scores",
    "colbert_scores",
    "colbert_scores_pairwise",
    "maxsim",
    "maxsim_pairwise",
    "mean_colbert_kd_scores",
    "mean_colbert_scores",
    "mean_colbert_scores_pairwise",
    "mean_maxsim",
    "mean_maxsim_pairwise",
    "restore",
    "score_functions",
]
