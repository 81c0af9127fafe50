"""Processors that are not here, under qemu's user-mode emulation: AArch64, and x86-64 without AVX-512, AVX2 or AVX.

The emulator raises an illegal instruction where the model that it plays has none, so a program that ends well has
executed nothing that the processor lacks. It says nothing about speed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from platform import machine
from typing import Any

import lacking
import pytest
from kernels import SOURCES, built, output_of
from lacking import LACKING

import colbert_fast as cf

NO_X86 = "not an x86-64 processor"
NO_ARM = "not an AArch64 processor"
NO_AVX2 = "this CPU has no AVX2, FMA and F16C"
NO_AVX512 = "this CPU has no AVX-512 (F, BW, DQ, VL)"  # the emulator has none either
NO_AVX_VNNI = "this CPU has no AVX-VNNI"  # no model of the emulator has it
NOT_SAVED = "the operating system does not save AVX registers"
NO_AMX = "built without AMX, which takes x86-64, Linux and GCC 11 or Clang 12"
NO_DOTPROD = "this CPU has no FEAT_DotProd"
NO_I8MM = "this CPU has no FEAT_I8MM, FEAT_BF16 and FEAT_DotProd"

AVX512 = ("amx", "avx512_bf16", "avx512_vnni", "avx512")
AVX2 = ("avx_vnni", "avx2")
NEON = ("neon_i8mm", "neon_dotprod", "neon")
EVERY: dict[str, str | None] = dict.fromkeys(b.name[4:] for b in cf.backends() if b.name.startswith("cpu:"))
AARCH64 = {**EVERY, **dict.fromkeys((*AVX512, *AVX2), NO_X86), "amx": NO_AMX}
X86_64 = {
    **EVERY,
    **dict.fromkeys(AVX512, NO_AVX512),
    "avx_vnni": NO_AVX_VNNI,
    **dict.fromkeys(NEON, NO_ARM),
}

# What cpu_features.cpp has to find: by (architecture, model), the reason why each tier cannot run on it.
MODELS: dict[tuple[str, str], dict[str, str | None]] = {
    ("aarch64", "cortex-a72"): {**AARCH64, "neon_i8mm": NO_I8MM, "neon_dotprod": NO_DOTPROD},
    ("aarch64", "neoverse-n1"): {**AARCH64, "neon_i8mm": NO_I8MM},
    ("aarch64", "max"): AARCH64,
    ("x86_64", "Nehalem"): {**X86_64, **dict.fromkeys(AVX2, NO_AVX2)},  # SSE4.2
    ("x86_64", "Haswell,-xsave"): {**X86_64, **dict.fromkeys(AVX2, NOT_SAVED)},
    ("x86_64", "Haswell"): X86_64,
    ("x86_64", "max"): X86_64,
}
# The others run the best tier only, to save a minute.
EVERY_TIER_RUNS_ON = [("aarch64", "max"), ("x86_64", "Nehalem"), ("x86_64", "Haswell")]


def emulator(architecture: str, model: str) -> list[str]:
    found = lacking.emulator(architecture)
    assert found is not None, LACKING[architecture]
    return [found, "-cpu", model]


def compiler(architecture: str) -> list[str]:
    found = lacking.compiler(architecture)
    assert found is not None, LACKING[architecture]
    return [found]


def case(architecture: str, *rest: str) -> Any:
    return pytest.param(architecture, *rest, marks=pytest.mark.needs(architecture))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """Return what the kernels' program prints on a model. The first call of an architecture starts all its models."""
    started: dict[tuple[str, str], Future[str]] = {}
    executor = ThreadPoolExecutor()

    def wait(architecture: str, model: str) -> str:
        emulator(architecture, model), compiler(architecture)
        if (architecture, model) not in started:
            folder = tmp_path_factory.mktemp(architecture)
            flags = ["-O2", "-static", "-Wall", "-Wextra", "-Werror"]
            if architecture == "x86_64":
                flags.append("-DCF_NO_GUARD_PAGES")  # qemu 7.2 reads 16 bytes for the 4 of a scalar FMA
            program = built(SOURCES, flags, folder, compiler(architecture))
            for key in MODELS:
                if key[0] == architecture:
                    arguments = [] if key in EVERY_TIER_RUNS_ON else ["best"]
                    started[key] = executor.submit(output_of, *emulator(*key), program, *arguments)
        return started[architecture, model].result()

    return wait


@pytest.mark.parametrize(("architecture", "model"), [case(*key) for key in MODELS])
def test_kernels(architecture: str, model: str, output: Callable[[str, str], str]) -> None:
    expected = MODELS[architecture, model]
    *reasons, passed = output(architecture, model).splitlines()
    assert reasons == [f"kernels: no {tier}: {reason}" for tier, reason in expected.items() if reason]
    runnable = [tier for tier, reason in expected.items() if not reason]
    every = (architecture, model) in EVERY_TIER_RUNS_ON
    assert passed.split(": ")[-1].split() == (runnable if every else runnable[:1])


# Scores [1, 2] with [3, 4] and [5, 6] on every tier that runs, without torch or numpy.
EXTENSION = r"""
import sys
from array import array
from importlib.util import module_from_spec, spec_from_file_location

spec = spec_from_file_location("_C", sys.argv[1])
_C = module_from_spec(spec)
spec.loader.exec_module(_C)

class Tensor:
    # The methods of tensors, and of their storage, that the extension calls.
    def __init__(self, code, values, *shape):
        self.array, self.shape = array(code, values), shape
    def untyped_storage(self):
        return self
    def data_ptr(self):
        return self.array.buffer_info()[0]
    def nbytes(self):
        return len(self.array) * self.array.itemsize
    def numel(self):
        return len(self.array)
    def storage_offset(self):
        return 0
    def stride(self):
        return (*self.shape[1:], 1)

def side(values, length):
    return 0, Tensor("f", values, length, 2), Tensor("q", [0], 1), Tensor("q", [length], 1), None

q, d = side([1, 2], 1), side([3, 4, 5, 6], 2)
for tier, reason in _C.tiers():
    score = Tensor("f", [0], 1, 1)
    if reason is None:
        _C.score(tier, q, d, None, 1, False, False, 2, score, None)
    print(tier, reason or score.array[0], sep=": ")
"""


@pytest.mark.parametrize(("architecture", "model"), [case(*key) for key in MODELS if key[0] == machine()])
def test_extension(architecture: str, model: str) -> None:
    """The extension as it is shipped has to load on a processor where the best tiers cannot run."""
    said = output_of(*emulator(architecture, model), sys.executable, "-c", EXTENSION, cf._backends.cpu._C.__file__)
    expected = MODELS[architecture, model]
    assert said.splitlines() == [f"{tier}: {reason or 17.0}" for tier, reason in expected.items()]


@pytest.mark.parametrize(
    ("architecture", "model", "instruction"),
    [
        case("x86_64", "Nehalem", "vaddps %xmm0, %xmm0, %xmm0"),
        case("x86_64", "Nehalem", "vfmadd231ps %ymm0, %ymm0, %ymm0"),
        case("x86_64", "Nehalem", "vcvtph2ps %xmm0, %ymm0"),
        case("x86_64", "Haswell,-xsave", "vpaddd %ymm0, %ymm0, %ymm0"),
        case("x86_64", "Haswell", "vaddps %zmm0, %zmm0, %zmm0"),
        case("x86_64", "max", ".byte 0xc4, 0xe2, 0x7d, 0x50, 0xc0"),  # {vex} vpdpbusd %ymm0, %ymm0, %ymm0
        case("aarch64", "cortex-a72", ".inst 0x4e809400"),  # sdot v0.4s, v0.16b, v0.16b
        case("aarch64", "neoverse-n1", ".inst 0x6e40fc00"),  # bfdot v0.4s, v0.8h, v0.8h
    ],
)
def test_the_emulator_has_no_more_than_its_model(
    architecture: str, model: str, instruction: str, tmp_path: Path
) -> None:
    source = tmp_path / "one.cpp"
    source.write_text(f'int main() {{ __asm__ volatile("{instruction}"); }}\n')
    command = [*emulator(architecture, model), built([source], ["-static"], tmp_path, compiler(architecture))]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGILL
