"""torch.ops.colbert_fast.*: what torch.compile, export and the profiler see.

The ops are forward primitives without autograd formulas: :mod:`colbert_fast._scoring` puts an autograd.Function around
them, and is the public way in. Registered with ``torch.library.Library``, whose dispatch costs a third of the
``custom_op`` decorator's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from colbert_fast._backends import select
from colbert_fast._backends.problem import Backend, Problem, Scored
from colbert_fast._observers import plain

_SIDES = (
    "Tensor q_tokens, Tensor q_starts, Tensor q_lengths, "
    "Tensor d_tokens, Tensor? d_scales, Tensor d_starts, Tensor d_lengths, Tensor? pairs, "
    "SymInt max_lq, SymInt max_ld, bool skip_zero_q, bool skip_zero_d, SymInt chunk_elements, "
)
# Of the arguments, those of a Problem.
_NUM_SIDES = 13
_LIBRARY = torch.library.Library("colbert_fast", "DEF")
# Where documents go in an order of their own, as in Problem; of the gradients nothing depends on it.
_ORDER = "*, Tensor? d_order=None"
_LIBRARY.define(f"score({_SIDES} str? backend, {_ORDER}) -> Tensor")
_LIBRARY.define(f"score_argmax({_SIDES} str? backend, {_ORDER}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"backward({_SIDES} Tensor grad_scores, Tensor argmax, bool for_q, bool for_d, str? backend) -> (Tensor, Tensor)"
)


def _chosen(sides: Sequence[Any], name: str | None, d_order: Tensor | None = None) -> tuple[Problem, Backend]:
    problem = Problem._make((*sides, (), d_order))
    q, d, scales = problem.q_tokens, problem.d_tokens, problem.d_scales
    int8 = d.dtype is torch.int8
    # The kernels trust these.
    if d.dtype is not q.dtype and not int8:
        msg = f"q_tokens and d_tokens need the same dtype, unless d_tokens is int8; got {q.dtype} and {d.dtype}"
        raise TypeError(msg)
    if d.shape[1] != q.shape[1]:
        msg = f"q_tokens and d_tokens need the same dim; got {q.shape[1]} and {d.shape[1]}"
        raise ValueError(msg)
    if int8:
        _check_scales(scales, d.shape[0])
    if d_order is not None:
        _check_order(d_order, problem.d_lengths.shape[0])
    return problem, select(d.device, q.dtype, name, int8)


def _check_scales(scales: Tensor | None, rows: int) -> None:
    if scales is None or scales.dtype is not torch.float32 or scales.shape != (rows,) or not scales.is_contiguous():
        got = None if scales is None else f"{scales.dtype} {list(scales.shape)} with strides {list(scales.stride())}"
        msg = f"int8 d_tokens need d_scales, contiguous float32 [{rows}]; got {got}"
        raise ValueError(msg)


def _check_order(order: Tensor, count: int) -> None:
    if order.dtype is not torch.int32 or order.shape != (count,) or not order.is_contiguous():
        got = f"{order.dtype} {list(order.shape)} with strides {list(order.stride())}"
        msg = f"d_order must be contiguous int32 [{count}]; got {got}"
        raise ValueError(msg)


def score_in_place(problem: Problem, name: str | None) -> Tensor | None:
    """Scores of ``problem.d_items``, or None if the documents must be joined for them."""
    backend = select("cpu", problem.q_tokens.dtype, name)
    if not backend.scattered or not plain(problem.q_tokens, problem.d_tokens):
        return None
    return _warned(backend.score(problem)).scores


def score(*arguments: Any, d_order: Tensor | None) -> Tensor:
    """``torch.ops.colbert_fast.score``, without the dispatcher where nobody would notice."""
    run = _score if plain(arguments[0], arguments[3]) else _SCORE
    return run(*arguments, d_order=d_order)


def _score(*arguments: Any, d_order: Tensor | None = None) -> Tensor:
    *sides, name = arguments
    problem, backend = _chosen(sides, name, d_order)
    return _warned(backend.score(problem)).scores


def _score_argmax(*arguments: Any, d_order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    *sides, name = arguments
    problem, backend = _chosen(sides, name, d_order)
    scored = _warned(backend.score_argmax(problem))
    assert scored.argmax is not None
    return scored.scores, scored.argmax


def _backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *sides, grad_scores, argmax, for_q, for_d, name = arguments
    problem, backend = _chosen(sides, name)
    if for_d and problem.d_scales is not None:
        msg = "int8 d_tokens have no gradient: for_d must be False"
        raise ValueError(msg)
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


def _checked(run: Callable[..., Any]) -> Callable[..., Any]:
    """Check what the kernels trust and only a caller of ``torch.ops`` can get wrong. The package calls ``run``."""

    def checked(*arguments: Any, **order: Any) -> Any:
        p = Problem(*arguments[:_NUM_SIDES])
        for side, starts, lengths in (("q", p.q_starts, p.q_lengths), ("d", p.d_starts, p.d_lengths)):
            _check_integers(f"{side}_starts", starts, (lengths.numel(),), torch.int64)
            _check_integers(f"{side}_lengths", lengths, (lengths.numel(),), torch.int64)
        if p.pairs is not None:
            _check_integers("pairs", p.pairs, (p.pairs.shape[0], 2), torch.int64)
        if run is _backward:
            grad_scores, argmax = arguments[_NUM_SIDES : _NUM_SIDES + 2]
            _check_integers("argmax", argmax, (p.num_pairs, p.max_lq), p.argmax_dtype)
            if grad_scores.shape != (p.num_pairs,):
                msg = f"grad_scores must be [{p.num_pairs}]; got shape {list(grad_scores.shape)}"
                raise ValueError(msg)
        return run(*arguments, **order)

    return checked


def _check_integers(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if value.dtype is not dtype or value.shape != shape or not value.is_contiguous():
        got = f"{value.dtype} {list(value.shape)} with strides {list(value.stride())}"
        msg = f"{name} must be contiguous {dtype} {list(shape)}; got {got}"
        raise ValueError(msg)


def _fake_score(*arguments: Any, d_order: Tensor | None = None) -> Tensor:
    problem = Problem(*arguments[:-1])
    double = problem.q_tokens.dtype == torch.float64
    return problem.d_tokens.new_empty(problem.shape, dtype=torch.float64 if double else torch.float32)


def _fake_score_argmax(*arguments: Any, d_order: Tensor | None = None) -> tuple[Tensor, Tensor]:
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
    _LIBRARY.impl(_name, _checked(_run), "CompositeExplicitAutograd")
    torch.library.register_fake(f"colbert_fast::{_name}", _fake, lib=_LIBRARY)

_SCORE = torch.ops.colbert_fast.score.default
