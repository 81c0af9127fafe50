"""The backends, best first, and how one is chosen. The list is the whole dispatch."""

from __future__ import annotations

import functools
import os

import torch

from colbert_fast._backends import cpu, torch_
from colbert_fast._backends.problem import Backend


def _no_triton(*_: object) -> None:
    msg = "select() never returns an unsupported backend"
    raise AssertionError(msg)


_TRITON = Backend(
    name="triton",
    unsupported="this version has no Triton kernels yet; the torch backend scores CUDA tensors",
    device="cuda",
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    score=_no_triton,  # type: ignore[arg-type]
    score_argmax=_no_triton,  # type: ignore[arg-type]
    backward=_no_triton,  # type: ignore[arg-type]
)

BACKENDS: tuple[Backend, ...] = (_TRITON, *cpu.BACKENDS, torch_.BACKEND)
# Backends that asked the system for what they need, and what it last answered them.
_refusals: dict[str, str] = {}


def backends() -> list[Backend]:
    """Every backend of this package, best first.

    Each has a ``name``, and in ``unsupported`` None or the reason why it cannot run on this machine. A call takes
    the first one that runs here and accepts its device and dtype, unless ``backend=`` or the environment variable
    COLBERT_FAST_BACKEND names one. One that needs the system's permission, as cpu:amx does, asks for it when it is
    first chosen: ``unsupported`` tells of a refusal from then on.
    """
    return [b._replace(unsupported=_refusals[b.name]) if b.name in _refusals else b for b in BACKENDS]


def select(device: str, dtype: torch.dtype, name: str | None) -> Backend:
    """Return the best backend for tensors of this device type and dtype.

    Parameters
    ----------
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``, ...
    dtype
        Of the tokens.
    name
        A backend's name, or the part before its colon; None: COLBERT_FAST_BACKEND, else any.

    Raises
    ------
    ValueError
        No backend has this name.
    NotImplementedError
        None of that name can do it; the message gives the reason of each.
    """
    return _select(device, dtype, name or os.environ.get("COLBERT_FAST_BACKEND") or None)


@functools.cache
def _select(device: str, dtype: torch.dtype, name: str | None) -> Backend:
    candidates = [b for b in BACKENDS if name in (None, b.name, b.name.partition(":")[0])]
    if not candidates:
        known = ", ".join(b.name for b in BACKENDS)
        msg = f"no backend is called {name!r}; there are cpu, {known}"
        raise ValueError(msg)
    reasons = []
    for backend in candidates:
        reason = _why_not(backend, device, dtype)
        if reason is None:
            return backend
        reasons.append(f"  {backend.name}: {reason}")
    which = "no backend" if name is None else f"backend {name!r}"
    can = "can" if name is None else "cannot"
    msg = "\n".join([f"{which} {can} score {dtype} tensors on {device}:", *reasons])
    raise NotImplementedError(msg)


def _why_not(backend: Backend, device: str, dtype: torch.dtype) -> str | None:
    if backend.unsupported is not None:
        return backend.unsupported
    if backend.device not in (None, device):
        return f"takes tensors on {backend.device} only"
    if dtype not in backend.dtypes:
        return f"has no {dtype} kernel"
    if backend.refused is None:
        return None
    refusal = backend.refused()
    if refusal is None:
        _refusals.pop(backend.name, None)
    else:
        _refusals[backend.name] = refusal
    return refusal
