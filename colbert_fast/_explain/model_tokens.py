"""Explain the score of a model for two texts. This module asks the model for its tokens and its embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from colbert_fast._encoders import encode, takes_is_query, uses_mean
from colbert_fast._explain.explanation import Explanation, explained
from colbert_fast._explain.sides import Side, Tokens, side_of_tokens, with_padding
from colbert_fast._forks import safe_after_fork


@safe_after_fork
def explain(model: Any, query: str, document: str) -> Explanation:
    """Say which document token answered each query token, and what each answer adds to the score.

    Parameters
    ----------
    model
        A late-interaction encoder: `colbert_fast.models.ColBERT`, `sentence_transformers.MultiVectorEncoder` or
        `pylate.models.ColBERT`.
    query, document
        One text each.

    Returns
    -------
    Explanation
        The score that the model itself gives to this pair, and its parts.

    Raises
    ------
    TypeError
        The model is no late-interaction encoder, or a text is no str.
    ValueError
        A text is empty or holds only white space, or is no Unicode text.
    NotImplementedError
        A row of the model's embedding does not stand for one token, because the model pools its tokens; or the model
        is an encoder of another kind, which does not tell its tokens.
        `Explanation.from_embeddings` takes such embeddings, with names that you choose.

    Examples
    --------
    >>> print(cf.explain(encoder, "capital of Germany", "Berlin is the capital."))  # doctest: +SKIP
    """
    for name, text in (("query", query), ("document", document)):
        _check_text(name, text)
    q, d = encode(model, [query], query=True)[0], encode(model, [document], query=False)[0]
    sides = _side(model, query, True, q), _side(model, document, False, d)
    return explained(*sides, q, d, mean=uses_mean(model))


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        msg = f"{name} must be one text, a str; got {type(text).__name__}"
        if isinstance(text, (list, tuple)):
            msg += f": call explain once for each {name}"
        raise TypeError(msg)
    if not text.strip():
        msg = f"{name} must have text; got {text!r}"
        raise ValueError(msg)


def _side(model: Any, text: str, query: bool, rows: Tensor) -> Side:
    """Name the rows [length, dim] of the model's embedding of a text."""
    own = getattr(model, "_tokens_of_rows", None)
    ids, kept, prompt, whole = own(text, query) if callable(own) else _tokens_of_rows(model, text, query)
    padded = sum(kept) + 1 == len(rows) and not rows[-1].any()
    if len(kept) != len(ids) or sum(kept) + padded != len(rows):
        msg = (
            f"explain needs one embedding for each token; {type(model).__name__} gave {len(rows)} embeddings for "
            f"{len(ids)} tokens: Explanation.from_embeddings takes them, with names that you choose"
        )
        raise NotImplementedError(msg)
    side = side_of_tokens(text, Tokens(ids, kept, prompt, whole, model.tokenizer))
    return with_padding(side) if padded else side


def _tokens_of_rows(model: Any, text: str, query: bool) -> tuple[list[int], list[bool], str, Any]:
    """Return what `models.ColBERT._tokens_of_rows` returns, for an encoder of sentence-transformers or PyLate."""
    if takes_is_query(model):
        options = {"output_value": None, "convert_to_numpy": False, "show_progress_bar": False}
        features = model.encode([text], is_query=query, **options)
        # A dict of lists, one entry for each text.
        ids, kept = features["input_ids"][0], features["masks"][0]
    else:
        method = getattr(model, "encode_query" if query else "encode_document", None)
        if not callable(method):
            msg = (
                f"explain cannot ask a {type(model).__name__} for its tokens: Explanation.from_embeddings takes its "
                "embeddings, with names that you choose"
            )
            raise NotImplementedError(msg)
        (features,) = method([text], output_value=None, show_progress_bar=False)
        ids, kept = features["input_ids"], features["attention_mask"]
    prompt = (getattr(model, "prompts", None) or {}).get("query" if query else "document") or ""
    tokenizer = model.tokenizer
    fast = bool(getattr(tokenizer, "is_fast", False))
    whole = tokenizer(prompt + text, truncation=False, padding=False, verbose=False, return_offsets_mapping=fast)
    return ids.tolist(), kept.bool().tolist(), prompt, whole
