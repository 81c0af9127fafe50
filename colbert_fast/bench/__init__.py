"""Named workloads, and ``colbert-fast bench``: our backends beside what torch users write, checked before timed.

The suite in ``benchmarks/`` of the repository times every library on the same workloads, and is not installed.
"""

from colbert_fast.bench.contenders import einsum, gemm, gemm_of_rows
from colbert_fast.bench.report import as_json, as_text, cpu_name, run
from colbert_fast.bench.timing import MAX_RELATIVE_ERROR, quantiles, relative_error, rest, warm_up_rounds
from colbert_fast.bench.workloads import SHORT, WORKLOADS, Inputs, Workload, flush_caches, last_level_cache

__all__ = [
    "MAX_RELATIVE_ERROR",
    "SHORT",
    "WORKLOADS",
    "Inputs",
    "Workload",
    "as_json",
    "as_text",
    "cpu_name",
    "einsum",
    "flush_caches",
    "gemm",
    "gemm_of_rows",
    "last_level_cache",
    "quantiles",
    "relative_error",
    "rest",
    "run",
    "warm_up_rounds",
]
