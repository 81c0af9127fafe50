"""Who besides the kernels may be watching a call."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from torch._C import _get_tracing_state, _len_torch_dispatch_stack
    from torch._C._autograd import _profiler_enabled
    from torch._C._functorch import is_functorch_wrapped_tensor

    _known = True
except ImportError:  # private names, which another version of torch need not have
    _known = False


def plain(*tensors: Tensor) -> bool:
    """Whether these are on the CPU and there is no torch.compile, trace, profiler, mode, subclass or transform.

    Then nobody notices what is done without the dispatcher, which serves all of these and takes 3 us a call.
    """
    if not _known or torch.compiler.is_compiling():
        return False
    for t in tensors:
        if type(t) is not Tensor or not t.is_cpu or is_functorch_wrapped_tensor(t):
            return False
    return _get_tracing_state() is None and not _profiler_enabled() and not _len_torch_dispatch_stack()
