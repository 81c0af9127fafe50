"""Late-interaction (ColBERT, ColPali) scoring, fast and exact behind one import.

``import colbert_fast as cf``, then ``cf.maxsim(queries, documents)``; the encoder is ``colbert_fast.models.ColBERT``.
"""

# First, because everything below takes its time, and because much of it would fail in its own way in an archive, or
# beside an old torch.
from colbert_fast import _interrupts as _interrupts
from colbert_fast import _unpacked as _unpacked

# isort: split

from colbert_fast import _required as _required

# isort: split

from typing import TYPE_CHECKING

from colbert_fast._argmax import maxsim_with_argmax
from colbert_fast._backends import backends
from colbert_fast._environment import own_version as _own_version
from colbert_fast._explain import Explanation, explain
from colbert_fast._maxsim import maxsim, maxsim_pairs, maxsim_pairwise
from colbert_fast._rerank import rerank
from colbert_fast._threads import get_num_threads, set_num_threads
from colbert_fast._topk import topk
from colbert_fast.packed import PackedTokens

if TYPE_CHECKING:
    from colbert_fast.collection import Collection

__version__ = _own_version()

__all__ = [
    "Collection",
    "Explanation",
    "PackedTokens",
    "__version__",
    "backends",
    "explain",
    "get_num_threads",
    "maxsim",
    "maxsim_pairs",
    "maxsim_pairwise",
    "maxsim_with_argmax",
    "rerank",
    "set_num_threads",
    "topk",
]


# Type checkers do not see it: every misspelt name would have a type for them.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # Imported at first use, with the database of the standard library.
        if name == "Collection":
            from colbert_fast.collection import Collection

            globals()[name] = Collection
            return Collection
        msg = f"module {__name__!r} has no attribute {name!r}"
        if name in _PACKAGES:
            msg += f", which is a package: import it by `from {__name__} import {name}`"
        raise AttributeError(msg)


# What ``cf.<tab>`` shows: the names above, and the packages of public names that were imported.
_PACKAGES = ("collection", "integrations", "losses", "models", "rank", "retrieve", "train", "utils")


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in _PACKAGES if name in globals())])
