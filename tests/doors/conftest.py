"""A tiny encoder for the adapters, and no network."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import Counting

# Haystack reads it when it is imported.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
sys.path.append(str(Path(__file__).parents[1] / "encoders"))  # the parts of a tiny transformer: tiny.py


@pytest.fixture(autouse=True)
def offline(no_network: None) -> None:
    """Every test of this folder fails if it asks the network."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in neural-cherche's layout. Padding scores nothing, as in sentence-transformers."""
    from tiny import HIDDEN, METADATA, SIZE, save_model, write_json

    folder = save_model(tmp_path_factory.mktemp("checkpoint"))
    torch.save({"weight": torch.randn(SIZE, HIDDEN)}, folder / "linear.pt")
    write_json(folder / "metadata.json", {**METADATA, "max_length_query": 30, "padding": True})
    return str(folder)


@pytest.fixture(scope="session")
def loaded(checkpoint: str) -> Any:
    from colbert_fast.models import ColBERT

    return ColBERT(checkpoint, device="cpu")


@pytest.fixture
def encoder(loaded: Any) -> Counting:
    return Counting(loaded)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, loaded: Any, checkpoint: str) -> list[tuple[str, dict[str, Any]]]:
    """The checkpoints that adapters load, one after the other. Each gets the encoder that is there."""
    import colbert_fast.models

    asked = []

    def load(name: str, **options: Any) -> Any:
        asked.append((name, options))
        assert name == checkpoint
        return loaded

    monkeypatch.setattr(colbert_fast.models, "ColBERT", load, raising=False)
    return asked
