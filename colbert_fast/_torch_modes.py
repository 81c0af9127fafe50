"""Whether torch has to see the operations of a call: torch.compile, a trace, a profiler, a mode, a transform."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

try:
    from torch._C import _get_tracing_state, _len_torch_dispatch_stack
    from torch._C._autograd import _profiler_enabled
    from torch._C._functorch import peek_interpreter_stack

    _known = True
except ImportError:  # These names are private: another version of torch need not have them.
    _known = False

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def not_compiled(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Run ``function`` as it is where the caller is compiled by torch.compile: its graph breaks there."""

    @functools.wraps(function)
    def called(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if torch.compiler.is_compiling():
            # Not when this module is imported, because it would import the compiler.
            eager: Callable[_Arguments, _Result] = torch.compiler.disable(function)
            return eager(*args, **kwargs)
        return function(*args, **kwargs)

    return called


def unwatched(*tensors: Tensor, cuda: bool = True) -> bool:
    """Whether all tensors are plain ones in CPU memory, or CUDA memory with ``cuda``, and no part of torch watches.

    What watches is torch.compile, a trace, a profiler, a mode, a transform or derivatives of forward mode; tensors of a
    subclass have code of their own. Without all of these, nobody notices that the dispatcher is left out. The
    dispatcher takes 3 us a call.
    """
    if not _known or torch.compiler.is_compiling() or getattr(forward_ad, "_current_level", -1) >= 0:
        return False
    for t in tensors:
        if type(t) is not Tensor or not (t.is_cpu or (cuda and t.is_cuda)) or t._is_zerotensor():
            return False
    if peek_interpreter_stack() is not None or _len_torch_dispatch_stack():
        return False
    return _get_tracing_state() is None and not _profiler_enabled()


def has_tangent(*tensors: Tensor) -> bool:
    """Whether a tensor carries a derivative of forward mode: ``torch.func.jvp``, ``jacfwd``, dual tensors."""
    # The name is private: another version of torch need not have it.
    if torch.compiler.is_compiling() or getattr(forward_ad, "_current_level", -1) < 0:
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
