"""One step of training, as neural-cherche's `train` has it. It needs the extra `models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colbert_fast._absent import no_attribute
from colbert_fast.train.colbert import train_colbert

__all__ = ["train_colbert"]


# Type checkers do not see it: every misspelt name would have a type for them.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise no_attribute(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)
