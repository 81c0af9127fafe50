"""torch.ops.colbert_fast.*: what torch.compile, export and the profiler see.

The ops are forward primitives without autograd formulas: :mod:`colbert_fast.maxsim` puts an autograd.Function around
them, and is the public way in. Registered with ``torch.library.Library``, whose dispatch costs a third of the
``custom_op`` decorator's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from colbert_fast._backends import select
from colbert_fast._backends.problem import Backend, Problem, Scored

_SIDES = (
    "Tensor q_tokens, Tensor q_starts, Tensor q_lengths, Tensor d_tokens, Tensor d_starts, Tensor d_lengths, "
    "Tensor? pairs, SymInt max_lq, SymInt max_ld, bool skip_zero_q, bool skip_zero_d, SymInt chunk_elements, "
)
_LIBRARY = torch.library.Library("colbert_fast", "DEF")
_LIBRARY.define(f"score({_SIDES} str? backend) -> Tensor")
_LIBRARY.define(f"score_argmax({_SIDES} str? backend) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"backward({_SIDES} Tensor grad_scores, Tensor argmax, bool for_q, bool for_d, str? backend) -> (Tensor, Tensor)"
)


def _chosen(sides: Sequence[Any], name: str | None) -> tuple[Problem, Backend]:
    problem = Problem(*sides)
    return problem, select(problem.d_tokens.device.type, problem.d_tokens.dtype, name)


def _score(*arguments: Any) -> Tensor:
    *sides, name = arguments
    problem, backend = _chosen(sides, name)
    return _warned(backend.score(problem)).scores


def _score_argmax(*arguments: Any) -> tuple[Tensor, Tensor]:
    *sides, name = arguments
    problem, backend = _chosen(sides, name)
    scored = _warned(backend.score_argmax(problem))
    assert scored.argmax is not None
    return scored.scores, scored.argmax


def _backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *sides, grad_scores, argmax, for_q, for_d, name = arguments
    problem, backend = _chosen(sides, name)
    grad_q, grad_d = backend.backward(problem, grad_scores, argmax, for_q, for_d)
    return _in_dtype_of(problem.q_tokens, grad_q), _in_dtype_of(problem.d_tokens, grad_d)


def _in_dtype_of(tokens: Tensor, grad: Tensor | None) -> Tensor:
    return tokens.new_empty(0) if grad is None else grad.to(tokens.dtype)


def _warned(scored: Scored) -> Scored:
    if scored.empty_document:
        warnings.warn(
            "a document without a token scores -1e9, below every real document; "
            "a mask without a true entry, or an embedding without rows, makes such a document",
            UserWarning,
            stacklevel=2,
        )
    return scored


def _fake_score(*arguments: Any) -> Tensor:
    problem = Problem(*arguments[:-1])
    double = problem.d_tokens.dtype == torch.float64
    return problem.d_tokens.new_empty(problem.shape, dtype=torch.float64 if double else torch.float32)


def _fake_score_argmax(*arguments: Any) -> tuple[Tensor, Tensor]:
    problem = Problem(*arguments[:-1])
    argmax = problem.d_tokens.new_empty((problem.num_pairs, problem.max_lq), dtype=problem.argmax_dtype)
    return _fake_score(*arguments), argmax


def _fake_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *sides, _grad_scores, _argmax, for_q, for_d, _name = arguments
    problem = Problem(*sides)
    q, d = problem.q_tokens, problem.d_tokens
    return q.new_empty(q.shape if for_q else (0,)), d.new_empty(d.shape if for_d else (0,))


for _name, _run, _fake in (
    ("score", _score, _fake_score),
    ("score_argmax", _score_argmax, _fake_score_argmax),
    ("backward", _backward, _fake_backward),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"colbert_fast::{_name}", _fake, lib=_LIBRARY)
