"""Keeps torch in a forked child from waiting for threads that only the parent has.

When torch has worked on several threads, OpenMP keeps a record of them. A forked child gets a copy of this record, but
not the threads, and its first operation that needs the threads waits for ever. gunicorn's ``--preload`` makes such
children, and so does any program that forks workers. The kernels of this package use no OpenMP, but the operations of
torch around them do, in the gradients too. So in the child torch is set to one thread before it first works for this
package. It stays at one thread, as in the workers of torch's DataLoader.
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

# In a forked child: the thread that called fork. Only this thread has the record.
_forking_thread: int | None = None
# In that child: the number of threads of torch before it was set to one.
_threads_before: int | None = None
# Whether torch has still to be set to one thread, on the thread that forked.
_to_set = False
# Whether torch has still to make its own pool of threads, on any thread. torch makes it when it is first told or asked
# how many threads to use. If several threads do so at once, torch raises "Invalid thread pool!"
_to_renew = False
# Reentrant, because a handler of signals may run on the thread that holds it.
_renewing = threading.RLock()


def _remember() -> None:
    global _forking_thread, _threads_before, _to_set, _to_renew, _renewing
    _forking_thread = threading.get_ident()
    _threads_before = None
    _to_set = _to_renew = True
    _renewing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember)


def torch_threads() -> int:
    """Return ``torch.get_num_threads()``, or in a forked child the number before it was set to one there."""
    now = torch.get_num_threads()
    return _threads_before if _threads_before is not None and now == 1 else now


def safe_after_fork(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Set torch to one thread before ``function`` runs, on the thread of a forked child that has the record."""

    @functools.wraps(function)
    def guarded(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if _forking_thread is not None and not torch.compiler.is_compiling():
            _prepare()
        return function(*args, **kwargs)

    return guarded


def _prepare() -> None:
    # A handler of signals may raise between any two lines, so each line can be run again.
    global _threads_before, _to_set, _to_renew
    if _to_renew:
        with _renewing:
            torch.set_num_threads(torch.get_num_threads())
            _to_renew = False
    if _to_set and threading.get_ident() == _forking_thread:
        if _threads_before is None:
            _threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        _to_set = False
