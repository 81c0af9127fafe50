"""Many threads import, score, pack, search and train at once, in Pythons with and without the global interpreter lock.

What one thread computes alone is what each computes beside the others. Without the lock the threads run at the same
time in Python too, and importing the package must not bring the lock back.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from processes import assert_clean

THREADS = 8

# Begins with threads that import the package, so that nothing has been used before.
FIRST = f"""
import sys, sysconfig, threading
import torch

torch.set_num_threads(1)
together = threading.Barrier({THREADS})
failed = []

def on_threads(work):
    def tried(number):
        together.wait()
        try:
            work(number)
        except BaseException as error:
            failed.append(error)
    threads = [threading.Thread(target=tried, args=(number,)) for number in range({THREADS})]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]

found = [None] * {THREADS}

def first(number):
    import colbert_fast as cf
    cf.set_num_threads(3)
    q, d = torch.ones(2, 40, 32), torch.ones(60, 30, 32)
    assert (cf.maxsim(q, d) == 40 * 32).all()
    found[number] = cf.Collection, cf.backends(), cf.topk(q, list(d), 1)[0].tolist()

on_threads(first)
assert all(other == found[0] for other in found)
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    assert not sys._is_gil_enabled()
"""

# `results` calls everything; each thread does so several times, with other threads beside it.
REST = f"""
THREADS = {THREADS}
import colbert_fast as cf
from colbert_fast import _backends

torch.manual_seed(0)
queries, documents = torch.randn(4, 32, 64), [torch.randn(20 + 7 * i % 40, 64) for i in range(40)]
packed = cf.PackedTokens.from_list(documents)
coded = packed.quantize()
listed = list(documents)  # one thread takes items out and puts them back, while the others score it
collection = cf.Collection(sys.argv[1])
collection.add([str(i) for i in range(40)], documents, metadata=[{{"part": i % 9}} for i in range(40)])

def results(number):
    q = queries.clone().requires_grad_()
    scores, argmax = cf.maxsim_with_argmax(q, packed)
    scores.sum().backward()
    best = cf.topk(queries, documents, 3)
    joined = cf.PackedTokens.cat([packed, packed[::2]])
    found = collection.topk(queries, 3, where="part = ?", parameters=(number % 9,))
    yield from (scores.detach(), argmax, q.grad, *best, cf.maxsim(queries.bfloat16(), packed.to(dtype=torch.bfloat16)))
    yield from (joined.tokens, cf.maxsim(queries, documents), cf.maxsim(queries, coded), found.scores)

expected = [list(results(number)) for number in range(THREADS)]

def work(number):
    for i in range(6):
        if number == 0:
            listed.append(listed.pop(0))
            _backends._select.cache_clear()
        else:
            cf.maxsim(queries, listed)
        got = list(results(number))
        assert all(torch.equal(a, b) for a, b in zip(got, expected[number], strict=True))
        cf.set_num_threads(1 + (number + i) % 4)
        assert [b.name for b in cf.backends()]

on_threads(work)
"""


def test_many_threads(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", FIRST + REST, str(tmp_path / "collection")]
    environment = {name: value for name, value in os.environ.items() if name != "COLBERT_FAST_NUM_THREADS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False, env=environment)
    assert_clean(done)
