"""The errors for names that are not in a module of neural-cherche's facade."""

from __future__ import annotations

# neural-cherche's names for its two other families of models.
_SPARSE = frozenset(
    {
        *("Splade", "SparseEmbed", "Flops", "FlopsScheduler", "train_splade", "train_sparse_embed"),
        *("sparse_scores", "dense_scores", "pairs_dense_scores"),
    }
)


def no_attribute(module: str, name: str) -> AttributeError:
    """Return the error for a name that ``module`` does not have; it says so if the name is about sparse models."""
    if name in _SPARSE:
        msg = (
            f"{module}.{name} does not exist: Splade and SparseEmbed are sparse models, and colbert_fast has "
            "late-interaction models only; sentence-transformers trains and runs Splade (SparseEncoder)"
        )
        return AttributeError(msg, name=name)
    return AttributeError(f"module {module!r} has no attribute {name!r}", name=name)
