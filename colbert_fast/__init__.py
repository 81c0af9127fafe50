"""Late-interaction (ColBERT, ColPali) scoring, fast and exact behind one import.

``import colbert_fast as cf``, then ``cf.maxsim(queries, documents)``; the encoder is ``colbert_fast.models.ColBERT``.
"""

# First, because everything below takes its time.
from colbert_fast import _interrupts as _interrupts

# isort: split

from importlib.metadata import version as _version

from colbert_fast._backends import backends
from colbert_fast._backends.cpu import get_num_threads, set_num_threads
from colbert_fast._explain import Explanation, explain
from colbert_fast._maxsim import maxsim, maxsim_pairs, maxsim_pairwise
from colbert_fast._topk import topk
from colbert_fast.packed import PackedTokens

__version__ = _version("colbert-fast")

__all__ = [
    "Explanation",
    "PackedTokens",
    "__version__",
    "backends",
    "explain",
    "get_num_threads",
    "maxsim",
    "maxsim_pairs",
    "maxsim_pairwise",
    "set_num_threads",
    "topk",
]
