"""Remember which arguments a caller gave. The values cannot tell: a given value may equal the default."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec

_Arguments = ParamSpec("_Arguments")


def remembers_given(init: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """Decorate a constructor so that the object's `_given` holds the names of the arguments that the caller gave."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def remembering(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        names: Iterable[str] = ()
        # If the arguments do not fit the signature, the constructor itself raises the error.
        with contextlib.suppress(TypeError):
            names = signature.bind_partial(*args, **kwargs).arguments
        object.__setattr__(args[0], "_given", frozenset(names))
        init(*args, **kwargs)

    return remembering
