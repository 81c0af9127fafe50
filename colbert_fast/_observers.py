"""Who besides the kernels may be watching a call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

try:
    from torch._C import _get_tracing_state, _len_torch_dispatch_stack
    from torch._C._autograd import _profiler_enabled
    from torch._C._functorch import peek_interpreter_stack

    _known = True
except ImportError:  # private names, which another version of torch need not have
    _known = False


def plain(*tensors: Tensor) -> bool:
    """Whether these are in CPU memory and there is no torch.compile, trace, profiler, mode, subclass or transform.

    Then nobody notices what is done without the dispatcher, which serves all of these and takes 3 us a call.
    """
    if not _known or torch.compiler.is_compiling():
        return False
    for t in tensors:
        if type(t) is not Tensor or not t.is_cpu or t._is_zerotensor():
            return False
    return _nobody()


def unwatched(*tensors: Tensor) -> bool:
    """The same of tensors in CPU or CUDA memory."""
    if not _known or torch.compiler.is_compiling():
        return False
    for t in tensors:
        if type(t) is not Tensor or not (t.is_cpu or t.is_cuda) or t._is_zerotensor():
            return False
    return _nobody()


def _nobody() -> bool:
    if peek_interpreter_stack() is not None or _len_torch_dispatch_stack():
        return False
    return _get_tracing_state() is None and not _profiler_enabled()


def has_tangent(*tensors: Tensor) -> bool:
    """Whether one of these carries a derivative of forward mode: ``torch.func.jvp``, ``jacfwd``, dual tensors."""
    # A private name, which another version of torch need not have.
    if torch.compiler.is_compiling() or getattr(forward_ad, "_current_level", -1) < 0:
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
