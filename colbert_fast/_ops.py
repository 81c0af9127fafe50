"""torch.ops.colbert_fast.*: what torch.compile, export and the profiler see.

The ops are primitives without autograd formulas: :mod:`colbert_fast._scoring` puts an autograd.Function around them.
They are registered with ``torch.library.Library``, because torch dispatches such an op in a third of the time that it
takes for an op made by the ``custom_op`` decorator.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colbert_fast._arrays import aligned
from colbert_fast._backends import select
from colbert_fast._backends.problem import NUM_ARGUMENTS, Backend, Problem
from colbert_fast._forks import safe_after_fork
from colbert_fast._warnings import warn_caller

_SIDES = (
    "Tensor q_tokens, Tensor q_starts, Tensor q_lengths, "
    "Tensor d_tokens, Tensor? d_scales, Tensor d_starts, Tensor d_lengths, Tensor? pairs, "
    "SymInt max_lq, SymInt max_ld, bool skip_zero_q, bool skip_zero_d, SymInt chunk_elements, "
)
# By the dtype of queries: the other dtypes of documents that they meet without a conversion.
_NARROWER = {
    torch.float32: (torch.bfloat16, torch.float16),
    torch.float64: (torch.float32, torch.bfloat16, torch.float16),
}
# As in Problem. Gradients do not depend on it.
_ORDER = "*, Tensor? d_order=None"
_SCHEMAS = {
    "score": f"({_SIDES} str? backend, {_ORDER}) -> Tensor",
    "score_argmax": f"({_SIDES} str? backend, {_ORDER}) -> (Tensor, Tensor)",
    "backward": f"({_SIDES} Tensor grad_scores, Tensor argmax, bool for_q, bool for_d, str? backend)"
    " -> (Tensor, Tensor)",
}


def _select(problem: Problem, name: str | None) -> Backend:
    q, d = problem.q_tokens, problem.d_tokens
    return select(d.device, q.dtype, name, d.dtype is torch.int8)


def _select_for(problem: Problem, name: str | None) -> tuple[Backend, Problem]:
    """Return the backend, and the problem as it takes it."""
    backend = _select(problem, name)
    # The starts and lengths of a padded batch on a GPU are not made yet, and the documents of a list are not joined.
    implicit = problem.q_starts is None or problem.d_starts is None
    if implicit and not (backend.scattered if problem.d_items else backend.uniform):
        problem = problem.explicit()
    return backend, problem


def score(problem: Problem, name: str | None, direct: bool) -> Tensor:
    """``torch.ops.colbert_fast.score``, without the dispatcher if ``direct``: where nobody would notice.

    The sides must fit: what :func:`_checked` asks of callers of ``torch.ops`` is not asked again here.
    """
    if direct:
        return _score(problem, name)
    problem = problem.explicit()
    return _SCORE(*problem.arguments(), name, d_order=problem.d_order)  # type: ignore[no-any-return]


def best(problem: Problem, k: int, name: str | None) -> tuple[Tensor, Tensor] | None:
    """Return the k best scores ``[nq, k]`` and their documents, or None where torch is to sort."""
    backend, problem = _select_for(problem, name)
    if backend.best is None:
        return None
    scores, numbers, empty_document = backend.best(problem, k)
    if empty_document:
        tell_of_empty_document.get()()
    return scores, numbers


def _score(problem: Problem, name: str | None) -> Tensor:
    backend, problem = _select_for(problem, name)
    scores, _, empty_document = backend.score(problem)
    if empty_document:
        tell_of_empty_document.get()()
    return scores


def _score_argmax(problem: Problem, name: str | None) -> tuple[Tensor, Tensor]:
    scores, argmax, empty_document = _select(problem, name).score_argmax(problem)
    assert argmax is not None
    if empty_document:
        tell_of_empty_document.get()()
    return scores, argmax


def _backward(
    problem: Problem, grad_scores: Tensor, argmax: Tensor, for_q: bool, for_d: bool, name: str | None
) -> tuple[Tensor, Tensor]:
    backend = _select(problem, name)
    if for_d and problem.d_scales is not None:
        msg = "int8 d_tokens have no gradient: for_d must be False"
        raise ValueError(msg)
    grad_q, grad_d = backend.backward(problem, grad_scores, argmax, for_q, for_d)
    return _in_dtype_of(problem.q_tokens, grad_q), _in_dtype_of(problem.d_tokens, grad_d)


def _in_dtype_of(tokens: Tensor, grad: Tensor | None) -> Tensor:
    return tokens.new_empty(0) if grad is None else grad.to(tokens.dtype)


def _warn_of_empty_document() -> None:
    warn_caller(
        "a document without a token scores -1e9, below every real document; "
        "a mask without a true entry, or an embedding without rows, makes such a document"
    )


# Is called where a document has no token. An integration sets it while it scores, so that its users hear of such a
# document as their own library tells it.
tell_of_empty_document: ContextVar[Callable[[], None]] = ContextVar(
    "tell_of_empty_document", default=_warn_of_empty_document
)


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """Tell at the end, and once, that a document of the calls inside has no token."""
    empty_documents: list[None] = []
    token = tell_of_empty_document.set(lambda: empty_documents.append(None))
    try:
        yield
    finally:
        tell_of_empty_document.reset(token)
    if empty_documents:
        tell_of_empty_document.get()()


def _check(p: Problem) -> None:
    """Check what the kernels trust and only a caller of ``torch.ops`` can get wrong."""
    device = p.q_tokens.device
    for side, tokens, starts, lengths, longest in (
        ("q", p.q_tokens, p.q_starts, p.q_lengths, p.max_lq),
        ("d", p.d_tokens, p.d_starts, p.d_lengths, p.max_ld),
    ):
        if tokens.device != device or tokens.ndim != 2:
            got = f"q_tokens {list(p.q_tokens.shape)} on {device}, d_tokens {list(tokens.shape)} on {tokens.device}"
            msg = f"q_tokens and d_tokens must be [rows, dim] on one device; got {got}"
            raise ValueError(msg)
        _check_numbers(f"{side}_starts", starts, (lengths.numel(),), torch.int64, device)
        _check_numbers(f"{side}_lengths", lengths, (lengths.numel(),), torch.int64, device)
        # A row of the argmax, or of a padded copy, is as long as an item can be.
        if longest < 0 or (lengths.numel() and longest > tokens.shape[0]):
            msg = f"max_l{side} must be from 0 to {tokens.shape[0]}, the rows of {side}_tokens; got {longest}"
            raise ValueError(msg)
    if p.d_scales is not None:
        _check_numbers("d_scales", p.d_scales, (p.d_tokens.shape[0],), torch.float32, device)
    if p.pairs is not None:
        _check_numbers("pairs", p.pairs, (p.pairs.shape[0], 2), torch.int64, device)
    if p.d_order is not None:
        _check_numbers("d_order", p.d_order, (p.d_lengths.numel(),), torch.int32, device)
    if p.chunk_elements < 1:
        msg = f"chunk_elements must be 1 or more; got {p.chunk_elements}"
        raise ValueError(msg)


def _check_types(p: Problem) -> None:
    """Check the dtypes and the dim of two sides that are matrices."""
    q, d = p.q_tokens, p.d_tokens
    int8 = d.dtype is torch.int8
    if d.dtype is not q.dtype and not int8 and d.dtype not in _NARROWER.get(q.dtype, ()):
        msg = (
            "d_tokens must have the dtype of q_tokens, a narrower one beside float32 or float64, or be int8; "
            f"got q_tokens {q.dtype} and d_tokens {d.dtype}"
        )
        raise TypeError(msg)
    if d.shape[1] != q.shape[1]:
        msg = f"q_tokens and d_tokens need the same dim; got {q.shape[1]} and {d.shape[1]}"
        raise ValueError(msg)
    if int8 and p.d_scales is None:
        msg = "int8 d_tokens need d_scales"
        raise ValueError(msg)


def _check_aligned(p: Problem) -> None:
    """Check what only tensors with memory can be asked."""
    for name in ("q_starts", "q_lengths", "d_scales", "d_starts", "d_lengths", "pairs"):
        value = getattr(p, name)
        if value is not None and aligned(value) is not value:
            msg = f"{name} must be aligned to its element size; its memory begins at {value.data_ptr()}"
            raise ValueError(msg)


def _check_backward(p: Problem, grad_scores: Tensor, argmax: Tensor) -> None:
    _check_numbers("argmax", argmax, (p.num_pairs, p.max_lq), p.argmax_dtype, p.q_tokens.device)
    if grad_scores.shape != (p.num_pairs,) or grad_scores.device != p.q_tokens.device:
        got = f"shape {list(grad_scores.shape)} on {grad_scores.device}"
        msg = f"grad_scores must be [{p.num_pairs}] on {p.q_tokens.device}; got {got}"
        raise ValueError(msg)


def _check_numbers(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if value.dtype is not dtype or value.shape != shape or not value.is_contiguous() or value.device != device:
        got = f"{value.dtype} {list(value.shape)} with strides {list(value.stride())} on {value.device}"
        msg = f"{name} must be contiguous {dtype} {list(shape)} on {device}; got {got}"
        raise ValueError(msg)


def _fake_score(problem: Problem, _name: str | None) -> Tensor:
    double = problem.q_tokens.dtype == torch.float64
    return problem.d_tokens.new_empty(problem.shape, dtype=torch.float64 if double else torch.float32)


def _fake_score_argmax(problem: Problem, name: str | None) -> tuple[Tensor, Tensor]:
    argmax = problem.d_tokens.new_empty((problem.num_pairs, problem.max_lq), dtype=problem.argmax_dtype)
    return _fake_score(problem, name), argmax


def _fake_backward(
    problem: Problem, _grad_scores: Tensor, _argmax: Tensor, for_q: bool, for_d: bool, _name: str | None
) -> tuple[Tensor, Tensor]:
    q, d = problem.q_tokens, problem.d_tokens
    return q.new_empty(q.shape if for_q else (0,)), d.new_empty(d.shape if for_d else (0,))


class _Registered(NamedTuple):
    """What this process has registered with torch: torch accepts the ops of one name only once."""

    library: torch.library.Library
    schemas: dict[str, str]
    run: dict[str, Callable[..., Any]]  # the functions that the ops call, by name


def _register(run: dict[str, Callable[..., Any]]) -> None:
    """Let the ops call these functions, so that an op runs the code of the newest import of this module.

    Notebooks and reloaders drop a package from ``sys.modules`` and import it again, while other modules keep what they
    imported from it before.
    """
    space = vars(torch.ops.colbert_fast)
    registered = space.get("_registered")
    if registered is not None:
        if registered.schemas != _SCHEMAS:
            msg = "another version of colbert_fast was imported in this process: start Python anew to use this one"
            raise ImportError(msg)
        registered.run.update(run)
        return
    library = torch.library.Library("colbert_fast", "DEF")
    space["_registered"] = _Registered(library, dict(_SCHEMAS), run)
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
        library.impl(name, functools.partial(_call, run, name), "CompositeExplicitAutograd")
        torch.library.register_fake(f"colbert_fast::{name}", functools.partial(_call, run, f"fake_{name}"), lib=library)


def _call(run: dict[str, Callable[..., Any]], name: str, *arguments: Any, **order: Any) -> Any:
    return run[name](*arguments, **order)


def _checked(run: Callable[..., Any], *, fake: bool = False) -> Callable[..., Any]:
    """Return what ``torch.ops`` runs: ``run`` behind the checks of its arguments. A fake has no memory to check."""

    @safe_after_fork
    def checked(*arguments: Any, d_order: Tensor | None = None) -> Any:
        problem = Problem._make((*arguments[:NUM_ARGUMENTS], (), d_order))
        others = arguments[NUM_ARGUMENTS:]
        _check(problem)
        _check_types(problem)
        if not fake:
            _check_aligned(problem)
        if run in (_backward, _fake_backward):
            _check_backward(problem, *others[:2])
        return run(problem, *others)

    return checked


_register(
    {
        "score": _checked(_score),
        "score_argmax": _checked(_score_argmax),
        "backward": _checked(_backward),
        "fake_score": _checked(_fake_score, fake=True),
        "fake_score_argmax": _checked(_fake_score_argmax, fake=True),
        "fake_backward": _checked(_fake_backward, fake=True),
    }
)
_SCORE = torch.ops.colbert_fast.score.default
