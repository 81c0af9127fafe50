"""Fields that adapters share: those whose classes are pydantic's.

A class declares ``device`` and ``model_kwargs`` before ``model``, because the checkpoint is loaded with them. None of
these fields can be assigned later.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationInfo

from colbert_fast.integrations._lazy import LazyEncoder

# An argument that is not known would have no effect.
CONFIG = ConfigDict(extra="forbid", protected_namespaces=())


def _lazy_encoder(model: Any, info: ValidationInfo) -> LazyEncoder:
    return LazyEncoder.of(model, info.data.get("device"), info.data.get("model_kwargs"))


Device = Annotated[str | None, Field(frozen=True)]
ModelOptions = Annotated[dict[str, Any], Field(frozen=True)]
Model = Annotated[Any, BeforeValidator(_lazy_encoder), PlainSerializer(lambda model: model.name), Field(frozen=True)]
