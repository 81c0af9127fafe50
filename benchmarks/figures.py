"""What the figures of a run mean, and how one figure is written.

A ratio is a contender's median time over ours, that of a call that names no backend: above 1 ours is faster. A wrong
result is never the fastest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from colbert_fast.bench import rated_peaks

Entry = dict[str, Any]


def kind(entry: Entry) -> str:
    """Whose result it is: "ours", "torch" or "peer"."""
    return "ours" if entry["ours"] else entry.get("kind", "peer")


def best(entries: Iterable[Entry], of: str) -> Entry | None:
    """The fastest correct result of a kind; of ours the one of a call that names no backend, if there is one."""
    right = [entry for entry in entries if kind(entry) == of and not entry.get("wrong", False)]
    if of == "ours":
        right = [entry for entry in right if entry["contender"] == "colbert_fast"] or right
    return min(right, key=seconds, default=None)


def limit(run: Entry, workload: Entry, backends: Iterable[str]) -> tuple[str, float] | None:
    """What bounds a workload, and the seconds it takes there at least.

    The larger of reading the bytes once at the measured bandwidth ("memory") and of computing at the highest peak
    measured for these backends, that of int8 included, in which documents of any type are screened; on a CUDA device
    for the type of the tokens ("compute"). Bandwidth bounds no warm workload that fits into the last-level cache.
    """
    machine, device = run["machine"], workload["device"]
    key = str(machine["threads"]) if device == "cpu" else device
    bounds = []
    bandwidth = run["limits"].get("read_bytes_per_s", {}).get(key)
    from_memory = workload["cold"] or workload["bytes"] > (machine["last_level_cache"] or 0)
    if bandwidth and workload["bytes"] and from_memory:
        bounds.append(("memory", workload["bytes"] / bandwidth))
    peaks = run["limits"].get("flops_per_s", {})
    dtype = workload.get("dtype")
    rated = [name for b in backends for name in rated_peaks(b, dtype)] if device == "cpu" else [dtype]
    peak = max((peaks.get(name, {}).get(key, 0.0) for name in rated), default=0.0)
    if peak and workload["flops"]:
        bounds.append(("compute", workload["flops"] / peak))
    return max(bounds, key=lambda bound: bound[1], default=None)


def tiers(workload: Entry) -> list[str]:
    """Our backends that gave a correct result; the best of their peaks bounds the workload."""
    return [entry["backend"] for entry in workload["results"] if entry["ours"] and not entry.get("wrong", False)]


def seconds(entry: Entry) -> float:
    """The median."""
    return float(entry["seconds"]["p50"])


def variant(entry: Entry) -> str:
    """Which of our paths it is: the backend, and the layout if that is not the workload's own."""
    return str(entry["contender"].partition(" ")[2] or entry["backend"])


def family(contender: str) -> str:
    """The library of a contender: "maxsim-cpu maxsim_scores_variable" is one of maxsim-cpu's paths."""
    return contender.split()[0]


def digits(value: float, significant: int = 3) -> str:
    """A number with so many significant digits and no exponent."""
    value = float(f"{value:.{significant - 1}e}")
    return f"{value:.{max(significant - 1 - math.floor(math.log10(value)), 0)}f}" if value > 0 else "0"


def tilde(*entries: Entry) -> str:
    """The mark of a figure that rests on a noisy one."""
    return "~" if any(entry.get("noisy", False) for entry in entries) else ""


def ms(entry: Entry) -> str:
    """The median in milliseconds."""
    return tilde(entry) + digits(1e3 * seconds(entry))


def spread(entry: Entry) -> str:
    """p20 and p80 in milliseconds."""
    return "-".join(digits(1e3 * entry["seconds"][edge]) for edge in ("p20", "p80"))


def ratio(entry: Entry, ours: Entry | None) -> str:
    """A contender's time over ours."""
    if ours is None:
        return "-"
    times = seconds(entry) / seconds(ours)
    text = digits(times, 2) if times < 0.995 else f"{times:.1f}" if times < 9.95 else f"{times:.0f}"
    return f"{tilde(entry, ours)}{text}x"


def loss(entry: Entry, ours: Entry | None) -> bool:
    """Whether a correct contender is faster than ours, by what two decimals can show."""
    return ours is not None and not entry.get("wrong", False) and seconds(entry) < 0.995 * seconds(ours)


def error(entry: Entry) -> str:
    """The largest relative error; in per cent, and called wrong, where the suite found the result wrong."""
    value, wrong = entry.get("max_relative_error"), entry.get("wrong", False)
    if value is None:
        return "wrong" if wrong else "-"
    return f"wrong, error {100 * value:.2g} %" if wrong else f"{value:.1e}"


def rate(run: Entry, workload: Entry, entry: Entry, backends: Iterable[str]) -> tuple[str, str, str]:
    """The rate a result reached, the bound of its workload, and the share of it; "-" where none was measured."""
    bound = limit(run, workload, backends)
    if bound is None:
        return "-", "-", "-"
    amount, unit = (workload["bytes"], "GB/s") if bound[0] == "memory" else (workload["flops"], "GFLOP/s")
    reached = amount / seconds(entry) / 1e9
    if bound[0] == "compute" and reached >= 1e4:
        reached, unit = reached / 1e3, "TFLOP/s"
    share = 100 * bound[1] / seconds(entry)
    text = f"{tilde(entry)}{digits(reached)} {unit}"
    return text, bound[0], f"{tilde(entry)}{f'{share:.0f}' if share >= 9.5 else digits(share, 2)} %"


def setting(workload: Entry) -> str:
    """The shape of a workload, and whether its documents come from memory or may be in a cache."""
    return f"{workload['shape']}, {'cold' if workload['cold'] else 'warm'}"


def revision(run: Entry) -> str:
    """The commit that was measured, and whether the working tree differed from it."""
    return f"commit {run['commit'][:10]}{' (dirty)' if run['dirty'] else ''}" if run["commit"] else "commit unknown"
