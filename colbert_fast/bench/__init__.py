"""Named workloads, the check that comes before every timing, and the limits of this machine.

``colbert-fast bench`` is the short form for an installed package; the suite in ``benchmarks/`` times every peer on
the same workloads.
"""

from colbert_fast.bench.machine import (
    cpu_name,
    cuda_limits,
    flush_caches,
    last_level_cache,
    limits,
    rated_peaks,
)
from colbert_fast.bench.report import as_json, as_text, run
from colbert_fast.bench.timing import (
    MAX_RELATIVE_ERROR,
    Comparison,
    Measurement,
    relative_error,
    rest,
    warm_up_rounds,
)
from colbert_fast.bench.workloads import SHORT, WORKLOADS, Inputs, Workload

__all__ = [
    "MAX_RELATIVE_ERROR",
    "SHORT",
    "WORKLOADS",
    "Comparison",
    "Inputs",
    "Measurement",
    "Workload",
    "as_json",
    "as_text",
    "cpu_name",
    "cuda_limits",
    "flush_caches",
    "last_level_cache",
    "limits",
    "rated_peaks",
    "relative_error",
    "rest",
    "run",
    "warm_up_rounds",
]
