"""The texts that callers hand in: checking them, and pairing queries with documents."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """Pairs that are scored together, and the texts that must be embedded for them."""

    queries: Tensor  # numbers of the distinct queries, int64
    documents: Tensor  # numbers of the distinct documents, int64
    pairs: Tensor  # int64 [p, 2]: each pair as places in `queries` and in `documents`
    places: Tensor  # int64 [p]: where the score of each pair belongs in the result


def as_texts(name: str, texts: Iterable[str]) -> list[str]:
    """The argument `name` as a list of str; TypeError or ValueError unless each is a text that can be tokenized."""
    if isinstance(texts, (str, bytes)):
        msg = f"{name} must be a list of str; got one {type(texts).__name__}: put it in a list"
        raise TypeError(msg)
    if not isinstance(texts, Iterable):
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
    """Raise ValueError if a text holds half of a surrogate pair, which no tokenizer takes."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        msg = (
            f"{name} must be Unicode text; it has the lone surrogate {text[error.start]!r} at character "
            f'{error.start}: text.encode("utf-8", "replace").decode() gives a text without it'
        )
        raise ValueError(msg) from None


def pair_up(queries: list[str], documents: list[str]) -> tuple[list[str], list[str], Tensor]:
    """Pair two lists of one length, or one text with each of a list; else ValueError.

    Returns
    -------
    queries, documents, pairs
        The distinct texts of each side, and the pairs as numbers of these, int64 [p, 2].
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
    """Split pairs so that the embeddings of each part take about `held` bytes, or one text of each side.

    The side that takes fewer bytes in all is kept, in blocks of at most half of `held`; the texts of the other side
    pass by it, and each is embedded once for each block that it meets: in most cases, once.

    Parameters
    ----------
    pairs
        int64 [p, 2]: numbers of a query and of a document.
    query_sizes, document_sizes
        int64: bytes of the embeddings of each.
    held
        Bytes.
    """
    sizes = (query_sizes, document_sizes)
    kept = 0 if int(query_sizes.sum()) <= int(document_sizes.sum()) else 1
    block = _blocks(sizes[kept], held // 2)[pairs[:, kept]]
    # Within a block the pairs go by the texts that pass, and in their order.
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
    """Number the blocks into which things of these sizes are cut, in order, each of about `most` bytes."""
    return (sizes.cumsum(0) - sizes) // max(1, most)


def _runs(*keys: Tensor) -> Iterator[tuple[int, int]]:
    """Where runs of equal keys start and end."""
    n = len(keys[0])
    new = torch.zeros(n, dtype=torch.bool)
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    starts = [0, *new.nonzero().flatten().tolist(), n] if n else [0]
    return itertools.pairwise(starts)
