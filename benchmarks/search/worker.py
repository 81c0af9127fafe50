"""One contender in a process of its own: `python -m benchmarks.search.worker DATA FOLDER K SECONDS INDEX [SETTING]`.

Without a setting it builds the index into the folder, else it searches. It prints one line of JSON. It runs under
another interpreter where the contender needs another torch, so it needs numpy alone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.beir import ndcg
from benchmarks.search import ours, peers
from benchmarks.search.data import Data
from benchmarks.search.index import Index

INDEXES = {index.name: index for index in (*ours.INDEXES, *peers.INDEXES)}
WARM_UP = 2


def cpu_seconds() -> float:
    """Return the CPU time of this process, all threads, and of the processes that it has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak_memory() -> int | None:
    """Return the most memory that this process held, mapped files included; None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def build(data: Data, folder: Path, index: Index) -> dict[str, Any]:
    """Build an index, and say what it took."""
    assert index.build is not None
    cpu, wall = cpu_seconds(), time.perf_counter()
    index.build(data, folder)
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    return {"build_cpu": cpu, "build_wall": wall, "size": size_of(folder), "build_peak_memory": peak_memory()}


def search(data: Data, folder: Path, index: Index, setting: str, k: int, seconds: float) -> dict[str, Any]:
    """Search for the queries in turn, for so many seconds at most, and compare with the exact ranking."""
    start = cpu_seconds()
    find = index.settings[setting](data, folder)
    opened = cpu_seconds() - start
    queries = data.asked()
    for query in queries[:WARM_UP]:
        find(query, k)
    cpu, wall, found, read = [], [], [], []
    end = time.perf_counter() + seconds
    for query in queries:
        before, start = cpu_seconds(), time.perf_counter()
        numbers, exactly = find(query, k)
        wall.append(time.perf_counter() - start)
        cpu.append(cpu_seconds() - before)
        found.append(numbers)
        if exactly is not None:
            read.append(exactly)
        if time.perf_counter() > end:
            break
    result = {
        "open_cpu": opened,
        "cpu": quantiles(cpu),
        "wall": quantiles(wall),
        "queries": len(found),
        "read": float(np.mean(read)) if read else None,
        "peak_memory": peak_memory(),
        **quality(data, found, k),
    }
    return {**result, "build_cpu": opened} if index.build is None else result


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return the median, and the edges of the middle 60 %."""
    return {name: float(np.quantile(seconds, share)) for name, share in (("p20", 0.2), ("p50", 0.5), ("p80", 0.8))}


def quality(data: Data, found: list[list[int]], k: int) -> dict[str, Any]:
    """Compare rankings with the exact ones, and with the judgements if there are any."""
    k = min(k, len(data.lengths))
    overlap = [len(data.right(query, k) & set(ranking[:k])) / k for query, ranking in enumerate(found)]
    first = [ranking[:1] != [] and ranking[0] in data.right(query, 1) for query, ranking in enumerate(found)]
    result = {"overlap": float(np.mean(overlap)), "first": float(np.mean(first))}
    judged = data.about["judged"]
    if judged is None:
        return result
    exact = [[int(number) for number in data.exact_numbers[query]] for query in range(len(found))]
    return {**result, "ndcg_10": mean_ndcg(found, judged), "exact_ndcg_10": mean_ndcg(exact, judged)}


def mean_ndcg(rankings: list[list[int]], judged: list[dict[str, float]]) -> float:
    """Return the mean nDCG@10 of the queries that have judgements."""
    by_number = [{int(number): gain for number, gain in gains.items()} for gains in judged]
    values = [ndcg(ranking, gains) for ranking, gains in zip(rankings, by_number, strict=False) if gains]
    return float(np.mean(values)) if values else math.nan


def main() -> None:
    data_folder, folder, k, seconds, name, *setting = sys.argv[1:]
    data, index = Data.read(Path(data_folder)), INDEXES[name]
    # Not measured: nobody imports a library for each index.
    importlib.import_module(index.module)
    if setting:
        result = search(data, Path(folder), index, setting[0], int(k), float(seconds))
    else:
        result = build(data, Path(folder), index)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
