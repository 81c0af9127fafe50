"""The texts that callers give: check them, pair queries with documents, and split the pairs into windows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """p pairs that are scored together, and the texts that must be embedded to score them. All tensors are int64."""

    queries: Tensor  # numbers of the distinct queries
    documents: Tensor  # numbers of the distinct documents
    pairs: Tensor  # [p, 2]: each pair as an index into `queries` and an index into `documents`
    places: Tensor  # [p]: the index in the result at which the score of each pair belongs


def as_texts(name: str, texts: Iterable[str]) -> list[str]:
    """Return the argument `name` as a list of str. Raise TypeError or ValueError for what cannot be tokenized."""
    if isinstance(texts, (str, bytes)):
        msg = f"{name} must be a list of str; got one {type(texts).__name__}: put it in a list"
        raise TypeError(msg)
    # A mapping would give its keys, and a set an order that nobody knows.
    if not isinstance(texts, Iterable) or isinstance(texts, (Mapping, set, frozenset)):
        msg = f"{name} must be a list of str; got {type(texts).__name__}"
        raise TypeError(msg)
    listed = list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            msg = f"{name} must be a list of str; {name}[{index}] is {type(text).__name__}"
            raise TypeError(msg)
        check_unicode(f"{name}[{index}]", text)
    return listed


def check_unicode(name: str, text: str) -> None:
    """Raise ValueError if a text holds half of a surrogate pair, which no tokenizer accepts."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        msg = (
            f"{name} must be Unicode text; it has the lone surrogate {text[error.start]!r} at character "
            f'{error.start}: text.encode("utf-8", "replace").decode() replaces it'
        )
        raise ValueError(msg) from None


def pair_up(queries: list[str], documents: list[str]) -> tuple[list[str], list[str], Tensor]:
    """Pair two lists of the same length item by item, or one text with every text of the other list.

    Returns
    -------
    queries, documents, pairs
        The distinct texts of each side, and the pairs, int64 [p, 2]: an index into `queries` and one into `documents`.

    Raises
    ------
    ValueError
        The two lists have different lengths, and neither has length 1.
    """
    if len(queries) != len(documents) and 1 not in (len(queries), len(documents)):
        msg = (
            "queries and documents must have the same length, or one of them length 1; "
            f"got {len(queries)} queries and {len(documents)} documents"
        )
        raise ValueError(msg)
    count = len(documents) if len(queries) == 1 else len(queries)
    distinct: list[dict[str, int]] = []
    columns: list[list[int]] = []
    for texts in (queries, documents):
        found: dict[str, int] = {}
        column = [found.setdefault(text, len(found)) for text in texts]
        columns.append(column * count if len(texts) == 1 else column)
        distinct.append(found if count else {})
    return list(distinct[0]), list(distinct[1]), torch.tensor(columns, dtype=torch.int64).reshape(2, count).T


def windows(pairs: Tensor, query_sizes: Tensor, document_sizes: Tensor, held: int) -> Iterator[Window]:
    """Split pairs into windows, so that the embeddings of one window take about `held` bytes.

    A window has at least one text of each side, even if these texts alone take more bytes.

    One side is kept: the side whose embeddings take fewer bytes in all. It is cut into blocks of at most half of `held`
    bytes. The texts of the other side pass by each block, so a text of the other side is embedded once for each block
    with which it has a pair. In most cases there is one block, so each text is embedded once.

    Parameters
    ----------
    pairs
        int64 [p, 2]: the number of a query and the number of a document.
    query_sizes, document_sizes
        int64: the number of bytes that the embeddings of each query, or of each document, take.
    held
        Number of bytes of one window.
    """
    sizes = (query_sizes, document_sizes)
    kept = 0 if int(query_sizes.sum()) <= int(document_sizes.sum()) else 1
    block = _blocks(sizes[kept], held // 2)[pairs[:, kept]]
    # Sort the pairs by block, and within a block by the number of the text that passes.
    order = torch.argsort(pairs[:, 1 - kept], stable=True)
    order = order[torch.argsort(block[order], stable=True)]
    passing, block = pairs[order, 1 - kept], block[order]
    new = torch.ones(len(order), dtype=torch.bool)
    new[1:] = (passing[1:] != passing[:-1]) | (block[1:] != block[:-1])
    window = _blocks(sizes[1 - kept][passing[new]], held // 2)[new.cumsum(0) - 1]
    for start, end in _runs(window, block):
        places = order[start:end]
        queries, q = pairs[places, 0].unique(return_inverse=True)
        documents, d = pairs[places, 1].unique(return_inverse=True)
        yield Window(queries, documents, torch.stack([q, d], dim=1), places)


def _blocks(sizes: Tensor, most: int) -> Tensor:
    """Cut items of these sizes, in their order, into blocks of about `most` bytes. Return the block of each item."""
    return (sizes.cumsum(0) - sizes) // max(1, most)


def _runs(*keys: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each run of positions at which all keys stay equal."""
    n = len(keys[0])
    new = torch.zeros(n, dtype=torch.bool)
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    starts = [0, *new.nonzero().flatten().tolist(), n] if n else [0]
    return itertools.pairwise(starts)
