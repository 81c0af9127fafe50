"""Six small documents, whose numbers are the same in float32 and float16, and a check that a collection has them."""

from __future__ import annotations

import torch
from torch import Tensor

import colbert_fast as cf

IDS = [f"d{i}" for i in range(6)]
DIM = 8


def same_length() -> list[Tensor]:
    return list(torch.randn(6, 3, DIM, generator=torch.Generator().manual_seed(0)).half().float())


def ragged() -> list[Tensor]:
    flat = torch.randn(15, DIM, generator=torch.Generator().manual_seed(1)).half().float()
    return list(flat.split([2, 4, 0, 5, 1, 3]))


def check(collection: cf.Collection, items: list[Tensor]) -> None:
    assert collection.ids() == IDS
    for name, item in zip(IDS, items, strict=True):
        assert torch.equal(collection[name].float(), item)
