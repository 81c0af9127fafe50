"""Cut lists into batches, with a progress bar."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from torch import Tensor

from colbert_fast._extras import need
from colbert_fast._integers import not_negative_int, positive_int

_Item = TypeVar("_Item")
_Rows = TypeVar("_Rows", Tensor, "np.ndarray[Any, Any]")
_Anchor = TypeVar("_Anchor")
_Positive = TypeVar("_Positive")
_Negative = TypeVar("_Negative")


@overload
def batchify(X: list[_Item], batch_size: int, desc: str = "", tqdm_bar: bool = True) -> Iterator[list[_Item]]: ...
@overload
def batchify(  # type: ignore[overload-overlap]
    X: _Rows, batch_size: int, desc: str = "", tqdm_bar: bool = True
) -> Iterator[_Rows]: ...
@overload
def batchify(
    X: Iterable[_Item], batch_size: int, desc: str = "", tqdm_bar: bool = True
) -> Iterator[Sequence[_Item]]: ...
def batchify(X: Iterable[Any], batch_size: int, desc: str = "", tqdm_bar: bool = True) -> Iterator[Any]:
    """Cut a list into batches.

    Parameters
    ----------
    X
        Anything that can be sliced, such as a list, an array or a tensor; any other iterable is read to its end first.
    batch_size
        Number of items of each batch; the last batch may be smaller.
    desc
        What the progress bar is called.
    tqdm_bar
        Whether to show a progress bar over the batches. It needs tqdm, which the extra `models` installs.

    Returns
    -------
    iterator
        The batches: slices of `X`.

    Raises
    ------
    TypeError, ValueError
        `X` is a str, a dict or not iterable; `batch_size` is not an int of 1 or more.
    ImportError
        The bar is asked for and tqdm is missing.
    """
    if isinstance(X, (str, bytes, dict)) or not isinstance(X, Iterable):
        msg = f"X must be a list; got {type(X).__name__}"
        raise TypeError(msg)
    items: Any = X if hasattr(X, "__len__") and hasattr(X, "__getitem__") else list(X)
    size = positive_int(batch_size, "batch_size")
    starts: Iterable[int] = range(0, len(items), size)
    if tqdm_bar:
        need("a progress bar (tqdm_bar=True)", "models", {"tqdm": "4.64"})
        from tqdm import tqdm

        starts = tqdm(starts, position=0, desc=desc)
    return (items[start : start + size] for start in starts)


@overload
def iter(
    X: Iterable[tuple[_Anchor, _Positive, _Negative]],
    epochs: int,
    batch_size: int,
    shuffle: bool = True,
    tqdm_bar: bool = True,
) -> Iterator[tuple[list[_Anchor], list[_Positive], list[_Negative]]]: ...
@overload
def iter(
    X: Iterable[Sequence[_Item]], epochs: int, batch_size: int, shuffle: bool = True, tqdm_bar: bool = True
) -> Iterator[tuple[list[_Item], list[_Item], list[_Item]]]: ...
def iter(
    X: Iterable[Any], epochs: int, batch_size: int, shuffle: bool = True, tqdm_bar: bool = True
) -> Iterator[tuple[list[Any], list[Any], list[Any]]]:
    """Go through training triples in batches, several times.

    Parameters
    ----------
    X
        Triples (anchor, positive, negative). The list stays as it is; neural-cherche shuffles the caller's own list.
    epochs
        How many times to go through the triples.
    batch_size
        Number of triples of each batch; the last batch of an epoch may be smaller.
    shuffle
        Whether each epoch has another order. `random.seed(n)` makes the orders repeatable: they are neural-cherche's.
    tqdm_bar
        Whether to show a progress bar for each epoch. neural-cherche always shows it.

    Returns
    -------
    iterator
        For each batch: the anchors, the positives and the negatives, as three lists.

    Raises
    ------
    TypeError, ValueError
        `X` has an item that is no triple; or a number is not an int, or too small.
    """
    if isinstance(X, (str, bytes, dict)) or not isinstance(X, Iterable):
        msg = f"X must be a list of triples (anchor, positive, negative); got {type(X).__name__}"
        raise TypeError(msg)
    triples = list(X)
    for index, triple in enumerate(triples):
        if isinstance(triple, (str, bytes, Mapping)) or not hasattr(triple, "__getitem__") or len(triple) != 3:
            msg = f"X must be a list of triples (anchor, positive, negative); X[{index}] is {triple!r}"
            raise TypeError(msg)
    epochs, batch_size = not_negative_int(epochs, "epochs"), positive_int(batch_size, "batch_size")
    return _epochs(triples, epochs, batch_size, shuffle, tqdm_bar)


def _epochs(
    triples: list[Any], epochs: int, batch_size: int, shuffle: bool, tqdm_bar: bool
) -> Iterator[tuple[list[Any], list[Any], list[Any]]]:
    for epoch in range(epochs):
        if shuffle:
            random.shuffle(triples)
        for batch in batchify(triples, batch_size, f"Epoch {epoch}", tqdm_bar):
            anchors, positives, negatives = zip(*batch, strict=True)
            yield list(anchors), list(positives), list(negatives)
