"""What a backend is given, and what it must offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colbert_fast._spans import consecutive
from colbert_fast.packed import PackedTokens

# The score of a document without a token, as in sentence-transformers: below every real score, and finite.
EMPTY_DOCUMENT_SCORE = -1e9
# The default of ``chunk_elements``: 64 MiB in float32.
CHUNK_ELEMENTS = 2**24
# The ops of torch.ops.colbert_fast begin with so many fields of a Problem, in the same order.
NUM_ARGUMENTS = 13
# The first fields hold a tensor or None.
NUM_TENSORS = 8


class Problem(NamedTuple):
    """Which scores are wanted. The three primitives of a backend take a Problem.

    With ``pairs``, pair number p is (query ``pairs[p, 0]``, document ``pairs[p, 1]``). Without ``pairs``, every query
    meets every document, and the pair number is query * documents + document.

    A backend with ``uniform`` may get None for the starts and lengths of a side. The items of that side follow one
    another, and all of them have the length ``max_lq`` or ``max_ld``, which is not 0.
    """

    q_tokens: Tensor  # [rows, dim]
    q_starts: Any  # [nq] int64 Tensor
    q_lengths: Any  # [nq] int64 Tensor
    # [rows, dim], with the dim and the device of q_tokens. The dtype is the dtype of q_tokens, or int8, or a narrower
    # one beside queries of float32 or float64.
    d_tokens: Tensor
    d_scales: Tensor | None  # [rows] float32 if d_tokens is int8: row r stands for d_scales[r] * d_tokens[r]
    d_starts: Any  # [nd] int64 Tensor
    d_lengths: Any  # [nd] int64 Tensor
    pairs: Tensor | None  # [p, 2] int64
    max_lq: int  # no query is longer
    max_ld: int  # no document is longer
    skip_zero_q: bool  # whether rows of zeros are padding
    skip_zero_d: bool
    chunk_elements: int  # a bound on the elements of an intermediate, where a backend has any
    # Documents that are not in one matrix, for a backend with ``scattered``: each is [length, dim] in CPU memory, with
    # the dtype of d_tokens. d_tokens has no rows then, and d_starts is None.
    d_items: Sequence[Tensor] = ()
    # [nd] int32, the order in which to take the documents: longest first. It makes a backend faster and changes no
    # score. It is not used with pairs.
    d_order: Tensor | None = None

    @classmethod
    def of(
        cls,
        q: PackedTokens,
        d: PackedTokens,
        pairs: Tensor | None = None,
        skip_zero: tuple[bool, bool] = (False, False),
        chunk_elements: int = CHUNK_ELEMENTS,
    ) -> Problem:
        """Return the problem of these queries and documents. Nothing is copied or made."""
        return cls(
            q._tokens,
            None if q._equal else q._starts,
            None if q._equal else q._lengths,
            d._like if d._items else d._tokens,
            d._scales,
            None if d._equal or d._items else d._starts,
            None if d._equal else d._lengths,
            pairs,
            q._max_length,
            d._max_length,
            *skip_zero,
            chunk_elements,
            d._items,
            d._order,
        )

    def explicit(self) -> Problem:
        """Return this problem as every backend takes it: with starts, lengths, and the documents in one matrix."""
        if self.q_starts is not None and self.d_starts is not None:
            return self
        changes: dict[str, Any] = {}
        if self.q_lengths is None:
            starts, lengths = consecutive(self.nq, self.max_lq, self.q_tokens.device)
            changes |= {"q_starts": starts, "q_lengths": lengths}
        if self.d_lengths is None:
            starts, lengths = consecutive(self.nd, self.max_ld, self.d_tokens.device)
            changes |= {"d_starts": starts, "d_lengths": lengths}
        if self.d_items:
            starts = self.d_lengths.cumsum(0) - self.d_lengths
            changes |= {"d_tokens": torch.cat([self.d_tokens, *self.d_items]), "d_starts": starts, "d_items": ()}
        return self._replace(**changes)

    def arguments(self) -> tuple[Any, ...]:
        """Return the arguments with which every op of torch.ops.colbert_fast begins."""
        return tuple(self)[:NUM_ARGUMENTS]

    def without_tokens(self) -> tuple[Any, ...]:
        """Return all fields but the tokens, to be saved for the gradients of an explicit problem.

        Hooks of autograd may write to what is saved, or free it. The offsets in CPU memory are copies for that reason,
        because several calls share them.
        """
        offsets = [t.clone() if t.is_cpu else t for t in (self.q_starts, self.q_lengths, self.d_starts, self.d_lengths)]
        return (*offsets[:2], self.d_scales, *offsets[2:], *tuple(self)[NUM_TENSORS - 1 :])

    @classmethod
    def with_tokens(cls, q_tokens: Tensor, d_tokens: Tensor, others: Sequence[Any]) -> Problem:
        """Undo :meth:`without_tokens`."""
        fields: list[Any] = [q_tokens, *others[:2], d_tokens, *others[2:]]
        return cls(*fields)

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
        """Element type of the saved argmax.

        On a GPU it is the smallest that fits, because the argmax is most of the memory that training keeps there.
        """
        on_gpu = self.d_tokens.device.type == "cuda"
        return torch.int16 if on_gpu and self.max_ld <= torch.iinfo(torch.int16).max else torch.int32


class Scored(NamedTuple):
    """What ``score`` and ``score_argmax`` return."""

    scores: Tensor  # problem.shape, float32 (float64 for float64 inputs)
    argmax: Tensor | None  # [pairs, max_lq] argmax_dtype: the winning document token, -1 where there is none
    empty_document: bool  # whether a document has no token; set only where knowing it needs no wait for the device


class Backend(NamedTuple):
    """One way to compute MaxSim."""

    name: str
    """The name for users, tests and error messages. ``"cpu"`` stands for every name that begins with ``"cpu:"``."""
    unsupported: str | None
    """None, or the reason why the backend cannot run here: the hardware, the system or the build, never a shape."""
    device: str | None
    """The device type of the tensors that the backend takes; None: any."""
    dtypes: tuple[torch.dtype, ...]
    """The element types of queries that the backend takes. Documents have the same type or a narrower one."""
    score: Callable[[Problem], Scored]
    score_argmax: Callable[[Problem], Scored]
    backward: Callable[[Problem, Tensor, Tensor, bool, bool], tuple[Tensor | None, Tensor | None]]
    """(problem, grad_scores [pairs], argmax, for queries?, for documents?) -> gradients of q_tokens, d_tokens."""
    int8: bool = False
    """Whether the backend takes int8 documents too, with queries of every type in ``dtypes``."""
    scattered: bool = False
    """Whether ``score`` takes documents that are not in one matrix."""
    best: Callable[[Problem, int], tuple[Tensor, Tensor, bool]] | None = None
    """(problem of all pairs, k) -> scores [nq, k] and document numbers int64 [nq, k], as :func:`topk` returns them, and
    whether a document has no token. There are k documents or more."""
    uniform: bool = False
    """Whether ``score`` takes sides without starts and lengths."""
    refused: Callable[[torch.device], str | None] | None = None
    """Asks the system, or a device, for what the backend needs there, before the backend is first chosen. Returns None,
    or why it was refused."""

    def __repr__(self) -> str:
        """Show the name, and why it cannot run here if so: the functions would fill a screen."""
        return f"Backend({self.name!r}{f', unsupported={self.unsupported!r}' if self.unsupported else ''})"
