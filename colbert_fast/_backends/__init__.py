"""The backends, best first, and how one is chosen. The list is the whole dispatch."""

from __future__ import annotations

import functools

import torch

from colbert_fast._backends import cpu, torch_, triton_, triton_best
from colbert_fast._backends.problem import Backend
from colbert_fast._environment import environment_variable
from colbert_fast._extension import MISSING
from colbert_fast._warnings import warn_caller

_ON_THIS_MACHINE = (*cpu.BACKENDS, torch_.BACKEND)
# In Triton's interpreter the Triton kernels take CPU tensors, and come last, because they are the slowest to do so.
BACKENDS: tuple[Backend, ...] = (
    (*_ON_THIS_MACHINE, triton_best.BACKEND) if triton_.INTERPRETED else (triton_best.BACKEND, *_ON_THIS_MACHINE)
)

# By the name of a backend that asked for what it needs: why it was refused when it last asked.
_refusals: dict[str, str] = {}
# Whether this process has been warned that its CPU tensors are scored without the extension.
_told_of_torch = False


def backends() -> list[Backend]:
    """Every backend of this package, best first.

    Each has a ``name``, and in ``unsupported`` None or the reason why it cannot run on this machine. A call takes
    the first one that runs here and accepts its device and dtype, unless ``backend=`` or the environment variable
    COLBERT_FAST_BACKEND names one. A backend that needs the system's permission, as cpu:amx does, or a device that is
    new enough, as triton does, asks when it is first chosen. After a refusal ``unsupported`` holds its reason.
    """
    # A copy, because another thread may be granted meanwhile what it was refused before.
    refusals = dict(_refusals)
    return [b._replace(unsupported=refusals[b.name]) if b.name in refusals else b for b in BACKENDS]


def select(device: torch.device | str, dtype: torch.dtype, name: str | None, int8: bool = False) -> Backend:
    """Return the best backend for tensors of this device and dtype.

    Parameters
    ----------
    device
        Where the tensors are, with the number of a GPU: one GPU may be older than another.
    dtype
        Element type of the query tokens.
    name
        The name of a backend, or the part before its colon; None: what COLBERT_FAST_BACKEND says, else any.
    int8
        Whether the document tokens are int8. If not, they have the dtype of the queries, or a narrower one.

    Raises
    ------
    ValueError
        No backend has this name.
    NotImplementedError
        No backend of this name can score such tensors; the message gives the reason of each.
    """
    override = None if name else environment_variable("COLBERT_FAST_BACKEND")
    if not override:
        return _select(device, dtype, name or None, int8)
    try:
        return _select(device, dtype, override, int8)
    except (ValueError, NotImplementedError) as error:
        msg = f"the environment variable COLBERT_FAST_BACKEND: {error}"
        raise type(error)(msg) from None


@functools.cache
def _select(device: torch.device | str, dtype: torch.dtype, name: str | None, int8: bool) -> Backend:
    candidates = named(name)
    reasons: dict[str, list[str]] = {}
    for backend in candidates:
        reason = why_not(backend, torch.device(device), dtype, int8)
        if reason is None:
            if name is None and backend is torch_.BACKEND:
                _tell_of_torch(torch.device(device), dtype)
            return backend
        reasons.setdefault(reason, []).append(backend.name)
    which = "no backend" if name is None else f"backend {name!r}"
    can = "can" if name is None else "cannot"
    what = f"{dtype} queries and int8 documents" if int8 else f"{dtype} tensors"
    lines = [f"  {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    msg = "\n".join([f"{which} {can} score {what} on {device}:", *lines])
    raise NotImplementedError(msg)


def named(name: str | None) -> list[Backend]:
    """Return the backends of this name, or of this part before the colon, best first; None: all of them.

    Without the extension, every name that begins with ``"cpu:"`` means the one backend that says why it is missing.

    Raises
    ------
    ValueError
        No backend has this name.
    """
    wanted = "cpu" if MISSING and name and name.startswith("cpu:") else name
    found = [b for b in BACKENDS if wanted in (None, b.name, b.name.partition(":")[0])]
    if not found:
        known = ", ".join(dict.fromkeys(["cpu", *(b.name for b in BACKENDS)]))
        msg = f"no backend is called {name!r}; there are {known}"
        raise ValueError(msg)
    return found


def _tell_of_torch(device: torch.device, dtype: torch.dtype) -> None:
    """Warn once if torch scores only because the extension is missing: the scores are right then, but slow."""
    global _told_of_torch
    if _told_of_torch or MISSING is None or device.type != "cpu" or dtype not in cpu.BACKENDS[0].dtypes:
        return
    _told_of_torch = True
    warn_caller(f"scoring with torch, several times slower: {MISSING}")


def why_not(backend: Backend, device: torch.device, dtype: torch.dtype, int8: bool = False) -> str | None:
    """Return the reason why a backend cannot score tensors of this device and dtype, or None."""
    if backend.unsupported is not None:
        return backend.unsupported
    if backend.device not in (None, device.type):
        return f"takes tensors on {backend.device} only"
    if dtype not in backend.dtypes:
        return f"has no {dtype} kernel"
    if int8 and not backend.int8:
        return "has no kernel for int8 documents"
    if backend.refused is None:
        return None
    refusal = backend.refused(device)
    if refusal is None:
        _refusals.pop(backend.name, None)
    else:
        _refusals[backend.name] = refusal
    return refusal
