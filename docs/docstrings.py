"""What mkdocstrings shows of the sources.

Roles of Sphinx become code, parameters that share a description are described one by one, each with its own default,
and private parameters are left out.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod):`(?:\w+\.)*?(\w+)`")

# `a, b` on a line, and their description, indented, below it.
_SHARED = re.compile(r"^(\w+(?:, \w+)+)\n((?: {4}.*\n?)+)", re.MULTILINE)


def _apart(found: re.Match[str]) -> str:
    text = found[2].rstrip("\n")
    return "".join(f"{name}\n{text}\n" for name in found[1].split(", "))


class Shown(griffe.Extension):
    """An extension of griffe, which reads the sources for mkdocstrings."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change what was read of a module, a class, a function or an attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _SHARED.sub(_apart, _ROLE.sub(r"``\1``", obj.docstring.value))
        if isinstance(obj, griffe.Function):
            for parameter in [p for p in obj.parameters if p.name.startswith("_")]:
                del obj.parameters[parameter.name]
