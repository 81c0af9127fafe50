"""Makes Triton's interpreter faster, and changes nothing of what it computes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from triton.runtime import interpreter


def patch_once() -> None:
    """Let a launch prepare triton.language once for each module that its functions come from.

    Triton prepares it anew whenever one function of a kernel calls another: it looks at a thousand names, and replaces
    the same few by the same, which took half of the time of the tests.
    """
    prepare, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    prepared: set[str] = set()
    already = SimpleNamespace(restore=lambda: None)

    def prepare_once(function: Any) -> Any:
        if function.__module__ in prepared:
            return already
        prepared.add(function.__module__)
        return prepare(function)

    def launch_anew(*args: Any, **kwargs: Any) -> None:
        prepared.clear()
        launch(*args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = prepare_once, launch_anew
