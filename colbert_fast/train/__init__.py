"""One step of training, as neural-cherche's `train` has it. It needs the extra `models`."""

from __future__ import annotations

from colbert_fast.train.colbert import train_colbert

__all__ = ["train_colbert"]
