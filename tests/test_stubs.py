"""The stub of the extension says what the extension takes and returns."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import colbert_fast as cf
from colbert_fast._extension import _C

PACKAGE = Path(cf.__file__).parent
# What pybind11 writes of a type, for each type of the stub. A tensor, and what may be None, are objects to C++.
WRITTEN = {
    "str": "str",
    "int": "typing.SupportsInt | typing.SupportsIndex",
    "bool": "bool",
    "_Side": "tuple",
    "_Fit": "tuple",
    "tuple": "tuple",
    "list": "list",
    "dict": "dict",
    "None": "None",
}


def stubbed() -> dict[str, tuple[list[str], str]]:
    """The types of the arguments, and of the result, of each function of the stub, as pybind11 writes them."""

    def written(node: ast.expr | None, result: bool = False) -> str:
        assert node is not None
        text = ast.unparse(node)
        name = "object" if text.endswith("| None") else text.partition("[")[0]
        return "int" if result and name == "int" else WRITTEN.get(name, "object")

    tree = ast.parse((PACKAGE / "_C.pyi").read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert all(not f.args.args and not f.args.kwonlyargs for f in found), "pybind11 gives the arguments no names"
    return {f.name: ([written(a.annotation) for a in f.args.posonlyargs], written(f.returns, True)) for f in found}


def extended() -> dict[str, tuple[list[str], str]]:
    """The same of the extension: the first line of each docstring is the signature, without a type for objects."""
    found = {}
    for name, function in vars(_C).items():
        if callable(function) and not name.startswith("__"):
            line = (function.__doc__ or "").partition("\n")[0]
            match = re.fullmatch(rf"{name}\((.*)\) -> (.+)", line)
            assert match, line
            found[name] = (re.findall(r"arg\d+: ([^,]+)", match[1]), match[2])
    return found


@pytest.mark.skipif(_C is None, reason="there is no extension")
def test_the_stub_is_that_of_the_extension() -> None:
    assert stubbed() == extended()
