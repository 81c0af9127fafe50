"""What the constructor of ColBERT was asked for, and what of it a checkpoint overrules."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from colbert_fast.models.files import Files


@dataclass
class Request:
    """What the constructor of ColBERT was asked for."""

    files: Files
    embedding_size: int | None
    device: str
    settings: dict[str, Any]
    # Names of arguments that the user gave, even if the value is the default.
    given: Collection[str]
    kwargs: dict[str, Any]

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `MultiVectorEncoder`: never the network for a folder, float32 unless asked otherwise."""
        options = dict(self.kwargs)
        if self.files.is_local:
            options["local_files_only"] = True
            options.pop("revision", None)
        if options.get("backend", "torch") == "torch":
            options["model_kwargs"] = with_dtype(options.get("model_kwargs"))
        return options

    def overruled(self, read: dict[str, Any], size: int | None) -> list[str]:
        """What the user gave and the files of a neural-cherche checkpoint say otherwise, in words."""
        words = []
        for name, value in read.items():
            given = self.settings[name]
            if name in self.given and given != value:
                own = f"to have yours, set encoder.{name} = {given!r}"
                words.append(f"{name}={given!r} (its files say {value!r}; {own})")
        if "embedding_size" in self.given and self.embedding_size != size:
            has = "none" if size is None else f"one of {size} dimensions"
            words.append(f"embedding_size={self.embedding_size} (its projection is {has}; another needs training)")
        return words


def with_dtype(model_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments of a model with its dtype, float32 unless given, as a torch.dtype or "auto"."""
    model_kwargs = dict(model_kwargs or {})
    old = model_kwargs.pop("torch_dtype", None)
    given = model_kwargs.pop("dtype", old)
    dtype = torch.float32 if given is None else given
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype.removeprefix("torch."), None)
    if dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        msg = f'model_kwargs must have a floating-point torch.dtype, its name, or "auto" as "dtype"; got {given!r}'
        raise ValueError(msg)
    return {**model_kwargs, "dtype": dtype}
