"""The Triton backend: the tests of all backends in Triton's interpreter, the plans, and CUDA if there is a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backends import by_way_of
from cases import DTYPES, assert_close, embeddings, planted

import colbert_fast as cf
from benchmarks import tune_triton
from colbert_fast import _backends, reference
from colbert_fast._backends import torch_, triton_, triton_tiles
from colbert_fast._backends.triton_tiles import Config

TESTS = Path(__file__).parent
WORKS = ["short", "wide", "short_argmax", "wide_argmax", "grad_q"]

# Test files, and an expression that selects the tests of the file that check something new about the kernels.
INTERPRETED = {
    "test_triton_kernels.py": "",
    "test_triton_upper_kernel.py": "",
    "test_triton_best.py": "",
    "test_upper.py": "(bounds and 15) or nothing or beside or special or refusals",
    "test_edges.py": "",
    "test_int8.py": "before_the_maximum or minus_128 or ties or empty or gradients or wherever_it_is",
    "test_zero_rows.py": "(not as_tokens or gradient) and not (anywhere and float16 and not bfloat16)",
    "test_grad.py": "not float16 and not learns",
    "test_maxsim.py": "not chunks and not kinds_of_mask",
    "test_mixed_dtypes.py": "float32_queries or gradients or int8 or narrower",
    "test_topk.py": "not nothing and not large_k",
    "test_ops.py": "opcheck or compile_forward",
    "test_properties.py": "batch_equals_loop or split_document or duplicate_token",
}


@pytest.mark.skipif(triton_.INTERPRETED, reason="this is the interpreter")
@pytest.mark.parametrize("file", INTERPRETED)
def test_the_contract_in_the_interpreter(file: str) -> None:
    """Triton reads TRITON_INTERPRET when kernels are defined. So the interpreter needs a process of its own.

    The tiles are too small for more than one thread.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "COLBERT_FAST_REQUIRE": "triton", "OMP_NUM_THREADS": "1"}
    chosen = "triton" + (f" and ({INTERPRETED[file]})" if INTERPRETED[file] else "")
    # The interpreter uses numpy, and numpy warns of the infinities and NaNs in some tests.
    options = ["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning", "-k", chosen]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(TESTS / file)],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and "skipped" not in done.stdout, done.stdout[-2000:]


def test_the_reason_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert triton_._unsupported() == "there is no CUDA device"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert triton_._unsupported() is None
    monkeypatch.setattr(triton_, "OLDEST", "99.1")
    assert "needs Triton 99.1 or newer" in str(triton_._unsupported())
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton is not installed" in str(triton_._unsupported())


def test_interpreter_is_never_chosen_for_a_cpu() -> None:
    code = (
        "import colbert_fast as cf, torch; from colbert_fast._backends import select;"
        "print(cf.backends()[-1].name, cf.backends()[-1].unsupported, select('cpu', torch.float32, None).name,"
        "select('cpu', torch.float32, 'triton').name)"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, cwd=TESTS.parent, capture_output=True)
    last, reason, chosen, forced = output.stdout.decode().split()
    assert (last, reason, forced) == ("triton", "None", "triton")
    assert chosen.startswith("cpu:")


@pytest.mark.parametrize("most", [512, 128, 64, 32])
@pytest.mark.parametrize("dim", [0, 1, 15, 16, 17, 48, 96, 127, 128, 129, 320, 384, 768, 1024, 2560])
def test_dims_are_cut_into_powers_of_two(dim: int, most: int) -> None:
    k1, k2 = triton_tiles.k_split(dim, most)
    for k in (k1, k2):
        assert k == 0 or (k >= 16 and k & (k - 1) == 0 and k <= most)
    if dim > k1 + k2:  # in pieces
        assert k2 == 0 and dim > most
    elif dim > 16:
        assert k1 + k2 < 2 * dim
    if dim in (48, 96, 320, 384, 768, 1024, 2560):  # for the dims that models have, no dimension of a tile is unused
        assert k1 + k2 == dim or (dim > k1 + k2 and dim % k1 == 0)


@pytest.mark.parametrize("shared", [65536, 101376, 166912, 232448])
@pytest.mark.parametrize("dim", [48, 128, 384, 768, 2560])
@pytest.mark.parametrize("q_bytes", [2, 4])
def test_tiles_fit_into_shared_memory(dim: int, q_bytes: int, shared: int) -> None:
    for config in triton_tiles.table().values():
        for d_bytes in (q_bytes, 1):
            fitted, k1, k2 = triton_tiles.fit(config, dim, q_bytes, d_bytes, shared)
            pieces = dim > k1 + k2
            tile = fitted.stages * (fitted.block_q + fitted.block_d) * k1 * q_bytes
            assert (tile if pieces else triton_tiles.tile_bytes(fitted, k1 + k2, q_bytes, d_bytes)) <= shared


def test_a_program_takes_so_many_documents_that_the_gpu_stays_full() -> None:
    """The GPU runs 264 programs at once. 16 tiles and 128 documents make 256 programs of eight documents each."""
    assert triton_tiles.documents_in_turn(16, 264, 16, 128) == 8
    assert triton_tiles.documents_in_turn(16, 264, 4, 1000) == 16
    assert triton_tiles.documents_in_turn(16, 264, 4, 32) == 1
    assert triton_tiles.documents_in_turn(1, 264, 16, 128) == 1


def test_a_processor_has_four_warps_at_work() -> None:
    """At dim 128 there is room for nine programs of one warp; at dim 768 for one program, which gets four warps."""
    few = Config(32, 16, 1, 4, resident=9)
    assert triton_tiles.fit(few, 128, 2, 2, 232448)[0] == few
    for dim, warps, resident in ((384, 2, 3), (768, 4, 1), (2560, 1, 9)):
        fitted = triton_tiles.fit(few, dim, 2, 2, 232448)[0]
        assert (fitted.warps, fitted.resident) == (warps, resident)
    wide = Config(256, 64, 8, 3)
    assert triton_tiles.fit(wide, 384, 2, 2, 232448)[0].warps == 8


def test_the_table_is_whole() -> None:
    raw = json.loads(triton_tiles.TUNING.read_text(encoding="utf-8"))
    assert raw["provenance"]
    for arch in ("sm_80", "sm_90", "sm_100", "rocm"):
        for kind in ("half", "float", "int8"):
            for work in [*WORKS, *(["grad_d"] if kind != "int8" else [])]:
                config = triton_tiles.table()[f"{arch}/{kind}/{work}"]
                for size in (config.block_q, config.block_d, config.warps, config.piece):
                    assert size & (size - 1) == 0
                assert config.block_q >= (8 if work == "grad_q" else 16) and config.block_d >= 16
                assert config.stages >= 1 and config.resident >= 1
                if work == "wide_argmax" and not config.swap:  # _reduce can distinguish at most 128 columns
                    assert config.block_d <= 128
                assert 1 <= config.run <= 31  # the kernel keeps a bit for each document in an int32


def test_an_unknown_gpu_takes_the_newest_older_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {f"{arch}/half/short": Config(16, 16, n, 1) for n, arch in enumerate(("sm_80", "sm_90", "sm_100"))}
    monkeypatch.setattr(triton_tiles, "table", lambda: lines)
    found = {
        arch: triton_tiles.config_for(arch, "half", "short").warps for arch in ("sm_80", "sm_89", "sm_90", "sm_120")
    }
    assert found == {"sm_80": 0, "sm_89": 0, "sm_90": 1, "sm_120": 2}


def test_the_tuner_rewrites_the_lines_of_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.json"
    before = triton_tiles.TUNING.read_text(encoding="utf-8")
    path.write_text(before, encoding="utf-8")
    tune_triton.rewrite(path, {}, "")
    assert path.read_text(encoding="utf-8") == before  # nothing tuned, nothing changed

    def seconds(_: tune_triton.Workload, config: Config) -> float | None:
        if config.warps == 8:
            return None  # as for a configuration that gives wrong scores or does not fit
        return 1.0 if (config.block_d, config.stages) == (64, 3) else 2.0

    tune_triton.tune("sm_90", path, "somewhere, someday", seconds)
    after, old = json.loads(path.read_text(encoding="utf-8")), json.loads(before)
    assert after["provenance"].endswith("sm_90: somewhere, someday.")
    assert list(after["configs"]) == list(old["configs"])
    changed = {key for key in old["configs"] if after["configs"][key] != old["configs"][key]}
    assert changed and all(key.startswith("sm_90/") for key in changed)
    best = Config(**after["configs"]["sm_90/half/short"])
    assert (best.block_d, best.stages) == (64, 3) and best.warps != 8
    tune_triton.tune("sm_90", path, "later", seconds)
    assert "someday" not in json.loads(path.read_text(encoding="utf-8"))["provenance"]
    monkeypatch.setattr(triton_tiles, "TUNING", path)
    triton_tiles.table.cache_clear()
    test_the_table_is_whole()
    triton_tiles.table.cache_clear()


def test_the_tuner_keeps_a_line_that_nothing_beats(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(triton_tiles.TUNING.read_text(encoding="utf-8"), encoding="utf-8")
    tune_triton.tune("sm_90", path, "here", lambda workload, config: 1.0)
    tuned = json.loads(path.read_text(encoding="utf-8"))["configs"]
    assert tuned == json.loads(triton_tiles.TUNING.read_text(encoding="utf-8"))["configs"]


def test_the_tuner_replaces_a_line_that_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(triton_tiles.TUNING.read_text(encoding="utf-8"), encoding="utf-8")
    present = triton_tiles.config_for("sm_90", "half", "wide")
    candidates = tune_triton.candidates(next(w for w in tune_triton.WORKLOADS if w.work == "wide"))

    def seconds(_: tune_triton.Workload, config: Config) -> float | None:
        if config == present:
            return None
        return 1.0 if config == candidates[5] else 1.2

    tune_triton.tune("sm_90", path, "here", seconds, ["half"])
    tuned = json.loads(path.read_text(encoding="utf-8"))["configs"]
    assert candidates[5] != present and Config(**tuned["sm_90/half/wide"]) == candidates[5]


def test_plans_belong_to_one_device() -> None:
    """A compiled kernel is loaded on the device of its first launch."""
    assert triton_._rank_plan(0, 10, False) is not triton_._rank_plan(1, 10, False)
    assert triton_._rank_plan(1, 10, False) is triton_._rank_plan(1, 10, False)


def test_every_work_has_a_workload_and_candidates() -> None:
    tuned = {(w.kind, w.work) for w in tune_triton.WORKLOADS}
    table = {tuple(key.split("/")[1:]) for key in triton_tiles.table()}
    assert tuned <= table and {("half", work) for work in WORKS} <= tuned
    for workload in tune_triton.WORKLOADS:
        assert len(tune_triton.candidates(workload)) > 3


def test_a_backend_of_another_device_is_tested_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests move data to the device of a backend and back. Here this is tried with a device that always exists."""
    there = by_way_of("cpu", torch_.BACKEND)
    monkeypatch.setattr(_backends, "BACKENDS", (there._replace(name="elsewhere"),))
    q, d = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3, 5, 4)
    for backward in (False, True):
        scores = cf.maxsim(q if backward else q.detach(), d, backend="elsewhere")
        assert_close(scores.detach(), reference.maxsim(list(q.detach()), list(d)))
    scores.sum().backward()
    (expected,) = torch.autograd.grad(torch.einsum("ash,bth->abst", q, d).amax(-1).sum(), q)
    torch.testing.assert_close(q.grad, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lq", [[32], [32] * 9, [200, 7]], ids=["short", "packed", "long"])
@pytest.mark.parametrize("dim", [48, 128, 768])
def test_scores_and_gradients_on_cuda(dim: int, lq: list[int], dtype: torch.dtype) -> None:
    queries = embeddings(lq, dim, dtype)
    documents = planted(queries, embeddings([300, 64, 1, 129], dim, dtype))
    expected = reference.maxsim(queries, documents)
    q, d = ([x.cuda().requires_grad_() for x in side] for side in (queries, documents))
    scores = cf.maxsim(q, d, backend="triton")
    assert_close(scores.detach().cpu(), expected)
    assert_close(cf.maxsim([x.detach() for x in q], [x.detach() for x in d], backend="triton").cpu(), expected)
    weight = torch.randn(scores.shape)
    grads = torch.autograd.grad(scores, [*q, *d], weight.cuda())
    again = torch.autograd.grad(cf.maxsim(q, d, backend="triton"), [*q, *d], weight.cuda())
    by_torch = torch.autograd.grad(cf.maxsim(q, d, backend="torch"), [*q, *d], weight.cuda())
    for grad, other, rerun in zip(grads, by_torch, again, strict=True):
        assert grad.dtype == dtype and torch.equal(grad, rerun)
        torch.testing.assert_close(grad.float(), other.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.cuda
def test_capture_in_a_cuda_graph() -> None:
    """The capture fails if a call waits for the device. There are enough documents to be scored longest first."""
    q = torch.randn(3, 32, 128, device="cuda", dtype=torch.bfloat16)
    count = 2 * torch.cuda.get_device_properties("cuda").multi_processor_count
    lengths = torch.randint(1, 300, (count,)).tolist()
    d = cf.PackedTokens.from_list([torch.randn(n, 128, device="cuda", dtype=torch.bfloat16) for n in lengths])
    assert d._order is not None and d._order.is_cuda
    packed = cf.PackedTokens.from_padded(q)
    expected = cf.maxsim(packed, d, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scores = cf.maxsim(packed, d, backend="triton")
    scores.zero_()
    graph.replay()
    assert torch.equal(scores, expected)
    in_turn = torch.cat([cf.maxsim(packed, d[i : i + 64], backend="triton") for i in range(0, count, 64)], dim=1)
    assert torch.equal(scores, in_turn)
