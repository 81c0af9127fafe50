"""A search holds little memory besides the files, which the system may drop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROC = Path("/proc/self/status")

# All bounds of all queries together take 200 MB, and those that are held at a time 32 MiB. The documents have one
# number each, so that a bound is a product.
SCRIPT = r"""
import re, sys, threading, time
import torch
import colbert_fast as cf
from colbert_fast.collection import documents, search
from in_memory import Segment, Snapshot, codes_of

torch.set_num_threads(1)
search._PAIRS_AT_ONCE = 2**23
nq, nd = 200, 250_000
generator = torch.Generator().manual_seed(0)
queries = 1 + torch.rand(nq, 1, 1, generator=generator)
numbers = torch.rand(nd, 1, generator=generator) ** 8
def upper_bounds(queries, codes, *, backend=None):
    return (queries.tokens * 1.0001) @ numbers[codes.starts].T
documents.upper_bounds = upper_bounds

ones = torch.ones(nd, dtype=torch.int64)
exact = cf.PackedTokens(numbers, torch.arange(nd), ones)
codes = codes_of([numbers], "int8")[0]
codes = documents.Codes(8, 1, 7, codes.levels, codes.multipliers, codes.slack, numbers[:, 0], torch.arange(nd), ones)
snapshot = Snapshot([Segment([codes], exact, torch.arange(nd), torch.arange(nd))])
search.topk(snapshot, queries[:2], 10)

def anonymous():
    return int(re.search(r"RssAnon:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024

most, done = 0.0, False
def watch():
    global most
    while not done:
        most = max(most, anonymous())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
before = anonymous()
watcher.start()
scores, ids = search.topk(snapshot, queries, 10)
done = True
watcher.join()
best = torch.sort(numbers[:, 0], descending=True, stable=True).indices[:10].tolist()
assert ids == [[f"d{number}" for number in best]] * nq
print(most - before)
"""


@pytest.mark.skipif(not PROC.exists() or "RssAnon" not in PROC.read_text(), reason="there is no RssAnon in /proc")
def test_many_queries_of_many_documents_take_bounded_memory() -> None:
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"
    run = subprocess.run([sys.executable, "-c", path + SCRIPT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 110, "MiB"
