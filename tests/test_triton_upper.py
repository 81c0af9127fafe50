"""The machine code of the Triton kernel of upper bounds. test_triton.py runs the kernel in the interpreter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from cases import embeddings
from test_triton_code import HOOKS, SHARED, Driver, compiled, loops
from test_upper import KINDS, codes_of, distances

from colbert_fast import reference
from colbert_fast._backends import triton_, triton_upper
from colbert_fast._upper import upper_bounds
from colbert_fast.packed import PackedTokens

pytestmark = pytest.mark.skipif(triton_.INTERPRETED, reason="the interpreter does not compile")
NAMES = ["nq", "nd", "max_lq", "tiles", "shares"]


@pytest.fixture
def own_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the number of a GPU be its architecture, as in test_triton_code.py."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))
    monkeypatch.setattr(triton_, "_gpu", lambda arch: triton_._Gpu(f"sm_{arch}", SHARED[arch], 132))
    triton_upper._plan.cache_clear()
    yield
    triton_upper._plan.cache_clear()


def upper_code(arch: int, kind: str, nq: int, lq: int, dim: int = 128) -> Any:
    bits, planes = int(kind[0]), kind == "8 of 4+4"
    plan = triton_upper._plan(arch, dim, bits, planes, nq, lq)
    types = dict.fromkeys(["q_starts", "q_lengths", "d_starts", "d_lengths"], "*i64") | dict.fromkeys(NAMES, "i32")
    types |= {"q_tokens": "*i8", "q_sums": "*i32", "q_norms": "*fp32", "q_scales": "*fp64", "q_distances": "*fp64"}
    types |= {"levels": "*u8", "multipliers": "*bf16", "slack": "*bf16", "norms": "*fp32", "bounds": "*fp32"}
    types |= {"low": "*u8"} if planes else {}
    return compiled("upper_kernel", arch, plan, types, ["q_tokens", "levels", *(["low"] if planes else [])])


@pytest.mark.usefixtures("own_gpu")
@pytest.mark.parametrize("nq", [1, 128])
@pytest.mark.parametrize("kind", ["8", "1", "8 of 4+4"])
def test_main_loop_on_hopper(kind: str, nq: int) -> None:
    """The loop multiplies int8, reads rows ahead, spills no register, and converts each sum once."""
    loop = loops(upper_code(90, kind, nq, 32))[0]
    assert bool(loop["IGMMA"]) == (nq > 1) and bool(loop["IMMA"]) == (nq == 1)
    assert loop["LDGSTS"] and not loop["LDL"] and not loop["STL"] and not loop["SHFL"]
    assert loop["I2FP"] == (16 if nq == 1 else 64)


@pytest.mark.usefixtures("own_gpu")
def test_pieces_on_hopper() -> None:
    """Rows that are longer than a piece: the inner loop reads both sides ahead."""
    for nq in (1, 128):
        loop = loops(upper_code(90, "4", nq, 32, dim=768))[0]
        assert loop["LDGSTS"] and not loop["LDL"] and not loop["STL"]


@pytest.mark.usefixtures("own_gpu")
@pytest.mark.parametrize(("arch", "wide"), [(80, "mma.sync"), (100, "tcgen05.mma")])
def test_other_generations(arch: int, wide: str) -> None:
    for kind, nq, instruction in (("8", 128, wide), ("2", 1, "mma.sync")):
        code = upper_code(arch, kind, nq, 32).asm["ptx"]
        assert re.search(rf"{re.escape(instruction)}\S*(s8|i8)", code)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind: str) -> None:
    """Both backends of a GPU. This was written without a GPU."""
    queries, documents = embeddings([32, 7, 0, 300], 128), embeddings([40, 180, 0, 3, 64], 128)
    codes, packed = codes_of(documents, kind), PackedTokens.from_list(queries)
    expected = upper_bounds(packed, codes, backend="torch").double()
    for backend in ("triton", "torch"):
        for place in ("cpu", "cuda"):
            bounds = upper_bounds(packed.to(place), codes.to("cuda"), backend=backend).cpu().double()
            assert bool((bounds >= reference.maxsim(queries, documents)).all())
            room = distances(queries, codes, backend) + distances(queries, codes, "torch") + 1e-5 * expected.abs()
            assert bool(((bounds - expected).abs() <= room).all())


def test_a_later_launch_is_what_triton_launched_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only the first call goes through Triton's look-up. Rows that are not aligned need other code."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    driver = Driver()
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(triton_, "_gpu", lambda _: triton_._Gpu("sm_90", SHARED[90], 1))
    for cache in (triton_._driver.cache_clear, triton_upper._plan.cache_clear):
        cache()
    triton_._kernel("upper_kernel").device_caches.clear()
    # The kernel does not run, so the bounds are whatever is in memory.
    monkeypatch.setattr(triton_upper, "rounded_up", lambda bounds, *_: bounds)
    queries = PackedTokens.from_list(embeddings([32, 30], 128))
    codes = codes_of(embeddings([40, 3], 128), "8")
    odd = replace(codes, levels=torch.zeros(43 * 128 + 1, dtype=torch.uint8)[1:].view(43, 128))
    for loaded, some in enumerate((codes, odd), 1):
        for _ in range(3):
            triton_upper.upper_bounds(queries, some)
        assert driver.loaded == loaded
    assert len(driver.launches) == 6
    for first in (0, 3):
        for position, (a, b) in enumerate(zip(driver.launches[first], driver.launches[first + 2], strict=True)):
            if isinstance(a, torch.Tensor):
                assert a.shape == b.shape and a.dtype == b.dtype
            elif position not in HOOKS:
                assert a == b
    for cache in (triton_._driver.cache_clear, triton_upper._plan.cache_clear):
        cache()
    triton_._kernel("upper_kernel").device_caches.clear()
