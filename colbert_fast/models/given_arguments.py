"""Which arguments a caller gave, where a default value cannot tell."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec

_Arguments = ParamSpec("_Arguments")


def remembers_given(init: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """Put the names of the arguments that the caller gave to a constructor into its object's `_given`."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def remembering(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        names: Iterable[str] = ()
        # Arguments that do not fit are for the constructor itself to refuse.
        with contextlib.suppress(TypeError):
            names = signature.bind_partial(*args, **kwargs).arguments
        object.__setattr__(args[0], "_given", frozenset(names))
        init(*args, **kwargs)

    return remembering
