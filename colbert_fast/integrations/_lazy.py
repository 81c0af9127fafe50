"""The encoder of an adapter: given, or loaded from a checkpoint when it is first used."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from colbert_fast._rerank import rerank

# An encoder has at least one of these methods.
_METHODS = ("encode", "encode_query", "encode_queries")
# Arguments of a checkpoint that do not change its scores, or that are no setting.
_NO_SETTINGS = ("cache_dir", "cache_folder", "device", "local_files_only", "revision", "token", "use_auth_token")


class LazyEncoder:
    """An encoder, or the path or name of a checkpoint that `colbert_fast.models.ColBERT` loads at first use.

    Copies share the encoder. A pickle holds the path or the name of the checkpoint, and never its weights.

    Parameters
    ----------
    model
        An encoder that `colbert_fast.rerank` takes, or the path or name of a checkpoint.
    **options
        Keyword arguments of `ColBERT`, if `model` is a path or a name.

    Raises
    ------
    TypeError
        `model` is neither, or `options` are given with an encoder.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        self.name: str | None = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
        methods = [] if isinstance(model, type) else [getattr(model, method, None) for method in _METHODS]
        if self.name is None and not any(map(callable, methods)):
            msg = f"model must be an encoder, or the path or name of a checkpoint; got {type(model).__name__}"
            raise TypeError(msg)
        if self.name is None and options:
            msg = f"only a checkpoint that is loaded here takes {', '.join(options)}; model is an encoder already"
            raise TypeError(msg)
        self._options = options
        self._encoder = model if self.name is None else None
        self._lock = Lock()

    @staticmethod
    def of(model: Any, device: str | None = None, model_kwargs: Mapping[str, Any] | None = None) -> LazyEncoder:
        """Return a LazyEncoder of a model, with its options as most libraries name them.

        A model that is a LazyEncoder already is returned as it is, if it has no other options than the given ones.
        """
        options = dict(model_kwargs or {})
        if device is not None and options.setdefault("device", device) != device:
            msg = f"device is {device!r}, but model_kwargs['device'] is {options['device']!r}: give it once"
            raise TypeError(msg)
        if isinstance(model, LazyEncoder) and options in ({}, model._options):
            return model
        return LazyEncoder(model, **options)

    def get(self) -> Any:
        """Return the encoder. The first call loads the checkpoint; other threads wait for it."""
        with self._lock:
            if self._encoder is None:
                from colbert_fast.models import ColBERT

                self._encoder = ColBERT(self.name, **self._options)  # type: ignore[arg-type]
            return self._encoder

    def settings(self) -> dict[str, str]:
        """Return as text the options that may change a score, apart from the revision."""
        return {name: str(value) for name, value in self._options.items() if name not in _NO_SETTINGS}

    def rank(
        self, query: str, texts: Sequence[str], k: int | None = None, normalize: bool = False
    ) -> list[tuple[int, float]]:
        """Return the numbers and scores of the k best texts, best first. See :func:`colbert_fast.rerank`."""
        if not isinstance(query, str):
            msg = f"query must be one str; got {type(query).__name__}"
            raise TypeError(msg)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                msg = f"each document must have a text, a str; the text of documents[{i}] is {type(text).__name__}"
                raise TypeError(msg)
        if not texts:
            return []
        found = rerank(self.get(), query, list(enumerate(texts)), k, normalize=normalize)
        return [(hit["id"], hit["score"]) for hit in found]

    def __repr__(self) -> str:
        return f"LazyEncoder({self.name!r})" if self.name is not None else f"<{type(self._encoder).__name__}>"

    def __copy__(self) -> LazyEncoder:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyEncoder:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.name is None:
            msg = "an encoder is not pickled, because its weights would be; give the path or name of its checkpoint"
            raise TypeError(msg)
        return _loaded_later, (self.name, self._options)


def _loaded_later(name: str, options: dict[str, Any]) -> LazyEncoder:
    return LazyEncoder(name, **options)
