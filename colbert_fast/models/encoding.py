"""From tokens to the rows that are scored: passing batches through the encoder, and placing what comes out."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from colbert_fast.models.capacity import positions
from colbert_fast.models.tokens import Encoding, Tokenized, batches, tokenize
from colbert_fast.packed import PackedTokens

# Tokens, padding included, of one pass through the transformer. On a CPU the activations of larger batches
# leave its caches: MiniLM takes 1.0, 1.2, 1.7 times as long with 1024 (or 2048), 4096, 8192.
_CPU_BATCH_TOKENS = 1024
_ACCELERATOR_BATCH_TOKENS = 16384
# glibc keeps what a batch freed, in pieces that the next batch, of another shape, hardly uses: 2 MiB a batch with
# MiniLM, until the heap is as large as the embeddings. After so many batches the pieces go back to the system.
_TRIM_AFTER = 8
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
# Rows that are moved at a time when a result turned out smaller than was known before: 16 MiB of 128 float32.
_MOVED_ROWS = 2**15
# Transformers whose embeddings depend on the width of a batch from some length on, which no short text shows: their
# attention is cut into blocks or averaged over stretches of the whole width.
_WIDTH_MATTERS = {"big_bird", "mra", "nystromformer", "reformer", "yoso"}
# Embeddings that differ by more, relative to the longest, are different ones, and not the noise of another shape.
_NOISE = {torch.float64: 1e-4, torch.float32: 1e-4}
_NOISE_OF_HALF = 0.1

_modes = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_modes.acquire, after_in_parent=_modes.release, after_in_child=_modes.release)
# Encoders that are embedding in eval mode although they are in training mode: for how many calls, and which modules.
_resting: weakref.WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = weakref.WeakKeyDictionary()
# Whether a transformer sees the padding of a batch.
_seen: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """Without gradients and without dropout; afterwards every module is in the mode that it was in."""
    with _modes:
        count, training = _resting.get(module, (0, []))
        if not count:
            training = [part for part in module.modules() if part.training]
            for part in training:
                part.training = False
        _resting[module] = count + 1, training
    try:
        with torch.no_grad():
            yield
    finally:
        with _modes:
            count, training = _resting[module]
            if count > 1:
                _resting[module] = count - 1, training
            else:
                del _resting[module]
                for part in training:
                    part.training = True


def embed(
    encoder: MultiVectorEncoder,
    tokenized: Tokenized,
    encoding: Encoding,
    *,
    texts: Tensor | None = None,
    pad_row: bool = False,
    width: int | None = None,
    batch_size: int | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> PackedTokens:
    """Embed texts, each at its own length, into one matrix that is allocated once.

    Parameters
    ----------
    encoder
        The modules that the texts go through.
    tokenized, encoding
        The texts, and how they become rows.
    texts
        int64 [n]: which of them; None for all.
    pad_row
        End every text shorter than the maximum length in one zero row.
    width
        Give every item so many rows in the matrix, those that are not its own zero; None for no rows between items.
    batch_size
        Texts of one pass through the transformer at most; None for as many as a fixed number of tokens allows.
    done
        Called with the number of texts of each finished batch.

    Returns
    -------
    PackedTokens
        n items of [length, dim] in the order of the texts, in the dtype and on the device of the encoder's output.
    """
    texts = torch.arange(len(tokenized.lengths)) if texts is None else texts
    max_tokens = _CPU_BATCH_TOKENS if encoder.device.type == "cpu" else _ACCELERATOR_BATCH_TOKENS
    equal_lengths = sees_padding(encoder, encoding)
    most = tokenized.rows[texts]
    if pad_row:
        most = most + (most < encoding.max_length)
    rows = _Rows(encoder, most, width)
    many = int(tokenized.lengths[texts].sum()) > _TRIM_AFTER * max_tokens
    for number, (places, features) in enumerate(batches(tokenized, texts, max_tokens, batch_size, equal_lengths)):
        if many and number % _TRIM_AFTER == 0:
            _trim()
        tokens, real = _pass(encoder, features, len(places), encoding)
        if pad_row:
            tokens = nn.functional.pad(tokens, (0, 0, 0, 1))
            real = torch.cat([real, real.sum(1, keepdim=True) < encoding.max_length], dim=1)
        rows.place(places, tokens, real)
        done(len(places))
    if many:
        _trim()
    return rows.packed()


def _trim() -> None:
    if _malloc_trim is not None:
        _malloc_trim(0)


class _Rows:
    """The matrix of the result: rows are written where they stay, or joined at the end where autograd records."""

    def __init__(self, encoder: MultiVectorEncoder, most: Tensor, width: int | None) -> None:
        self.encoder = encoder
        self.width = width
        self.counts = torch.zeros_like(most)
        self.starts = torch.arange(len(most)) * width if width is not None else most.cumsum(0) - most
        self.total = len(most) * width if width is not None else int(most.sum())
        self.matrix: Tensor | None = None
        self.recorded: list[tuple[Tensor, Tensor]] = []

    def place(self, places: Tensor, tokens: Tensor, real: Tensor) -> None:
        """Take the embeddings [n, length, dim] of the texts at `places`, where `real` [n, length]."""
        counts = real.sum(1).cpu()
        self.counts[places] = counts
        first = (self.starts[places] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        index = (first + torch.arange(len(first))).to(tokens.device)
        rows = tokens[real]
        if rows.requires_grad:
            self.recorded.append((index, rows))
            return
        if self.matrix is None:
            self.matrix = self._empty(rows)
        self.matrix.index_copy_(0, index, rows)

    def packed(self) -> PackedTokens:
        if self.recorded:
            index, rows = (torch.cat(parts) for parts in zip(*self.recorded, strict=True))
            self.matrix = (self.matrix if self.matrix is not None else self._empty(rows)).index_copy(0, index, rows)
        matrix = self.matrix if self.matrix is not None else self._empty(_no_tokens(self.encoder, 0)[0].flatten(0, 1))
        starts = self.starts
        total = int(self.counts.sum())
        if self.width is None and total < self.total:
            matrix, starts = self._closed_up(matrix, total)
        starts, counts = starts.to(matrix.device), self.counts.to(matrix.device)
        return PackedTokens(matrix, starts, counts)

    def _empty(self, like: Tensor) -> Tensor:
        make = like.new_empty if self.width is None else like.new_zeros
        return make((self.total, like.shape[1]))

    def _closed_up(self, matrix: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Move items together where modules that we do not know left rows out, without a second matrix."""
        starts = self.counts.cumsum(0) - self.counts
        index = (self.starts - starts).repeat_interleave(self.counts) + torch.arange(total)
        index = index.to(matrix.device)
        if matrix.requires_grad:
            return matrix[index], starts
        # No row moves to behind its place, so that what is written was read before.
        for first in range(0, total, _MOVED_ROWS):
            some = index[first : first + _MOVED_ROWS]
            matrix[first : first + len(some)] = matrix[some]
        return matrix[:total], starts


def _pass(encoder: MultiVectorEncoder, features: dict[str, Any], n: int, encoding: Encoding) -> tuple[Tensor, Tensor]:
    """Token embeddings [n, length, dim] of one batch, and which of them are real, bool [n, length]."""
    if features["input_ids"].shape[-1] == 0:
        return _no_tokens(encoder, n)
    _choose_attention(encoder, features["input_ids"].shape[-1])
    output = encoder(batch_to_device(features, encoder.device), task=encoding.task)
    return output["token_embeddings"], output["attention_mask"].bool()


def _choose_attention(encoder: MultiVectorEncoder, width: int) -> None:
    """Let BigBird attend as it does for a text of this width alone: the first short text changes it for good."""
    transformer: Any = encoder[0]
    choose = getattr(transformer.model, "set_attention_type", None)
    if choose is not None:
        config = transformer.model.config
        few = (5 + 2 * config.num_random_blocks) * config.block_size
        choose("original_full" if width <= few else config.attention_type)


def _no_tokens(encoder: MultiVectorEncoder, n: int) -> tuple[Tensor, Tensor]:
    tokens = torch.zeros(n, 0, encoder.get_embedding_dimension() or 0, dtype=encoder.dtype, device=encoder.device)
    return tokens, torch.zeros(n, 0, dtype=torch.bool, device=encoder.device)


def sees_padding(encoder: MultiVectorEncoder, encoding: Encoding) -> bool:
    """Whether embeddings depend on the padding beside them, as behind convolutions or without an attention mask.

    The model itself is asked, once, with a short text that is embedded alone and padded.
    """
    transformer: Any = encoder[0]
    if getattr(transformer.model.config, "model_type", "") in _WIDTH_MATTERS:
        return True
    answer = _seen.get(transformer)
    if answer is None:
        tokenized = tokenize(encoder, ["a text"], encoding, "texts")
        length = int(tokenized.lengths[0])
        width = min(3 * length + 16, positions(encoder) or 3 * length + 16)
        with inference(encoder):
            alone, padded = (
                _pass(encoder, tokenized.batch(torch.arange(1), size), 1, encoding)[0] for size in (length, width)
            )
        error = (alone - padded[:, :length]).norm(dim=2)
        # NaN, of a model whose weights are broken, is no sign of padding.
        answer = bool((error > alone.norm(dim=2) * _NOISE.get(alone.dtype, _NOISE_OF_HALF)).any())
        _seen[transformer] = answer
    return answer
