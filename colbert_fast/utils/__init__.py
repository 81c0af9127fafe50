"""What training and evaluation need beside the encoder, as neural-cherche's `utils` has it."""

from __future__ import annotations

from colbert_fast.utils.freeze import freeze_layers
from colbert_fast.utils.scores import colbert_scores

__all__ = ["colbert_scores", "freeze_layers"]
