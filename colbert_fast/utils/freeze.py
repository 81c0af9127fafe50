"""Freeze the lower layers of a transformer, so that training changes the last layers only."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from colbert_fast import models
from colbert_fast._integers import not_negative_int
from colbert_fast.models.freezing import freeze

_Model = TypeVar("_Model", bound=nn.Module)


def freeze_layers(model: _Model, n_layers: int = 5) -> _Model:
    """Freeze all parameters of the transformer except its last n layers.

    neural-cherche 1.4.3 has a function of this name that ignores `n_layers`: it counts tensors and not layers, and
    leaves five tensors of the masked-language-model head trainable, so the transformer does not learn at all. This
    function does what the name says.

    Parameters
    ----------
    model
        A `models.ColBERT`, whose projection stays trainable, or a transformer with a list of layers.
    n_layers
        The number of last layers that are not frozen. 0: all layers are frozen. A parameter that was frozen before
        stays frozen.

    Returns
    -------
    torch.nn.Module
        The same model, changed in place.

    Raises
    ------
    TypeError
        The model is no module of torch, or `n_layers` is no int.
    ValueError
        `n_layers` is below 0, or the model has no list of layers.
    """
    if not isinstance(model, nn.Module):
        msg = f"model must be a ColBERT or a transformer; got {type(model).__name__}"
        raise TypeError(msg)
    last_n = not_negative_int(n_layers, "n_layers")
    freeze(model.model if isinstance(model, models.ColBERT) else model, last_n, "freeze_layers")
    return model
