"""The machine code that Triton makes of our kernels, for GPUs that need not be here, and how kernels are launched."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from colbert_fast._backends import triton_
from colbert_fast._backends.problem import Problem

pytestmark = pytest.mark.skipif(triton_.INTERPRETED, reason="the interpreter does not compile")

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED = {80: 166912, 90: 232448, 100: 232448}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int8: "*i8"}
BF16, F32, I8 = torch.bfloat16, torch.float32, torch.int8


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


@pytest.fixture(autouse=True)
def own_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this file the number of a GPU is its architecture: plans for GPU 90 are for sm_90."""
    monkeypatch.setattr(triton_, "_gpu", lambda arch: triton_._Gpu(f"sm_{arch}", SHARED[arch], 132))
    yield
    triton_._score_plan.cache_clear()
    triton_._grad_plan.cache_clear()


def compiled(name: str, arch: int, plan: triton_._Plan, types: dict[str, str], aligned: list[str]) -> Any:
    kernel = triton_._kernel(name)
    names = kernel.arg_names
    absent = {n: None for n in names if n not in types and n not in plan.constants}
    source = triton.compiler.ASTSource(
        kernel,
        {n: types.get(n, "constexpr") for n in names},
        constexprs={(names.index(n),): value for n, value in {**plan.constants, **absent}.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    code = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=plan.options)
    assert code.metadata.shared <= SHARED[arch]
    return code


def score_code(
    arch: int,
    q_dtype: torch.dtype,
    d_dtype: torch.dtype,
    nq: int,
    lq: int,
    *,
    dim: int = 128,
    argmax: bool = False,
    skip_zero: bool = False,
    precision: str = "highest",
    ordered: bool = False,
) -> Any:
    plan = triton_._score_plan(
        arch, q_dtype, d_dtype, dim, dim, dim, nq, lq, False, argmax, skip_zero, skip_zero, precision
    )
    types = dict.fromkeys(["q_starts", "q_lengths", "d_starts", "d_lengths"], "*i64")
    types |= dict.fromkeys(["nq", "nd", "num_pairs", "max_lq", "max_ld", "tiles", "shares", "d_rows"], "i32")
    types |= {"q_tokens": POINTERS[q_dtype], "d_tokens": POINTERS[d_dtype]}
    types["scores"] = "*fp32" if plan.blocks == 1 else "*fp64"
    types |= {"argmax": "*i16"} if argmax else {}
    types |= {"order": "*i32"} if ordered else {}
    types |= {"d_scales": "*fp32"} if d_dtype == I8 else {}
    return compiled("score_kernel", arch, plan, types, ["q_tokens", "d_tokens"])


def grad_code(
    arch: int, dtype: torch.dtype, *, for_q: bool, pairs: bool = False, documents: torch.dtype | None = None
) -> Any:
    own, other = (dtype, documents or dtype) if for_q else (documents or dtype, dtype)
    plan = triton_._grad_plan(arch, other, dtype, 128, 128, pairs, for_q, False, "highest")
    types = dict.fromkeys(["own_starts", "own_lengths", "other_starts"], "*i64")
    types |= {} if for_q else {"ranked": "*i32"}
    types |= dict.fromkeys(["pairs", "order", "bounds"], "*i64") if pairs else {}
    types |= dict.fromkeys(["num_rows", "num_items", "num_others", "nd", "max_lq", "token_bits"], "i32")
    types |= {"other_tokens": POINTERS[other], "grad": POINTERS[own], "grad_scores": "*fp32", "argmax": "*i16"}
    return compiled("grad_kernel", arch, plan, types, ["other_tokens", "grad"])


JUMP = re.compile(r"(@!?U?P\w+)?\s*BRA\S*\s.*`\((\.L_x_\d+)\)")


def loops(code: Any) -> list[Counter[str]]:
    """Return the instructions of each loop of the machine code that multiplies matrices, the innermost loop first.

    Instructions that a jump inside the loop may skip are left out. They are for a short document, or come after the
    last tile.
    """
    if not (TOOLS / "nvdisasm").exists():
        pytest.skip("this Triton brings no disassembler")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        done = subprocess.run([TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"\s*(\.L_x_\d+):", line))}
    found = []
    for end, line in enumerate(lines):
        jump = JUMP.search(line)
        if jump and labels.get(jump[2], end) < end:
            names = list(always(lines, labels, labels[jump[2]], end))
            if {"HGMMA", "HMMA", "IGMMA", "IMMA"} & set(names):
                found.append((len(names), Counter(names)))
    assert found, "no loop multiplies matrices"
    return [names for _, names in sorted(found, key=lambda pair: pair[0])]


def always(lines: list[str], labels: dict[str, int], begin: int, end: int) -> Iterator[str]:
    at = begin
    while at < end:
        name = re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", lines[at])
        if name:
            yield name[1]
        jump = JUMP.search(lines[at])
        at = labels[jump[2]] if jump and jump[1] and at < labels[jump[2]] <= end else at + 1


def main_loop(code: Any) -> Counter[str]:
    """Return the loop over tiles without masks: the innermost loop that reads ahead with asynchronous copies."""
    return next(loop for loop in loops(code) if loop["LDGSTS"])


@pytest.mark.parametrize("argmax", [False, True], ids=["score", "argmax"])
@pytest.mark.parametrize(("nq", "lq"), [(1, 32), (2, 32), (128, 32), (1, 1024)], ids=str)
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_main_loop_on_hopper(dtype: torch.dtype, nq: int, lq: int, argmax: bool) -> None:
    """The main loop spills no register, passes nothing between threads, and selects no element (but for an argmax).

    Tiles of many query tokens use the matrix products of warp groups. Tiles of few query tokens use the matrix products
    of single warps.
    """
    loop = main_loop(score_code(90, dtype, dtype, nq, lq, argmax=argmax))
    wide = nq * lq > 64
    assert bool(loop["HGMMA"]) == wide and bool(loop["HMMA"]) != wide
    assert not loop["LDL"] and not loop["STL"] and not loop["SHFL"]
    if dtype == BF16 and not argmax:
        assert loop["FSEL"] == 0 and loop["SEL"] <= 12  # SEL chooses the next stage
        assert loop["FMNMX"] >= 16 and sum(loop.values()) < 16 * loop["HGMMA"] + 6 * loop["HMMA"]


@pytest.mark.parametrize(("nq", "lq"), [(1, 32), (128, 32)], ids=str)
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_int8_documents_on_hopper(dtype: torch.dtype, nq: int, lq: int) -> None:
    """The main loop for int8 documents spills no register."""
    loop = main_loop(score_code(90, dtype, I8, nq, lq))
    assert bool(loop["HGMMA"]) == (nq > 1) and not loop["LDL"] and not loop["STL"]
    assert loop["FMNMX"] and (dtype == F32 or loop["FSEL"] == 0)


@pytest.mark.parametrize("half", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_float32_queries_of_documents_in_half(arch: int, half: torch.dtype) -> None:
    """Documents are read in half precision, and the products are products of float32. So nothing is rounded."""
    for nq, dim in ((1, 128), (128, 128), (128, 384)):
        code = score_code(arch, F32, half, nq, 32, dim=dim, argmax=dim > 128).asm["ptx"]
        assert re.search(r"mma\S*tf32", code) and not re.search(r"mma\S*\.(bf16|f16)\.(bf16|f16)", code)
    for for_q in (True, False):
        grad_code(arch, F32, for_q=for_q, documents=half)


@pytest.mark.parametrize("dim", [48, 96, 320, 384, 768, 2560])
@pytest.mark.parametrize("nq", [1, 128])
def test_dims_on_hopper(dim: int, nq: int) -> None:
    code = score_code(90, BF16, BF16, nq, 32, dim=dim)
    loop = main_loop(code)
    assert bool(loop["HGMMA"]) == (nq > 1) and not loop["LDL"] and not loop["STL"]
    if dim <= 384:  # no more products than the dimensions need; a product takes 16 dimensions
        plan = triton_._score_plan(90, BF16, BF16, dim, dim, dim, nq, 32, False, False, False, False, "highest")
        if nq > 1:  # four warps multiply 64 rows
            assert loop["HGMMA"] == dim // 16 * plan.constants["BLOCK_Q"] // (16 * code.metadata.num_warps)
        else:  # one warp multiplies 16 rows and 8 columns
            products = plan.constants["BLOCK_D"] // 16 * plan.constants["BLOCK_Q"] // 8
            assert loop["HMMA"] == dim // 16 * products // code.metadata.num_warps
        assert loop["FSEL"] == 0


@pytest.mark.parametrize(("dim", "documents"), [(256, I8), (384, BF16), (768, BF16)], ids=str)
def test_a_matrix_unit_adds_at_most_128_products(dim: int, documents: torch.dtype) -> None:
    """It adds less exactly than float32 does, so every sum of more products begins at 0 and is added in float32."""
    for nq in (1, 128):
        code = score_code(90, BF16, documents, nq, 32, dim=dim).asm["ttir"]
        zeros = set(re.findall(r"(%\w+) = arith.constant dense<0.0+e\+00> : tensor<\w+xf32>", code))
        dots = re.findall(r"tt.dot %\w+, %\w+, (%\w+)[ ,].*: tensor<\d+x(\d+)x", code)
        assert len(dots) == code.count("tt.dot ") > 0
        for first, k in dots:
            assert first in zeros and int(k) <= 128


def test_zero_rows_cost_the_main_loop_nothing() -> None:
    plain, skipping = (score_code(90, BF16, BF16, 128, 32, skip_zero=skip) for skip in (False, True))
    for name in ("HGMMA", "FMNMX", "FSEL", "LDGSTS"):
        assert main_loop(plain)[name] == main_loop(skipping)[name]
    assert main_loop(skipping)["LDL"] <= 2 and not main_loop(skipping)["STL"]


def test_an_order_costs_the_main_loop_next_to_nothing() -> None:
    """The order is one more number to read for each document, outside of the loop over tiles."""
    for nq in (1, 128):
        plain, ordered = (score_code(90, BF16, BF16, nq, 32, ordered=ordered) for ordered in (False, True))
        loops_ = [main_loop(code) for code in (plain, ordered)]
        for name in ("HGMMA", "FMNMX", "FSEL", "LDL", "STL"):
            assert loops_[0][name] == loops_[1][name]
        assert loops_[0]["LDGSTS"] == loops_[1]["LDGSTS"]
        assert sum(loops_[1].values()) < sum(loops_[0].values()) + 16
        assert ordered.metadata.shared <= plain.metadata.shared + 64
    score_code(80, BF16, BF16, 128, 32, argmax=True, ordered=True)


def test_float32_obeys_the_precision_setting() -> None:
    """At "highest" there are three products of parts. If the user allows TF32, there is one product."""
    for nq, name in ((1, r"mma\.sync\S*\.tf32\S*\.tf32"), (128, r"wgmma\.mma_async\S*\.tf32")):
        highest, high = (score_code(90, F32, F32, nq, 32, precision=p).asm["ptx"] for p in ("highest", "high"))
        assert len(re.findall(name, highest)) == 3 * len(re.findall(name, high)) > 0


@pytest.mark.parametrize("dtype", [BF16, torch.float16, F32], ids=str)
def test_gradients_on_hopper(dtype: torch.dtype) -> None:
    documents = grad_code(90, dtype, for_q=False)
    assert "atomic" not in documents.asm["ttir"]
    loop = loops(documents)[0]
    assert loop["HMMA"] and not loop["LDL"] and not loop["STL"]
    for pairs in (False, True):
        queries = grad_code(90, dtype, for_q=True, pairs=pairs)
        assert "atomic" not in queries.asm["ttir"]
    grad_code(90, dtype, for_q=False, pairs=True)


@pytest.mark.parametrize(("arch", "instruction"), [(80, "mma.sync"), (100, "tcgen05.mma")])
def test_other_generations(arch: int, instruction: str) -> None:
    for argmax in (False, True):
        assert instruction in score_code(arch, BF16, BF16, 128, 32, argmax=argmax).asm["ptx"]
        assert "mma.sync" in score_code(arch, BF16, BF16, 1, 32, argmax=argmax).asm["ptx"]
    assert instruction in score_code(arch, BF16, I8, 128, 32).asm["ptx"]
    assert "mma.sync" in grad_code(arch, BF16, for_q=False).asm["ptx"]
    grad_code(arch, BF16, for_q=True)
    score_code(arch, BF16, I8, 1, 32)


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize(("ranked", "argmax"), [("*i32", "*i16"), ("*i64", "*i32")])
@pytest.mark.parametrize("pairs", [False, True])
def test_ranking_passes_nothing_through_shared_memory(arch: int, ranked: str, argmax: str, pairs: bool) -> None:
    """One warp sorts a chunk, so it waits for no other warp and needs no shared memory."""
    types = {"d_starts": "*i64", "argmax": argmax, "ranked": ranked}
    types |= dict.fromkeys(["pairs", "order"], "*i64") if pairs else {}
    types |= dict.fromkeys(["num_pairs", "nq", "nd", "max_lq", "token_bits"], "i32")
    code = compiled("rank_kernel", arch, triton_._rank_plan(arch, 10, pairs), types, [])
    assert code.metadata.shared == 0


class Driver:
    """The part of a driver that Triton needs to compile for a Hopper GPU. It records the launches."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.loaded = 0
        self.utils = self

    def launcher_cls(self, *_: Any) -> Any:
        return lambda *arguments: self.launches.append(arguments)

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        self.loaded += 1
        return (1, 2, 128, 0, 1024)

    def unload_module(self, _: Any) -> None:
        pass

    def get_device_properties(self, _: Any) -> dict[str, int]:
        return {"max_shared_mem": SHARED[90], "multiprocessor_count": 132, "warpSize": 32}

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: Any = None) -> int:
        return 7

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)

    def is_active(self) -> bool:
        return True


@pytest.mark.parametrize("argmax", [False, True], ids=["score", "argmax"])
def test_a_later_launch_is_what_triton_launched_first(argmax: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first call goes through Triton's look-up. Later calls pass the same arguments in the same order."""
    driver = Driver()
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(triton_, "_gpu", lambda _: triton_._Gpu("sm_90", SHARED[90], 1))
    triton_._driver.cache_clear()
    triton_._kernel("score_kernel").device_caches.clear()
    outputs: list[torch.Tensor] = []
    monkeypatch.setattr(torch, "empty", lambda *a, **k: outputs.append(torch.zeros(*a, **k)) or outputs[-1])
    q, d = torch.randn(3 * 32, 128).bfloat16(), torch.randn(400, 128).bfloat16()
    starts, lengths = torch.arange(0, 96, 32), torch.full((3,), 32)
    p = Problem(q, starts, lengths, d, None, starts, lengths, None, 32, 32, False, False, 2**24)
    run = triton_.score_argmax if argmax else triton_.score
    for _ in range(3):
        run(p)
    assert driver.loaded == 1
    # Another alignment needs other code: here the first row does not begin at a multiple of 16 bytes.
    run(p._replace(d_tokens=torch.randn(400 * 128 + 1).bfloat16()[1:].view(400, 128)))
    assert driver.loaded == 2
    run(p._replace(q_tokens=torch.randn(96 * 128 + 1).bfloat16()[1:].view(96, 128)))
    assert driver.loaded == 3
    # An order needs other code, too.
    for _ in range(2):
        run(p._replace(d_order=torch.tensor([2, 0, 1], dtype=torch.int32)))
    assert driver.loaded == 4
    triton_._driver.cache_clear()
    triton_._kernel("score_kernel").device_caches.clear()
    first, second, third, _, _, ordered, again = driver.launches
    assert len(outputs) == 7 * (1 + argmax)
    fresh = {id(output) for output in outputs}
    for earlier, later in ((first, second), (first, third), (ordered, again)):
        for position, (a, b) in enumerate(zip(earlier, later, strict=True)):
            if id(a) in fresh:
                assert id(b) in fresh and a.shape == b.shape and a.dtype == b.dtype
            elif position not in HOOKS:
                assert a is b or (a == b if not isinstance(a, torch.Tensor) else torch.equal(a, b))


# The positions of the arguments for the profiler's hooks. A direct launch passes None there.
HOOKS = range(6, 9)
