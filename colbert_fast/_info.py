"""What ``colbert-fast info`` prints: facts about this installation, as JSON and as text."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from typing import Any

import torch

import colbert_fast as cf
from colbert_fast import bench
from colbert_fast._backends import named, why_not
from colbert_fast._environment import environment_variable
from colbert_fast._extension import MISSING

_PACKAGES = ("torch", "triton", "transformers", "sentence-transformers", "numpy", "onnx", "onnxruntime", "openvino")
_NO_EXTENSION = "the C++ extension is missing"


def facts() -> dict[str, Any]:
    """Return the facts, ready to be printed as JSON.

    Returns
    -------
    dict
        - ``version``, ``folder``: version and folder of this package.
        - ``packages``: the version of each other package, or null if the package is not installed.
        - ``python``, ``platform``, ``cpu``: text.
        - ``extension``: the ``file`` of the C++ extension, or null; ``missing``, why there is no extension, or null.
        - ``threads``: the ``number`` of threads of the CPU backends, or null if the variable is wrong; the value of the
          ``variable`` COLBERT_FAST_NUM_THREADS, or null.
        - ``override``: the value of the ``variable`` COLBERT_FAST_BACKEND, or null; the ``backend`` that it chooses, or
          null. A blank variable counts as not set.
        - ``problems``: what is wrong with the two variables. Empty if nothing is wrong.
        - ``backends``, best first: ``name``; ``unsupported``, the reason why the backend cannot run here, or null;
          ``device``, or null for any device; ``dtypes``; ``int8``, whether the backend takes int8 documents.
    """
    problems: list[str] = []
    threads = _threads(problems)
    override = _override(problems)
    return {
        "version": cf.__version__,
        "folder": os.path.dirname(cf.__file__),
        "packages": {package: _version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": bench.cpu_name(),
        "extension": {"file": _extension(), "missing": MISSING},
        "threads": threads,
        "override": override,
        "problems": problems,
        "backends": [
            {
                "name": backend.name,
                "unsupported": backend.unsupported,
                "device": backend.device,
                "dtypes": [_name(dtype) for dtype in backend.dtypes],
                "int8": backend.int8,
            }
            for backend in cf.backends()
        ],
    }


def as_text(told: dict[str, Any]) -> list[str]:
    """Return the facts as lines of text."""
    lines = [f"colbert-fast {told['version']}"]

    def fact(name: str, value: str) -> None:
        lines.append(f"  {name:<22} {value}")

    for package, version in told["packages"].items():
        fact(package, version or "not installed")
    fact("python", f"{told['python']} on {told['platform']}")
    fact("cpu", told["cpu"])
    fact("installed in", told["folder"])
    missing = told["extension"]["missing"]
    fact("extension", f"missing: {missing}" if missing else os.path.basename(told["extension"]["file"]))
    threads, override = told["threads"], told["override"]
    if threads["number"] is not None:
        source = "" if threads["variable"] is None else ", by COLBERT_FAST_NUM_THREADS"
        fact("threads", f"{threads['number']}{source}")
    if override["backend"] is not None:
        chosen = f"{override['variable']}: all calls without backend= take {override['backend']}"
        fact("COLBERT_FAST_BACKEND", chosen)
    for problem in told["problems"]:
        fact("wrong", problem)
    lines.append("backends, best first: the first that runs is used")
    for backend in told["backends"]:
        dtypes = ", ".join(backend["dtypes"]) + (", int8 documents" if backend["int8"] else "")
        reason = backend["unsupported"]
        if reason is None:
            fact(backend["name"], f"runs on {backend['device'] or 'any device'}: {dtypes}")
        else:
            fact(backend["name"], f"no: {_NO_EXTENSION if reason == missing else reason}")
    return lines


def _extension() -> str | None:
    return None if MISSING else importlib.import_module("colbert_fast._C").__file__


def _threads(problems: list[str]) -> dict[str, Any]:
    number = None
    try:
        number = cf.get_num_threads()
    except ValueError as error:
        problems.append(str(error))
    return {"number": number, "variable": environment_variable("COLBERT_FAST_NUM_THREADS")}


def _override(problems: list[str]) -> dict[str, Any]:
    """Return the value of COLBERT_FAST_BACKEND, and the backend that it makes all calls use.

    A backend counts as chosen if it can run on its own device.
    """
    variable = environment_variable("COLBERT_FAST_BACKEND")
    override: dict[str, Any] = {"variable": variable, "backend": None}
    if variable is None:
        return override
    try:
        candidates = named(variable)
    except ValueError as error:
        problems.append(f"COLBERT_FAST_BACKEND: {error}")
        return override
    reasons = {b.name: why_not(b, torch.device(b.device or "cpu"), torch.float32) for b in candidates}
    override["backend"] = next((name for name, reason in reasons.items() if reason is None), None)
    if override["backend"] is None:
        (*_, reason) = reasons.values()
        problems.append(f"COLBERT_FAST_BACKEND is {variable!r}, which cannot run here: {reason}")
    return override


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
