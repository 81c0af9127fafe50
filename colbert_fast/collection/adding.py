"""Turns what a user adds into batches of documents, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from colbert_fast._lowering import lower
from colbert_fast.collection import checks
from colbert_fast.collection.changes import Batch


def batches(
    ids: Iterable[str], embeddings: Any, metadata: Iterable[Mapping[str, Any] | None] | None, pool: int
) -> tuple[Iterator[Batch], bool]:
    """Return batches, and whether they are to be added in one transaction."""
    names = checks.ids(ids, "ids")
    tokens, _ = lower(embeddings, None, "embeddings")
    if len(tokens) != len(names):
        msg = f"ids must have one entry for each of {len(tokens)} documents; got {len(names)}"
        raise ValueError(msg)
    texts = checks.metadata_texts(None if metadata is None else list(metadata), len(names))
    return iter([Batch(names, tokens, texts)]), True
