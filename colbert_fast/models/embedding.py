"""Turn tokens into the rows that are scored: pass batches through the encoder, and collect the embeddings."""

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

# The number of tokens, padding included, of one pass through the transformer. The activations of a larger batch do not
# fit into the caches of a CPU, so each token takes longer.
_CPU_BATCH_TOKENS = 1024
_ACCELERATOR_BATCH_TOKENS = 16384
# glibc keeps the memory that a batch has freed, in pieces. The next batch has another shape and can use few of these
# pieces, so the heap grows until it is as large as the embeddings. After this number of batches the pieces are given
# back to the system.
_TRIM_AFTER = 8
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
# If a result has fewer rows than expected, this number of rows is moved at a time: 16 MiB of 128 float32 numbers.
_MOVED_ROWS = 2**15
# The embeddings of these transformers depend on the width of the batch, but only from some length on, so that a test
# with a short text does not show it. Their attention is cut into blocks, or averaged over parts of the whole width.
_WIDTH_MATTERS = {"big_bird", "mra", "nystromformer", "reformer", "yoso"}
# The shape of a batch changes the rounding of an embedding. A difference above this bound, relative to the length of
# the embedding, is more than rounding.
_NOISE = {torch.float64: 1e-4, torch.float32: 1e-4}
_NOISE_OF_HALF = 0.1

# Held while modules change between training mode and eval mode. A fork waits for it, so that no child finds it locked.
_modes = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_modes.acquire, after_in_parent=_modes.release, after_in_child=_modes.release)
# For each encoder that embeds in eval mode at this moment: the number of calls that embed, and the modules that must
# return to training mode when the last of these calls ends.
_resting: weakref.WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = weakref.WeakKeyDictionary()
# For each transformer that was tested: whether its embeddings depend on the padding of a batch.
_seen: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """Run in this context without gradients and without dropout. At the end every module has its former mode again."""
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
    full: int | None = None,
    width: int | None = None,
    batch_size: int | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> PackedTokens:
    """Embed texts, each at its own length, into one matrix that is allocated once.

    Parameters
    ----------
    encoder
        The modules that the texts pass through.
    tokenized, encoding
        The tokens of the texts, and how they become rows.
    texts
        int64 [n]: numbers of the texts to embed. None: all texts.
    pad_row
        Add one zero row to the end of every text that has fewer than `full` rows.
    full
        The number of rows of a text that gets no pad row. None: the maximum length.
    width
        The number of rows that every item takes in the matrix; the rows after an item's own rows are zero. None: the
        items follow one another without rows between them.
    batch_size
        Largest number of texts of one pass through the transformer. None: a fixed number of tokens is the only limit.
    done
        Called after each batch with the number of texts of the batch.

    Returns
    -------
    PackedTokens
        n items of [length, dim] in the order of the texts, in the dtype and on the device of the encoder's output.
    """
    texts = torch.arange(len(tokenized.lengths)) if texts is None else texts
    max_tokens = _CPU_BATCH_TOKENS if encoder.device.type == "cpu" else _ACCELERATOR_BATCH_TOKENS
    equal_lengths = sees_padding(encoder, encoding)
    most = tokenized.rows[texts]
    full = encoding.max_length if full is None else full
    if pad_row:
        most = most + (most < full)
    rows = _Rows(encoder, most, width)
    many = int(tokenized.lengths[texts].sum()) > _TRIM_AFTER * max_tokens
    for number, (places, features) in enumerate(batches(tokenized, texts, max_tokens, batch_size, equal_lengths)):
        if many and number % _TRIM_AFTER == 0:
            _trim()
        tokens, real = _pass(encoder, features, len(places), encoding)
        if pad_row:
            tokens = nn.functional.pad(tokens, (0, 0, 0, 1))
            real = torch.cat([real, real.sum(1, keepdim=True) < full], dim=1)
        rows.place(places, tokens, real)
        done(len(places))
    if many:
        _trim()
    return rows.packed()


def _trim() -> None:
    """Give the memory that glibc keeps back to the system."""
    if _malloc_trim is not None:
        _malloc_trim(0)


class _Rows:
    """The matrix of the result. Rows are written directly to their place, or joined at the end if autograd records."""

    def __init__(self, encoder: MultiVectorEncoder, most: Tensor, width: int | None) -> None:
        self.encoder = encoder
        self.width = width
        self.counts = torch.zeros_like(most)
        self.starts = torch.arange(len(most)) * width if width is not None else most.cumsum(0) - most
        self.total = len(most) * width if width is not None else int(most.sum())
        self.matrix: Tensor | None = None
        self.recorded: list[tuple[Tensor, Tensor]] = []

    def place(self, places: Tensor, tokens: Tensor, real: Tensor) -> None:
        """Take the embeddings `tokens` [n, length, dim] of the texts at `places`.

        Only the rows for which `real` (bool [n, length]) is True are kept.
        """
        counts = real.sum(1).cpu()
        self.counts[places] = counts
        first = (self.starts[places] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        index = (first + torch.arange(len(first))).to(tokens.device)
        # In autocast the rows of a batch without any token have another dtype. Such a batch comes last.
        before = self.recorded[0][1] if self.recorded else self.matrix
        rows = tokens[real] if before is None else tokens[real].to(before.dtype)
        if rows.requires_grad:
            self.recorded.append((index, rows))
            return
        if self.matrix is None:
            self.matrix = self._empty(rows)
        self.matrix.index_copy_(0, index, rows)

    def packed(self) -> PackedTokens:
        """Return all rows that were placed, as PackedTokens."""
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
        """Close the gaps between items that appear when an unknown module drops rows. No second matrix is allocated.

        `total` is the number of rows that are left. Returns the matrix [total, dim] and the starts of the items.
        """
        starts = self.counts.cumsum(0) - self.counts
        index = (self.starts - starts).repeat_interleave(self.counts) + torch.arange(total)
        index = index.to(matrix.device)
        if matrix.requires_grad:
            return matrix[index], starts
        # Rows only move towards the beginning, so a row is read before another row is written over it.
        for first in range(0, total, _MOVED_ROWS):
            some = index[first : first + _MOVED_ROWS]
            matrix[first : first + len(some)] = matrix[some]
        return matrix[:total], starts


def _pass(encoder: MultiVectorEncoder, features: dict[str, Any], n: int, encoding: Encoding) -> tuple[Tensor, Tensor]:
    """Pass one batch of n texts through the encoder.

    Returns the token embeddings [n, length, dim], and which of them are real and not padding, bool [n, length].
    """
    if features["input_ids"].shape[-1] == 0:
        return _no_tokens(encoder, n)
    _choose_attention(encoder, features["input_ids"].shape[-1])
    output = encoder(batch_to_device(features, encoder.device), task=encoding.side)
    return output["token_embeddings"], output["attention_mask"].bool()


def _choose_attention(encoder: MultiVectorEncoder, width: int) -> None:
    """Set the attention of BigBird to what it uses for one text of this width.

    BigBird itself would change to full attention at its first short text, and never change back.
    """
    transformer: Any = encoder[0]
    choose = getattr(transformer.model, "set_attention_type", None)
    if choose is not None:
        config = transformer.model.config
        few = (5 + 2 * config.num_random_blocks) * config.block_size
        choose("original_full" if width <= few else config.attention_type)


def _no_tokens(encoder: MultiVectorEncoder, n: int) -> tuple[Tensor, Tensor]:
    """Return what `_pass` returns for n texts without any token."""
    tokens = torch.zeros(n, 0, encoder.get_embedding_dimension() or 0, dtype=encoder.dtype, device=encoder.device)
    return tokens, torch.zeros(n, 0, dtype=torch.bool, device=encoder.device)


def sees_padding(encoder: MultiVectorEncoder, encoding: Encoding) -> bool:
    """Return whether embeddings depend on the padding of a batch, as with convolutions or without an attention mask.

    This is tested once for each transformer: a short text is embedded without padding and with padding.
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
        # If the weights are broken, the error is NaN. The comparison is then False, as if padding had no effect.
        answer = bool((error > alone.norm(dim=2) * _NOISE.get(alone.dtype, _NOISE_OF_HALF)).any())
        _seen[transformer] = answer
    return answer
