"""Small collections for the tests, and a plain account of what one must hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import colbert_fast as cf

CODES = ("int8", "int4+4", "int4", "int2", "int1")


def documents(n: int, dim: int = 8, longest: int = 5, seed: int = 0) -> list[Tensor]:
    """Return n documents of 0 to ``longest`` tokens. Their numbers are the same in float32 and float16."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (n,), generator=generator).tolist()
    return [torch.randn(length, dim, generator=generator).half().float() for length in lengths]


def names(n: int, first: int = 0) -> list[str]:
    return [f"d{i}" for i in range(first, first + n)]


def check_holds(collection: cf.Collection, expected: dict[str, Tensor]) -> None:
    """Assert that a collection has these documents, in this order, and no others."""
    assert len(collection) == len(expected)
    assert collection.ids() == list(collection) == list(expected)
    found = collection[list(expected)]
    assert len(found) == len(expected)
    for i, (name, tokens) in enumerate(expected.items()):
        assert name in collection
        assert torch.equal(collection[name].float(), tokens), name
        assert torch.equal(found[i].float(), tokens), name


def rows_of(items: Iterable[tuple[str, Tensor, Any]]) -> tuple[list[str], list[Tensor], list[Any]]:
    """Return ids, embeddings and metadata, each by itself."""
    ids, embeddings, metadata = zip(*items, strict=True)
    return list(ids), list(embeddings), list(metadata)
