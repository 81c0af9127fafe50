"""From texts to the rows that are scored: checking, pairing, tokenizing, batching, packing."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.util import batch_to_device
from torch import nn

from colbert_fast.packed import PackedTokens

# Tokens, padding included, of one pass through the transformer. On a CPU the activations of larger batches
# leave its caches: MiniLM takes 1.0, 1.2, 1.7 times as long with 1024 (or 2048), 4096, 8192.
_CPU_BATCH_TOKENS = 1024
_ACCELERATOR_BATCH_TOKENS = 16384
# Texts tokenized together, from which batches of one length are cut.
_CHUNK_TEXTS = 1024

# A fast tokenizer keeps the length at which it cuts, and how it pads, between being told and being used: another
# thread that tells it something else meanwhile has texts of both cut at its length. One lock for all encoders, which
# may share a tokenizer; it is held for a small part of the time that the transformer then takes. A fork waits for it:
# tokenizers have locks of their own, which would be locked for ever in the child.
_tokenizing = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_tokenizing.acquire, after_in_parent=_tokenizing.release, after_in_child=_tokenizing.release
    )


class Encoding(NamedTuple):
    """How one call turns texts into rows."""

    query_mode: bool
    prefix: str
    truncation: bool
    add_special_tokens: bool
    padding: bool | str
    max_length: int

    @property
    def task(self) -> str:
        """The name sentence-transformers has for the side of the text."""
        return "query" if self.query_mode else "document"


def as_texts(name: str, texts: Iterable[str]) -> list[str]:
    """The argument `name` as a list of str, or TypeError."""
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
    return listed


def pair_up(queries: list[str], documents: list[str]) -> list[tuple[str, str]]:
    """Pairs of two lists of one length, or of one text with each of a list; else ValueError."""
    if len(queries) != len(documents):
        if len(queries) == 1:
            queries = queries * len(documents)
        elif len(documents) == 1:
            documents = documents * len(queries)
        else:
            msg = (
                "queries and documents must have the same length, or one of them length 1; "
                f"got {len(queries)} queries and {len(documents)} documents"
            )
            raise ValueError(msg)
    return list(zip(queries, documents, strict=True))


def windows(pairs: Iterable[tuple[str, str]], max_texts: int) -> Iterator[tuple[list[str], list[str], torch.Tensor]]:
    """Split pairs, in order, so that each part has at most `max_texts` + 1 distinct texts.

    Yields the distinct queries, the distinct documents, and the pairs as indices into them, int64 [p, 2].
    """
    queries: dict[str, int] = {}
    documents: dict[str, int] = {}
    indices: list[tuple[int, int]] = []
    for query, document in pairs:
        indices.append((queries.setdefault(query, len(queries)), documents.setdefault(document, len(documents))))
        if len(queries) + len(documents) >= max_texts:
            yield list(queries), list(documents), torch.tensor(indices)
            queries, documents, indices = {}, {}, []
    if indices:
        yield list(queries), list(documents), torch.tensor(indices)


def pack(
    encoder: MultiVectorEncoder,
    texts: list[str],
    encoding: Encoding,
    *,
    pad_row: bool = False,
    done: Callable[[int], object] = lambda count: None,
) -> PackedTokens:
    """Embed texts, each at its own length.

    Parameters
    ----------
    encoder
        The modules the texts go through.
    texts, encoding
        n texts, and how they become rows.
    pad_row
        End every text shorter than the maximum length in one zero row.
    done
        Called with the number of texts of each finished batch.

    Returns
    -------
    PackedTokens
        n items of [length, dim] in the encoder's dtype, on its device.

    Raises
    ------
    ValueError
        A text longer than the transformer's positions, which truncation did not prevent.
    """
    on_cpu = encoder.device.type == "cpu"
    max_tokens = _CPU_BATCH_TOKENS if on_cpu else _ACCELERATOR_BATCH_TOKENS
    # Texts of similar size share a chunk, so that little of it is padding before batches are cut from it.
    by_size = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    order: list[int] = []
    embeddings = [_no_tokens(encoder, 0)[0].flatten(0, 1)]
    lengths = [torch.zeros(0, dtype=torch.int64, device=encoder.device)]
    for first in range(0, len(texts), _CHUNK_TEXTS):
        chunk = by_size[first : first + _CHUNK_TEXTS]
        features = _tokenize(encoder, [texts[index] for index in chunk], encoding)
        for rows, batch in _batches(features, len(chunk), max_tokens):
            tokens, real = _embed(encoder, batch, len(rows), encoding)
            if pad_row:
                tokens = nn.functional.pad(tokens, (0, 0, 0, 1))
                real = torch.cat([real, real.sum(1, keepdim=True) < encoding.max_length], dim=1)
            embeddings.append(tokens[real])
            lengths.append(real.sum(1))
            order += [chunk[row] for row in rows]
            done(len(rows))
    sizes = torch.cat(lengths)
    back = torch.tensor(order, dtype=torch.int64, device=sizes.device).argsort()
    return PackedTokens(torch.cat(embeddings), (sizes.cumsum(0) - sizes)[back], sizes[back])


def padded(packed: PackedTokens, width: int) -> torch.Tensor:
    """[n, width, dim]: the tokens of each item first, zero rows after them."""
    n, dim = len(packed), packed.tokens.shape[-1]
    starts, lengths = (index.to(packed.tokens.device) for index in (packed.starts, packed.lengths))
    item = torch.arange(n, device=lengths.device).repeat_interleave(lengths)
    offset = torch.arange(item.numel(), device=lengths.device) - (lengths.cumsum(0) - lengths)[item]
    rows = packed.tokens[starts[item] + offset]
    return rows.new_zeros(n * width, dim).index_copy(0, item * width + offset, rows).view(n, width, dim)


def _tokenize(encoder: MultiVectorEncoder, texts: list[str], encoding: Encoding) -> dict[str, Any]:
    options: dict[str, Any] = {}
    max_length: int | None = encoding.max_length
    if not encoding.truncation:
        options |= {"truncation": False, "max_length": None}
        max_length = None
    if not encoding.add_special_tokens:
        options["add_special_tokens"] = False
    expansion = getattr(encoder[0], "query_expansion", None) if encoding.query_mode else None
    if expansion is not None and expansion["strategy"] == "fixed":
        max_length = None
    with _tokenizing:
        features: dict[str, Any] = encoder.preprocess(
            texts,
            prompt=encoding.prefix,
            task=encoding.task,
            max_length=max_length,
            processing_kwargs={"text": options},
        )
    return features


def _batches(features: dict[str, Any], n: int, max_tokens: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Cut n tokenized texts into batches of similar length: at most `max_tokens` tokens each, or one text.

    Yields the rows of a batch and its features, without the columns that none of its texts uses.
    """
    if "cu_seq_lens_q" in features:
        # The texts were flattened for a variable-length attention kernel: nothing is padded.
        yield list(range(n)), features
        return
    used = features["attention_mask"].bool()
    if "query_expansion_positions" in features:
        used = used | features["query_expansion_positions"].bool()
    lengths, by_length = used.sum(1).sort(stable=True)
    sizes = lengths.tolist()
    first = 0
    while first < n:
        last = first + 1
        # Texts without any token stay among themselves: no transformer takes them.
        while last < n and (last + 1 - first) * sizes[last] <= max_tokens and bool(sizes[last]) == bool(sizes[first]):
            last += 1
        rows = by_length[first:last]
        columns = used[rows].any(0)
        batch = {
            name: value[rows][:, columns] if isinstance(value, torch.Tensor) and value.shape == used.shape else value
            for name, value in features.items()
        }
        yield rows.tolist(), batch
        first = last


def _embed(
    encoder: MultiVectorEncoder, features: dict[str, Any], n: int, encoding: Encoding
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token embeddings [n, length, dim] of one batch, and which of them are real, bool [n, length]."""
    width = features["input_ids"].shape[-1]
    if width == 0:
        return _no_tokens(encoder, n)
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if positions is not None and "cu_seq_lens_q" not in features and width > positions:
        msg = (
            f"a {encoding.task} must have at most {positions} tokens, the transformer's positions; "
            f"got {width}: lower max_length_{encoding.task}, or pass truncation=True"
        )
        raise ValueError(msg)
    output = encoder(batch_to_device(features, encoder.device), task=encoding.task)
    return output["token_embeddings"], output["attention_mask"].bool()


def _no_tokens(encoder: MultiVectorEncoder, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.zeros(n, 0, encoder.get_embedding_dimension() or 0, dtype=encoder.dtype, device=encoder.device)
    return tokens, torch.zeros(n, 0, dtype=torch.bool, device=encoder.device)
