"""Texts to embeddings with any late-interaction encoder that Python users have."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from colbert_fast.packed import PackedTokens

# What an encoder must have; the error of `encode` lists it.
_KINDS = (
    "encode_queries() and encode_documents() (colbert_fast.models.ColBERT), "
    "encode_query() and encode_document() (sentence_transformers.MultiVectorEncoder), "
    "or encode(is_query=) (pylate.models.ColBERT)"
)


def encode(
    model: Any, texts: Sequence[Any], *, query: bool, show_progress_bar: bool = False, **options: Any
) -> PackedTokens:
    """Embed texts with an encoder of this package, of sentence-transformers or of PyLate.

    Parameters
    ----------
    model
        The encoder.
    texts
        n texts, or whatever else the encoder takes, such as images.
    query
        True: embed as queries. False: embed as documents.
    show_progress_bar
        Whether the encoder shows its progress bar.
    **options
        Other arguments of the encoder's method. All three encoders have ``batch_size``.

    Returns
    -------
    PackedTokens
        n items of ``[length, dim]``, in the order of the texts, on the device of the encoder.

    Raises
    ------
    TypeError
        The model is no late-interaction encoder.
    ValueError
        The model gives more or fewer embeddings than there are texts.
    """
    texts = list(texts)
    ours = getattr(model, "encode_queries" if query else "encode_documents", None)
    if callable(ours):
        found = ours(texts, show_progress_bar=show_progress_bar, **options)
    elif not texts:
        found = []
    elif takes_is_query(model):
        # PyLate's encoder has encode_query() too, from its base class, which would give one vector for each text.
        found = model.encode(
            texts, is_query=query, convert_to_tensor=True, show_progress_bar=show_progress_bar, **options
        )
    else:
        theirs = getattr(model, "encode_query" if query else "encode_document", None)
        if not callable(theirs):
            msg = f"the model must have {_KINDS}; got {type(model).__name__}"
            raise TypeError(msg)
        # MultiVectorEncoder gives a list of tensors, and refuses convert_to_tensor.
        found = theirs(texts, show_progress_bar=show_progress_bar, **options)
    if not isinstance(found, PackedTokens):
        found = _packed(found)
    if len(found) != len(texts):
        msg = f"the model must give one embedding for each of the {len(texts)} texts; got {len(found)} embeddings"
        raise ValueError(msg)
    return found


def _packed(found: Any) -> PackedTokens:
    if not isinstance(found, list) or any(getattr(item, "ndim", 0) != 2 for item in found):
        msg = (
            f"the model must give a list of [length, dim] embeddings, one for each text; got {_told(found)}. "
            "A SentenceTransformer gives one embedding for a text: take a MultiVectorEncoder"
        )
        raise TypeError(msg)
    return PackedTokens.from_list(found)


def uses_mean(model: Any) -> bool:
    """Return whether the model's own score is MeanMaxSim, which divides by the number of query tokens."""
    encoder = getattr(model, "encoder", model)
    name = getattr(encoder, "similarity_fn_name", None)
    return str(getattr(name, "value", name)).lower() == "meanmaxsim"


def takes_is_query(model: Any) -> bool:
    """Return whether the encoder is PyLate's, whose encode() makes queries and documents."""
    encode_ = getattr(model, "encode", None)
    return callable(encode_) and "is_query" in inspect.signature(encode_).parameters


def _told(found: Any) -> str:
    shape = getattr(found, "shape", None)
    return type(found).__name__ + (f" {list(shape)}" if shape is not None else "")
