"""A module imports only from rows above its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import colbert_fast

ROOT = Path(colbert_fast.__file__).parent
ROWS = [
    {"_C"},
    {"_extension", "_files", "_interrupts", "_unpacked"},
    {
        *("reference", "_arrays", "_environment", "_forks", "_torch_modes", "_warnings"),
        "_backends.triton_tiles",
    },
    {"_absent", "_extras", "_required"},
    {"_int8", "_integers", "_items", "_safetensors", "_spans"},
    {"_layouts", "_packed_files", "_threads"},
    {"_codecs"},
    {"packed"},
    {"_lowering", "_backends.problem"},
    {
        "_backends.torch_",
        "_backends.torch_upper",
        "_backends.cpu",
        "_backends.cpu_upper",
        "_backends.triton_",
        "_backends.triton_kernels",
        "_backends.triton_gradients",
        "_backends.triton_upper",
        "_backends.triton_upper_kernel",
        "_backends.triton_best",
        "_backends.triton_best_kernel",
    },
    {"_backends"},
    {"_ops", "_upper"},
    {"_scoring"},
    {"_maxsim", "_topk"},
    {"collection"},
    {"_argmax"},
    {"_encoders"},
    {"_rerank", "_explain"},
    {"models"},
    {"utils", "losses"},
    {"rank"},
    {"retrieve"},
    {"train"},
    {"integrations"},
    {"", "bench", "_info", "cli", "__main__"},
]
# Inside one folder of a row, files may use each other.
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")
    for path in ROOT.rglob("*.py")
)


def row_of(module: str) -> int:
    for row, names in enumerate(ROWS):
        if module in names or module.partition(".")[0] in names - {""}:
            if module.startswith("_backends.") and module not in names:
                continue
            return row
    msg = f"{module} is in no row of {__file__}"
    raise AssertionError(msg)


def imported(module: str) -> set[str]:
    path = ROOT / Path(*module.split(".")) if module else ROOT
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            base = node.module or ""
            names |= {f"{base}.{alias.name}" for alias in node.names}
    result = set()
    for name in names:
        if name == "colbert_fast":
            result.add("")
        elif name.startswith("colbert_fast."):
            inner = name.removeprefix("colbert_fast.")
            while inner and inner not in MODULES and inner != "_C":
                inner = inner.rpartition(".")[0]
            result.add(inner)
    return result


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "__init__")
def test_imports_point_up(module: str) -> None:
    row = row_of(module)
    for name in imported(module):
        same_folder = row_of(name) == row and name.partition(".")[0] == module.partition(".")[0]
        may_use_package = row == len(ROWS) - 1
        assert row_of(name) < row or same_folder or may_use_package, f"{module} imports {name}"


def test_nothing_imports_the_reference() -> None:
    assert [module for module in MODULES if "reference" in imported(module)] == []


def test_the_check_can_fail() -> None:
    assert "_backends" in imported("_ops")
    names = ["_backends.cpu", "_backends", "_scoring", "_maxsim", "models.colbert"]
    assert sorted(names, key=row_of) == names
    assert len({row_of(name) for name in names}) == len(names)
