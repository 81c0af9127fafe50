"""The MultiVectorEncoder of sentence-transformers, whose similarities come from the kernels of this package."""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from typing import Any, cast

import sentence_transformers
from torch import Tensor

from colbert_fast._encoders import uses_mean
from colbert_fast.integrations.sentence_transformers import scoring


class MultiVectorEncoder(sentence_transformers.MultiVectorEncoder):
    """``sentence_transformers.MultiVectorEncoder`` with a faster ``similarity`` and ``similarity_pairwise``.

    Constructor, encoding, training, saving and loading are the library's own, and a saved folder is the same. Both
    methods follow ``similarity_fn_name``, ``"maxsim"`` or ``"meanmaxsim"``, whenever it is set.
    """

    def similarity(self, embeddings1: Any, embeddings2: Any, **kwargs: Any) -> Tensor:
        """Score every query against every document: :func:`maxsim`, or :func:`mean_maxsim`.

        Parameters
        ----------
        embeddings1
            Queries, in any form that ``colbert_fast.maxsim`` takes.
        embeddings2
            Documents, likewise.
        **kwargs
            Further arguments of :func:`maxsim`: ``a_mask``, ``b_mask``, ``chunk_elements``, ``length_normalize``,
            ``device``.

        Returns
        -------
        torch.Tensor
            ``[A, B]`` on the device of the documents.
        """
        score = scoring.mean_maxsim if uses_mean(self) else scoring.maxsim
        return score(embeddings1, embeddings2, **kwargs)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any, **kwargs: Any) -> Tensor:
        """Score query i against document i: :func:`maxsim_pairwise`, or :func:`mean_maxsim_pairwise`.

        The arguments are as in :meth:`similarity`.

        Returns
        -------
        torch.Tensor
            ``[A]`` on the device of the documents.
        """
        score = scoring.mean_maxsim_pairwise if uses_mean(self) else scoring.maxsim_pairwise
        return score(embeddings1, embeddings2, **kwargs)


def accelerate(model: sentence_transformers.MultiVectorEncoder) -> MultiVectorEncoder:
    """Give an encoder the ``similarity`` and ``similarity_pairwise`` of :class:`MultiVectorEncoder`, in place.

    Only the class of the object changes, so the weights, the hooks and every reference to the encoder stay. Copies,
    pickles and the processes of ``start_multi_process_pool`` keep the methods. To accelerate twice changes nothing.

    Parameters
    ----------
    model
        The encoder: ``sentence_transformers.MultiVectorEncoder``, or a subclass that does not define these two
        methods.

    Returns
    -------
    MultiVectorEncoder
        The same object. :func:`restore` undoes it.

    Raises
    ------
    TypeError
        ``model`` is no ``sentence_transformers.MultiVectorEncoder``, or its class has similarities of its own.
    """
    _check(model)
    if not isinstance(model, MultiVectorEncoder):
        model.__class__ = _accelerated(type(model))
    return cast(MultiVectorEncoder, model)


def restore(model: sentence_transformers.MultiVectorEncoder) -> sentence_transformers.MultiVectorEncoder:
    """Give an encoder the library's own ``similarity`` and ``similarity_pairwise`` again, in place.

    Parameters
    ----------
    model
        An encoder that :func:`accelerate` changed, or a :class:`MultiVectorEncoder`. Any other encoder stays as it is.

    Returns
    -------
    sentence_transformers.MultiVectorEncoder
        The same object.

    Raises
    ------
    TypeError
        ``model`` is no ``sentence_transformers.MultiVectorEncoder``, or of a subclass of :class:`MultiVectorEncoder`
        that somebody wrote.
    """
    _check(model)
    kind: Any = type(model)
    if isinstance(kind, _Made):
        model.__class__ = kind._original
    elif kind is MultiVectorEncoder:
        model.__class__ = sentence_transformers.MultiVectorEncoder
    elif issubclass(kind, MultiVectorEncoder):
        msg = f"model must be an encoder that accelerate changed; {kind.__name__} is a subclass that was defined so"
        raise TypeError(msg)
    return model


def score_functions(
    model: sentence_transformers.MultiVectorEncoder, chunk_elements: int | None = None
) -> dict[str, Callable[..., Tensor]]:
    """Return the ``score_functions`` of MultiVectorInformationRetrievalEvaluator and MultiVectorNanoBEIREvaluator.

    These two evaluators choose their function by the name of the similarity and do not ask the model, so they need
    this argument even for an accelerated model. The names of their metrics stay the same.

    Parameters
    ----------
    model
        The encoder to evaluate: its ``similarity_fn_name`` says which function.
    chunk_elements
        As in ``colbert_fast.maxsim``. The evaluators take no ``chunk_elements`` of their own beside
        ``score_functions``.

    Returns
    -------
    dict
        One function, :func:`maxsim` or :func:`mean_maxsim`, under the name of the similarity.

    Raises
    ------
    TypeError
        ``model`` is no ``sentence_transformers.MultiVectorEncoder``.
    """
    _check(model)
    score: Callable[..., Tensor] = scoring.mean_maxsim if uses_mean(model) else scoring.maxsim
    if chunk_elements is not None:
        score = functools.partial(score, chunk_elements=chunk_elements)
    return {model.similarity_fn_name: score}


def _check(model: Any) -> None:
    if not isinstance(model, sentence_transformers.MultiVectorEncoder):
        msg = f"model must be a sentence_transformers.MultiVectorEncoder; got {type(model).__name__}"
        raise TypeError(msg)


class _Made(type(sentence_transformers.MultiVectorEncoder)):  # type: ignore[misc]
    """The type of the classes that :func:`accelerate` makes. They are in no module, so pickle makes them again."""

    _original: type[sentence_transformers.MultiVectorEncoder]


@functools.cache
def _accelerated(kind: type[sentence_transformers.MultiVectorEncoder]) -> type[MultiVectorEncoder]:
    """Return the class that has our similarities and else everything of ``kind``."""
    if kind is sentence_transformers.MultiVectorEncoder:
        return MultiVectorEncoder
    theirs = sentence_transformers.MultiVectorEncoder
    own = [n for n in ("similarity", "similarity_pairwise") if getattr(kind, n) is not getattr(theirs, n)]
    if own:
        msg = f"{kind.__name__} defines {' and '.join(own)} itself, which accelerate would replace"
        raise TypeError(msg)
    made = _Made(kind.__name__, (kind, MultiVectorEncoder), {"__module__": kind.__module__})
    made._original = kind
    return made


def _reduced(made: _Made) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return _accelerated, (made._original,)


copyreg.pickle(_Made, _reduced)
