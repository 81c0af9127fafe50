"""How many threads the C++ extension uses."""

from __future__ import annotations

from colbert_fast._environment import environment_variable
from colbert_fast._forks import torch_threads
from colbert_fast._integers import positive_int

_num_threads: int | None = None


def set_num_threads(n: int) -> None:
    """Let the CPU kernels use ``n`` threads, the calling one included, in this process from now on.

    Raises
    ------
    TypeError
        ``n`` is not an int.
    ValueError
        ``n`` is less than 1.
    """
    global _num_threads
    _num_threads = _checked(n, "n")


def get_num_threads() -> int:
    """Threads that the CPU kernels use: set_num_threads, else COLBERT_FAST_NUM_THREADS, else torch.get_num_threads().

    A variable that is empty or blank counts as not set.

    Raises
    ------
    ValueError
        COLBERT_FAST_NUM_THREADS is not a number of 1 or more.
    """
    if _num_threads is not None:
        return _num_threads
    text = environment_variable("COLBERT_FAST_NUM_THREADS")
    if text is None:
        return torch_threads()
    try:
        return _checked(int(text), "COLBERT_FAST_NUM_THREADS")
    except ValueError:
        msg = f"COLBERT_FAST_NUM_THREADS must be a number of 1 or more; got {text!r}"
        raise ValueError(msg) from None


def _checked(n: int, name: str) -> int:
    number = positive_int(n, name)
    if number >= 2**31:
        msg = f"{name} must be 2147483647 or less; got {number}"
        raise ValueError(msg)
    return number
