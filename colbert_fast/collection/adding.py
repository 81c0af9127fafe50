"""Turns what a user adds into batches of documents, each with its id and its metadata, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from colbert_fast import _packed_files
from colbert_fast._safetensors import MappedFile
from colbert_fast.collection import checks, pooling
from colbert_fast.collection.changes import Batch
from colbert_fast.collection.incoming import Incoming, pieces
from colbert_fast.packed import PackedTokens

_Metadata = Iterable[Mapping[str, Any] | None] | None


def batches(
    ids: Iterable[str] | None, embeddings: Any, metadata: _Metadata, pool: int, *, lengths: Any = None
) -> tuple[Iterator[Batch], bool]:
    """Return batches, and whether they are to be added in one transaction. For the arguments see ``Collection.add``."""
    pool = pooling.checked_factor(pool)
    if isinstance(embeddings, (str, os.PathLike)):
        ids, embeddings = _of_file(embeddings, ids)
    if ids is None:
        msg = "ids can be None only for a file that holds ids, as `colbert-fast encode` writes them"
        raise TypeError(msg)
    incoming = pieces(embeddings, lengths)
    names = _listed(ids, "ids")
    if incoming.known is not None and isinstance(names, list) and len(names) != incoming.known:
        msg = f"ids must have one entry for each of {incoming.known} documents; got {len(names)}"
        if lengths is None and getattr(embeddings, "ndim", 3) == 2:
            msg = (
                f"embeddings of shape {list(embeddings.shape)} are one document, and there are {len(names)} ids; if "
                "they are the tokens of all documents, give lengths, which says how many tokens each document has"
            )
        raise ValueError(msg)
    described = None if metadata is None else _listed(metadata, "metadata")
    if isinstance(names, list) and isinstance(described, list) and len(described) != len(names):
        msg = f"metadata must have one entry for each of {len(names)} documents; got {len(described)}"
        raise ValueError(msg)
    incoming = incoming._replace(pieces=pooling.pooled(incoming.pieces, pool))
    return _named(names, incoming, described), incoming.whole


def _of_file(path: str | os.PathLike[str], ids: Iterable[str] | None) -> tuple[Iterable[str] | None, PackedTokens]:
    if os.fspath(path).endswith(".npy"):
        msg = f"{path} must be a safetensors file; give numpy.load(path, mmap_mode='r'), and lengths"
        raise ValueError(msg)
    file = MappedFile(path)
    rows = _packed_files.rows_of(file)
    return _packed_files.ids_of(file) if ids is None else ids, PackedTokens._of(rows, ragged=True)


def _listed(values: Any, name: str) -> list[Any] | Iterator[Any]:
    """Return values as a list, or as the iterator that they are."""
    if hasattr(values, "to_pylist"):  # a column or a table of Arrow
        values = values.to_pylist()
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        msg = f"{name} must be a list or an iterator, with one entry for each document; got one {type(values).__name__}"
        raise TypeError(msg)
    if isinstance(values, Iterator):
        return values
    return list(values)


def _named(
    ids: list[str] | Iterator[str], incoming: Incoming, metadata: list[Any] | Iterator[Any] | None
) -> Iterator[Batch]:
    """Give each piece its ids and its metadata."""
    names, described = iter(ids), None if metadata is None else iter(metadata)
    done = 0
    for tokens in incoming.pieces:
        some = _next(names, "ids", done, len(tokens))
        found = checks.ids(some, f"ids[{done}:]" if done else "ids")
        if "" in found:
            msg = f"ids must not be empty; ids[{done + found.index('')}] is"
            raise ValueError(msg)
        texts: list[str | None] = [None] * len(tokens)
        if described is not None:
            entries = _next(described, "metadata", done, len(tokens))
            texts = [checks.metadata_text(entry, f"metadata[{done + i}]") for i, entry in enumerate(entries)]
        done += len(tokens)
        yield Batch(found, tokens, texts)
    for rest, name in ((names, "ids"), (described, "metadata")):
        if rest is not None and next(rest, rest) is not rest:
            msg = f"{name} must have one entry for each of {done} documents; there are more"
            raise ValueError(msg)


def _next(values: Iterator[Any], name: str, done: int, count: int) -> list[Any]:
    some = list(islice(values, count))
    if len(some) < count:
        msg = f"{name} must have one entry for each document; got {done + len(some)}, and there are more documents"
        raise ValueError(msg)
    return some
