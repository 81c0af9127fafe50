"""What torch does for us in a forked child, which must not wait for threads that only the parent has.

A process whose torch has worked on several threads leaves its child OpenMP's record of them, and none of them: the
first operation that asks for them waits for ever. So do gunicorn's ``--preload`` and worker processes of one's own;
torch's DataLoader sets one thread in its workers for this reason. The kernels of this package use no OpenMP, but torch
does much around them: here that is done on one thread, and nothing is changed for the rest of the child.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

# In a forked child, the thread that forked: it has the record. Threads that the child starts have none.
_forking_thread: int | None = None
# What that thread had before it was set to one.
_threads_before: int | None = None
# In a forked child, held until torch has a pool of its own there. torch makes it when it is first told or asked how
# many threads to use, and not safely from several threads: "INTERNAL ASSERT FAILED ... Invalid thread pool!"
_renewing = threading.Lock()
_renewed = True


def _remember() -> None:
    global _forking_thread, _threads_before, _renewing, _renewed
    _forking_thread = threading.get_ident()
    _threads_before = None
    _renewing, _renewed = threading.Lock(), False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember)


def torch_threads() -> int:
    """``torch.get_num_threads()``, as it is for the caller of :func:`safe_after_fork`'s functions."""
    if _threads_before is not None and _forking_thread == threading.get_ident():
        return _threads_before
    return torch.get_num_threads()


def safe_after_fork(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let torch use one thread in ``function``, on the thread of a forked child that has the parent's record."""

    @functools.wraps(function)
    def guarded(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if _forking_thread is None or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        return _on_one_thread(function, *args, **kwargs)

    return guarded


def _on_one_thread(
    function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    global _threads_before
    if not _renewed:
        _renew()
    if threading.get_ident() != _forking_thread or _threads_before is not None:
        return function(*args, **kwargs)
    before = torch.get_num_threads()
    if before == 1:
        return function(*args, **kwargs)
    _threads_before = before
    torch.set_num_threads(1)
    try:
        return function(*args, **kwargs)
    finally:
        torch.set_num_threads(before)
        _threads_before = None


def _renew() -> None:
    global _renewed
    with _renewing:
        if not _renewed:
            torch.set_num_threads(torch.get_num_threads())
            _renewed = True
