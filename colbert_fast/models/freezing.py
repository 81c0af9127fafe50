"""Freeze the parameters of a transformer, except those in its last layers."""

from __future__ import annotations

from torch import nn


def freeze(model: nn.Module, last_n: int, name: str) -> None:
    """Freeze all parameters of the transformer except its last n layers.

    Parameters that were frozen before stay frozen. `name` is what asked for this, for the error if the model has no
    list of layers.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        msg = f"{name} needs a transformer with a list of layers; got {type(model).__name__}"
        raise ValueError(msg)
    layers = max(lists, key=len)
    kept = {p for layer in list(layers)[max(0, len(layers) - last_n) :] for p in layer.parameters()}
    for parameter in model.parameters():
        if parameter not in kept:
            parameter.requires_grad_(False)
