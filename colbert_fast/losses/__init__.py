"""The loss with which `colbert_fast.train` trains an encoder, as neural-cherche's `losses` has it."""

from __future__ import annotations

from colbert_fast.losses.ranking import Ranking

__all__ = ["Ranking"]
