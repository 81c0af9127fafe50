"""One step of training a late-interaction encoder on triples of a query, a positive and a negative document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from colbert_fast import losses, models, utils
from colbert_fast._integers import not_negative_int, positive_int
from colbert_fast.models.texts import as_texts
from colbert_fast.packed import Tokens
from colbert_fast.utils.scores import check_triples


def train_colbert(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    anchor: Iterable[str],
    positive: Iterable[str],
    negative: Iterable[str],
    in_batch_negatives: bool = False,
    step: int | None = None,
    gradient_accumulation_steps: int = 50,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Compute the ranking loss of n triples and its gradients, and let the optimizer step when it is time.

    neural-cherche's `train.train_colbert` takes the same arguments and gives the same losses for the same checkpoint.
    Texts pass through the transformer at their own length and are scored at their own length, without padding to the
    maximum length.

    Parameters
    ----------
    model
        A `models.ColBERT`, or a module around it, such as `DistributedDataParallel`: `model(texts, query_mode=...)`
        must return `{"embeddings": [n, length, dim]}`. The mode of the model stays as it is: a new encoder is in eval
        mode and trains without dropout, as in neural-cherche; `model.train()` switches dropout on.
    optimizer
        Made from `model.parameters()`.
    anchor
        n queries, or one query for all documents.
    positive
        The document that answers each query.
    negative
        A document that does not answer the query, for each query.
    in_batch_negatives
        Whether the positive document of another query of the batch is a second negative document of each query.
    step
        The number of this step, from 0. The gradients of `gradient_accumulation_steps` steps are averaged, and the
        optimizer steps at the last of them. Gradients of a rest of steps at the end of the training are not used.
        None: the optimizer steps at each call.
    gradient_accumulation_steps
        See `step`. Without `step` it is not used.
    **kwargs
        Other values for this call, as for `ColBERT.forward`: `truncation`, `add_special_tokens`, `padding`,
        `max_length`.

    Returns
    -------
    dict
        "loss": the loss of this batch, a tensor without dimensions, before the optimizer has stepped. Its graph is
        used up.

    Raises
    ------
    TypeError
        The texts are not lists of str; a number is no int; the model or the optimizer is none; or an option does not
        exist.
    ValueError
        The three lists do not fit; or a number is too small.

    Warns
    -----
    UserWarning
        Once per list, with the number of texts that were cut; and if `in_batch_negatives` has only one triple.
    """
    # A Sequential, such as a MultiVectorEncoder, takes a single argument and no query_mode.
    if not isinstance(model, nn.Module) or isinstance(model, nn.Sequential):
        msg = f"model must be a models.ColBERT or a module around one; got {type(model).__name__}"
        raise TypeError(msg)
    lists = {
        name: as_texts(name, texts)
        for name, texts in {"anchor": anchor, "positive": positive, "negative": negative}.items()
    }
    check_triples({name: len(texts) for name, texts in lists.items()}, in_batch_negatives)
    accumulated = positive_int(gradient_accumulation_steps, "gradient_accumulation_steps")
    number = None if step is None else not_negative_int(step, "step")
    if not all(callable(getattr(optimizer, method, None)) for method in ("step", "zero_grad")):
        msg = f"optimizer must be an optimizer of torch; got {type(optimizer).__name__}"
        raise TypeError(msg)
    scores = utils.colbert_scores(
        anchor_embeddings=_embeddings(model, lists["anchor"], True, kwargs),
        positive_embeddings=_embeddings(model, lists["positive"], False, kwargs),
        negative_embeddings=_embeddings(model, lists["negative"], False, kwargs),
        in_batch_negatives=in_batch_negatives,
    )
    loss: Tensor = losses.Ranking()(**scores)
    (loss if number is None else loss / accumulated).backward()
    if number is None or (number + 1) % accumulated == 0:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"loss": loss}


def _embeddings(model: nn.Module, texts: list[str], query_mode: bool, options: dict[str, Any]) -> Tokens:
    """Embed texts with gradients: packed if the model can do this, or else padded."""
    if isinstance(model, models.ColBERT) and type(model).forward is models.ColBERT.forward:
        options = {**options, "packed": True}
    found: Tokens = model(texts, query_mode=query_mode, **options)["embeddings"]
    return found
