"""Sizes may be integers of numpy or torch. They become Python ints, which can be saved as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SIZE

from colbert_fast.models import ColBERT


@pytest.mark.filterwarnings("ignore:.*has no ColBERT projection")
def test_sizes_may_be_any_integers(plain: Path, tmp_path: Path) -> None:
    sizes = {
        "embedding_size": np.int64(SIZE),
        "max_length_query": np.int32(12),
        "max_length_document": torch.tensor(20),
    }
    encoder = ColBERT(plain, device="cpu", **sizes)  # type: ignore[arg-type]
    assert type(encoder.max_length_document) is int
    encoder.save_pretrained(tmp_path / "saved")
    metadata = json.loads((tmp_path / "saved" / "metadata.json").read_text(encoding="utf-8"))
    assert (metadata["max_length_query"], metadata["max_length_document"]) == (12, 20)
    assert encoder.encode(["berlin"], max_length=np.int64(7))["embeddings"].shape == (1, 7, SIZE)
