"""Measure how the Triton kernels are best cut on the GPU at hand, and rewrite its lines of the package's table.

``python -m benchmarks.tune_triton`` on a machine with a CUDA device; some minutes, in the first of which all processors
compile. Every candidate that scores must give the scores of the torch backend before it is timed. ``--dry-run`` prints
and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

import colbert_fast as cf
from benchmarks.cuda import processes
from colbert_fast._backends import torch_, triton_, triton_tiles
from colbert_fast._backends.problem import Problem
from colbert_fast._backends.triton_tiles import Config


class Workload(NamedTuple):
    """What a line of the table is tuned on."""

    kind: str  # "half", "float", "int8"
    work: str
    nq: int
    nd: int
    lq: int
    ld: int


# Where one line has several workloads, each time is divided by the time of the present line, and the least sum
# decides. The lines that most people wait for come first, so that a run that is stopped has tuned them.
WORKLOADS = [
    Workload(kind, work, *shape)
    for kind, factor in (("half", 4), ("int8", 4), ("float", 1))
    for work, shape in (
        ("short", (1, 1000, 32, 300)),
        ("short", (1, 2500 * factor, 32, 300)),
        ("short", (1, 10000, 32, 73)),
        ("wide", (128, 128, 32, 300)),
        ("wide", (1, 250 * factor, 1024, 1024)),
        ("short_argmax", (1, 2500, 32, 300)),
        ("wide_argmax", (128, 128, 32, 300)),
        ("grad_q", (256, 256, 32, 300)),
        ("grad_d", (256, 256, 32, 300)),
    )
    if kind != "int8" or work in ("short", "wide")
]
KINDS = ("half", "int8", "float")
Seconds = Callable[[Workload, Config], "float | None"]
# A candidate that takes this many times the least time on the first workload is not tried on the others.
HOPELESS = 1.3


def candidates(workload: Workload) -> list[Config]:
    """Return what is tried for a line: configurations near the table's first ones that compile without spilling."""
    piece = {"half": 512, "float": 64, "int8": 512}[workload.kind]
    if workload.work == "grad_q":
        return [
            Config(q, 16, warps, stages, piece=min(piece, 128))
            for q, warps in ((8, 2), (16, 2), (16, 4))
            for stages in (2, 3, 4)
        ]
    if workload.work == "grad_d":
        return [
            Config(tokens, d, warps, 1, piece=size)
            for tokens, d, warps, size in itertools.product((32, 64), (16, 32), (1, 2, 4), (64, 128))
            if d * size <= 32 * 64 * warps  # or a thread holds more than 64 sums
        ]
    if workload.work.startswith("short"):
        # A processor has room for about 8 warps of such programs.
        return [
            Config(64, d, warps, stages, False, run, registers, piece, 8 // warps)
            for (d, warps), registers in (
                *(((d, warps), None) for d, warps in ((16, 1), (16, 2), (32, 1), (64, 1))),
                *(((d, warps), 128) for d, warps in ((32, 2), (64, 4))),
            )
            for stages in (3, 4, 5)
            for run in (1, 2)
        ]
    argmax = workload.work.endswith("argmax")
    shapes = [(128, 64, 4), (128, 64, 8), (128, 128, 8), (256, 64, 4), (256, 64, 8), (256, 128, 16)]
    return [
        Config(q, d, warps, stages, swap, 16, registers, piece, resident)
        for (q, d, warps), stages, swap, registers, resident in itertools.product(
            shapes, (2, 3), (False, True), (None, 128), (1, 2, 3)
        )
        # A thread holds 32, 64 or 128 products. With documents on the side of many rows it also holds their maxima,
        # and the places of the maxima.
        if registers is None or q * d * (2 if swap else 1) < 32 * 128 * warps
        if not swap or q * d <= 32 * (32 if argmax else 128) * warps
    ]


def tune(arch: str, path: Path, where: str, seconds: Seconds, kinds: Sequence[str] = KINDS) -> None:
    """Choose for each line of ``arch`` the candidate with the least time, and write it to the table at ``path``."""
    table = json.loads(path.read_text(encoding="utf-8"))["configs"]
    chosen_workloads = [workload for workload in WORKLOADS if workload.kind in kinds]
    for (kind, work), group in itertools.groupby(chosen_workloads, lambda w: (w.kind, w.work)):
        workloads = list(group)
        key = f"{arch}/{kind}/{work}"
        present = triton_tiles.config_in({k: Config(**row) for k, row in table.items()}, arch, kind, work)
        first = [seconds(workload, present) or float("inf") for workload in workloads]
        # The line as it is stays, unless another is better by more than noise.
        least, chosen = 0.98 * len(workloads), present
        fastest = first[0]
        for config in candidates(workloads[0]):
            times: list[float] = []
            for workload in workloads:
                time = seconds(workload, config)
                if time is None or (not times and time > HOPELESS * fastest):
                    break
                times.append(time)
            else:
                fastest = min(fastest, times[0])
                if float("inf") in first:  # the line as it is does not run: the others are compared with this one
                    first, least, chosen = times, 1.0 * len(times), config
                relative = sum(t / f for t, f in zip(times, first, strict=True))
                if relative < least:
                    least, chosen = relative, config
        # At once, so that a run that is stopped keeps this line.
        rewrite(path, {key: chosen}, f"{arch}: {where}.")
        print(f"{key}: {least / len(workloads):.2f} of the time with {chosen}", flush=True)


def rewrite(path: Path, best: dict[str, Config], provenance: str) -> None:
    """Put lines into the table, and say at the end of its text where they come from; the rest stays byte for byte."""
    table = json.loads(path.read_text(encoding="utf-8"))
    if provenance:
        arch = provenance.partition(":")[0]
        others = re.sub(rf" {arch}: .*?\.(?= sm_|$)", "", table["provenance"])
        table["provenance"] = f"{others} {provenance}"
    for key, config in best.items():
        table["configs"][key] = {
            name: value
            for name, value in config._asdict().items()
            if name not in Config._field_defaults or value != Config._field_defaults[name]
        }
    lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(row)}" for key, row in table["configs"].items())
    head = f'{{\n  "provenance": {json.dumps(table["provenance"])},\n  "configs": {{\n'
    path.write_text(f"{head}{lines}\n  }}\n}}\n", encoding="utf-8")


@contextmanager
def configured(config: Config) -> Iterator[None]:
    """Let the backend use one configuration for everything."""
    chosen = triton_tiles.config_for
    triton_tiles.config_for = lambda *_: config
    _forget_plans()
    try:
        yield
    finally:
        triton_tiles.config_for = chosen
        _forget_plans()


def _forget_plans() -> None:
    triton_._score_plan.cache_clear()
    triton_._grad_plan.cache_clear()


def measured(workload: Workload, config: Config) -> float | None:
    """Seconds of the GPU; None if the candidate is wrong or does not fit."""
    import triton

    problem = _problem(workload)
    run = runner(workload, problem)
    with configured(config):
        try:
            result = run()
        except (triton.runtime.errors.TritonError, RuntimeError) as error:
            print(f"  {config}: {type(error).__name__}", flush=True)
            return None
        if not workload.work.startswith("grad"):
            expected = _expected(workload)
            if not torch.allclose(result, expected, rtol=1e-4, atol=1e-3):
                print(f"  {config}: wrong by {(result - expected).abs().max().item():.1e}", flush=True)
                return None
        found = float(triton.testing.do_bench(run, warmup=5, rep=30, return_mode="median")) / 1e3
    print(f"  {workload} {config}: {1e6 * found:.1f} us", flush=True)
    return found


def runner(workload: Workload, problem: Problem) -> Callable[[], Any]:
    """Return the call that is timed."""
    if not workload.work.startswith("grad"):
        score = triton_.score_argmax if "argmax" in workload.work else triton_.score
        return lambda: score(problem).scores
    # Any row may have won: what a gradient costs does not depend on it.
    argmax = torch.randint(workload.ld, (problem.num_pairs, workload.lq), device="cuda", dtype=problem.argmax_dtype)
    weight = torch.ones(problem.num_pairs, device="cuda")
    return lambda: triton_.backward(problem, weight, argmax, workload.work == "grad_q", workload.work == "grad_d")


@functools.lru_cache(4)
def _problem(w: Workload) -> Problem:
    torch.manual_seed(0)
    dtype = torch.float32 if w.kind == "float" else torch.bfloat16
    normalize = torch.nn.functional.normalize
    q = cf.PackedTokens.from_padded(normalize(torch.randn(w.nq, w.lq, 128, device="cuda"), dim=-1).to(dtype))
    d = cf.PackedTokens.from_padded(normalize(torch.randn(w.nd, w.ld, 128, device="cuda"), dim=-1).to(dtype))
    sides = (q.tokens, q.starts, q.lengths, d.tokens, None, d.starts, d.lengths, None, w.lq, w.ld, False, False, 2**26)
    problem = Problem(*sides)
    if w.kind == "int8":
        scales = d.tokens.float().abs().amax(1) / 127
        rows = (d.tokens.float() / scales[:, None]).round().to(torch.int8)
        return problem._replace(d_tokens=rows, d_scales=scales)
    return problem


@functools.lru_cache(4)
def _expected(w: Workload) -> torch.Tensor:
    problem = _problem(w)
    if problem.d_scales is not None:
        exact = problem.d_tokens.float() * problem.d_scales[:, None]
        problem = problem._replace(q_tokens=problem.q_tokens.float(), d_tokens=exact, d_scales=None)
    return torch_.score(problem).scores


def compile_ahead(kinds: list[str]) -> None:
    """Let other processes compile all candidates, into Triton's cache."""
    for process in processes.start_shares("-m", "benchmarks.tune_triton", "--kinds", *kinds, "--compile"):
        processes.wait(process)


def compile_share(kinds: list[str], share: int, of: int) -> None:
    """Compile some candidates."""
    work = [(workload, config) for workload in WORKLOADS if workload.kind in kinds for config in candidates(workload)]
    for workload, config in work[share::of]:
        with configured(config), contextlib.suppress(Exception):  # a candidate that fails here fails again, and says so
            runner(workload, _problem(workload))()
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="leave the table as it is")
    parser.add_argument("--table", type=Path, default=triton_tiles.TUNING, help="the table to rewrite")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of dtypes (default: all)")
    parser.add_argument("--compile", type=int, nargs=2, metavar=("SHARE", "OF"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    reason = triton_.BACKEND.unsupported or triton_._refused(torch.device("cuda"))
    if reason is not None:
        parser.error(f"nothing to measure: {reason}")
    if arguments.compile:
        compile_share(arguments.kinds, *arguments.compile)
        return
    import triton

    compile_ahead(arguments.kinds)
    gpu = triton_._gpu(torch.cuda.current_device())
    path = _copy(arguments.table) if arguments.dry_run else arguments.table
    name = torch.cuda.get_device_name()
    where = f"measured on {name} on {datetime.date.today()}, torch {torch.__version__}, triton {triton.__version__}"
    tune(gpu.arch, path, where, measured, arguments.kinds)


def _copy(path: Path) -> Path:
    copy = Path(tempfile.mkdtemp()) / path.name
    copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return copy


if __name__ == "__main__":
    main()
