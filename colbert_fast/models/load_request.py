"""What a caller asked the constructor of ColBERT for, and which of these arguments the files overrule."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from colbert_fast.models.files import Files

# Names of dtypes that torch does not know.
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass
class Request:
    """The arguments of one call of the constructor of ColBERT."""

    files: Files
    embedding_size: int | None
    device: str
    settings: dict[str, Any]
    # Names of the arguments that the user gave, even if the given value equals the default.
    given: Collection[str]
    kwargs: dict[str, Any]

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments for `MultiVectorEncoder`.

        A folder is loaded without the network. Weights are float32 unless the user asked for another dtype.
        """
        options = dict(self.kwargs)
        if self.files.is_local:
            options["local_files_only"] = True
            options.pop("revision", None)
        options["model_kwargs"] = with_dtype(options.get("model_kwargs"))
        return options

    def overruled(self, read: dict[str, Any], size: int | None) -> list[str]:
        """Return, in words, the given arguments for which a neural-cherche checkpoint has other values.

        `read` holds the settings that the files have, and `size` the dimension of their projection or None.
        """
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
    """Return the arguments of a model with "dtype" set to a torch.dtype or "auto"; without a given dtype, float32."""
    model_kwargs = dict(model_kwargs or {})
    if "dtype" in model_kwargs and "torch_dtype" in model_kwargs:
        msg = "dtype and torch_dtype are one argument that was given twice in model_kwargs: leave one of the two out"
        raise TypeError(msg)
    old = model_kwargs.pop("torch_dtype", None)
    given = model_kwargs.pop("dtype", old)
    dtype = torch.float32 if given is None else given
    if str(dtype).removeprefix("torch.") == "int8":
        msg = 'dtype="int8" needs backend="onnx" or backend="openvino"; torch computes in floating point'
        raise ValueError(msg)
    if isinstance(dtype, str) and dtype in _SHORT:
        msg = f'dtype must be "{_SHORT[dtype]}" in full; got {given!r}'
        raise ValueError(msg)
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype.removeprefix("torch."), None)
    if dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        msg = f'dtype must be a floating-point torch.dtype, its name or "auto"; got {given!r}'
        raise ValueError(msg)
    return {**model_kwargs, "dtype": dtype}
