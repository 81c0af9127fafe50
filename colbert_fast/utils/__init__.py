"""What neural-cherche's `utils` has for ColBERT: batches and scores of training data, collections, and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colbert_fast._absent import no_attribute
from colbert_fast.utils.batches import batchify, iter
from colbert_fast.utils.beir import read_beir
from colbert_fast.utils.datasets import get_beir_triples, load_beir
from colbert_fast.utils.duplicates import duplicates_queries_warning
from colbert_fast.utils.scores import colbert_scores

if TYPE_CHECKING:
    from colbert_fast.utils.freeze import freeze_layers
    from colbert_fast.utils.measures import evaluate

__all__ = [
    "batchify",
    "colbert_scores",
    "duplicates_queries_warning",
    "evaluate",
    "freeze_layers",
    "get_beir_triples",
    "iter",
    "load_beir",
    "read_beir",
]


# `evaluate` and `freeze_layers` need the packages of an extra. Type checkers do not see this: every misspelt name would
# have a type for them.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "evaluate":
            from colbert_fast.utils.measures import evaluate

            return evaluate
        if name == "freeze_layers":
            from colbert_fast.utils.freeze import freeze_layers

            return freeze_layers
        raise no_attribute(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)
