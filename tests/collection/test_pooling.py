"""Tokens that are alike become their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from collections_of import documents, names

import colbert_fast as cf
from colbert_fast.collection import pooling

needs_scipy = pytest.mark.needs("collection")


@needs_scipy
def test_alike_tokens_are_pooled(tmp_path: Path) -> None:
    # Three directions that come 3, 2 and 1 times, with a little noise of mean 0.
    noise = torch.tensor([[0.25], [-0.25], [0.0]]) * torch.ones(3, 8)
    a, b, c = (torch.eye(8)[i] * 16 for i in range(3))
    document = torch.stack([b + noise[0, 0], a + noise[0, 0], a + noise[1, 0], c, b + noise[1, 0], a])
    with cf.Collection(tmp_path / "c") as collection:
        collection.add(["three", "one", "none"], [document, document[:1], document[:0]], pool=2)
        assert torch.equal(collection["three"].float(), torch.stack([b, a, c]))
        assert torch.equal(collection["one"].float(), document[:1])
        assert collection["none"].shape == (0, 8)
        collection.verify()


@needs_scipy
@pytest.mark.parametrize("pool", [2, 3, 100])
def test_lengths_and_sums(pool: int, tmp_path: Path) -> None:
    given = documents(20, longest=30)
    with cf.Collection(tmp_path / "c", exact="float32") as collection:
        collection.add(iter(names(20)), iter(given), pool=pool)
        for name, tokens in zip(names(20), given, strict=True):
            expected = max(1, len(tokens) // pool) if len(tokens) else 0
            # Clusters that are equally far from each other are joined together.
            assert len(collection[name]) <= expected
            assert len(collection[name]) == expected or pool < 3
            if expected == 1:
                torch.testing.assert_close(collection[name][0], tokens.mean(0))


@needs_scipy
def test_what_cannot_be_pooled(tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "c") as collection:
        with pytest.raises(ValueError, match="token 1 of document 'n'"):
            collection.add(["n"], [torch.tensor([[1.0] * 8, [torch.nan] * 8])], pool=2)
        wrong: list[tuple[Any, type[Exception]]] = [(0, ValueError), (-1, ValueError), (1.5, TypeError)]
        for pool, error in wrong:
            with pytest.raises(error, match="pool"):
                collection.add(["n"], documents(1), pool=pool)


def test_without_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colbert_fast._extras._is_there", lambda module: module != "scipy")
    with cf.Collection(tmp_path / "c") as collection:
        with pytest.raises(ImportError, match=r"pool needs scipy>=1.10 \(not installed\): pip install 'colbert-fast\["):
            collection.add(["n"], documents(1), pool=2)
        collection.add(["n"], documents(1))
        assert pooling.checked_factor(1) == 1


@needs_scipy
def test_tokens_that_look_like_distances_are_pooled(tmp_path: Path) -> None:
    """Tests fail where a library warns."""
    with cf.Collection(tmp_path / "c") as collection:
        collection.add(["zeros", "ones"], [torch.zeros(2, 2), 1 - torch.eye(2)], pool=2)
        assert collection["zeros"].tolist() == [[0, 0]]
        assert collection["ones"].tolist() == [[0.5, 0.5]]
