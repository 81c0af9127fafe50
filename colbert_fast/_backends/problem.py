"""What a backend is given, and what it must offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The score of a document without a token, as in sentence-transformers: below every real score, and finite.
EMPTY_DOCUMENT_SCORE = -1e9


class Problem(NamedTuple):
    """Which scores are wanted; the three primitives take this.

    With ``pairs``, pair number p is (query ``pairs[p, 0]``, document ``pairs[p, 1]``). Without, every query meets
    every document and pair number = query * documents + document.

    For a backend with ``uniform``, starts and lengths of a side may be None: its items follow one another, and all have
    the length ``max_lq`` or ``max_ld``, which is not 0.
    """

    q_tokens: Tensor  # [rows, dim]
    q_starts: Any  # [nq] int64 Tensor
    q_lengths: Any  # [nq] int64 Tensor
    d_tokens: Tensor  # [rows, dim], the dim and device of q_tokens; its dtype, int8, or less than its float32 or 64
    d_scales: Tensor | None  # [rows] float32 if d_tokens is int8: row r stands for d_scales[r] * d_tokens[r]
    d_starts: Any  # [nd] int64 Tensor
    d_lengths: Any  # [nd] int64 Tensor
    pairs: Tensor | None  # [p, 2] int64
    max_lq: int  # no query is longer
    max_ld: int  # no document is longer
    skip_zero_q: bool  # rows of zeros are padding
    skip_zero_d: bool
    chunk_elements: int  # elements of the largest intermediate of a backend that needs any
    # Documents that lie apart, for a backend that takes them: [length, dim] in CPU memory, the dtype of d_tokens.
    # Then d_tokens has no rows and d_starts says nothing.
    d_items: Sequence[Tensor] = ()
    # The order in which to take the documents, [nd] int32: longest first, for speed and nothing else. Not for pairs.
    d_order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the scores."""
        if self.pairs is not None:
            return (self.pairs.shape[0],)
        return (self.nq, self.nd)

    @property
    def num_pairs(self) -> int:
        """Number of scores."""
        if self.pairs is not None:
            return self.pairs.shape[0]
        return self.nq * self.nd

    @property
    def nq(self) -> int:
        """Number of queries."""
        return self.q_tokens.shape[0] // self.max_lq if self.q_lengths is None else self.q_lengths.shape[0]

    @property
    def nd(self) -> int:
        """Number of documents."""
        return self.d_tokens.shape[0] // self.max_ld if self.d_lengths is None else self.d_lengths.shape[0]

    @property
    def argmax_dtype(self) -> torch.dtype:
        """Of the saved argmax: on a GPU, where it is most of what training keeps, the smallest that fits."""
        on_gpu = self.d_tokens.device.type == "cuda"
        return torch.int16 if on_gpu and self.max_ld <= torch.iinfo(torch.int16).max else torch.int32


class Scored(NamedTuple):
    """What ``score`` and ``score_argmax`` return."""

    scores: Tensor  # problem.shape, float32 (float64 for float64 inputs)
    argmax: Tensor | None  # [pairs, max_lq] argmax_dtype: the winning document token, -1 where there is none
    empty_document: bool  # a document without a token was met, and it cost nothing to find out


class Backend(NamedTuple):
    """One way to compute MaxSim."""

    name: str
    """What users, tests and error messages call it; ``"cpu:avx2"`` is also meant by ``"cpu"``."""
    unsupported: str | None
    """None, or the reason why it cannot run here. About hardware, OS or build, never about shapes."""
    device: str | None
    """The device type of the tensors it takes; None: any."""
    dtypes: tuple[torch.dtype, ...]
    """The element types it takes: of queries, and of documents the same or narrower ones."""
    score: Callable[[Problem], Scored]
    score_argmax: Callable[[Problem], Scored]
    backward: Callable[[Problem, Tensor, Tensor, bool, bool], tuple[Tensor | None, Tensor | None]]
    """(problem, grad_scores [pairs], argmax, for queries?, for documents?) -> gradients of q_tokens, d_tokens."""
    int8: bool = False
    """Whether it takes int8 documents too, with queries of any of these types."""
    scattered: bool = False
    """Whether its ``score`` takes documents that lie apart."""
    uniform: bool = False
    """Whether its ``score`` takes sides without starts and lengths."""
    refused: Callable[[torch.device], str | None] | None = None
    """Asks for what the backend needs of the system, or of a device, before it is first chosen there: None, or why it
    was refused."""
