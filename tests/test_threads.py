"""Any number of threads gives the same bits, and threads disturb neither fork nor exit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, embeddings, planted
from processes import assert_clean, python

import colbert_fast as cf
from colbert_fast import _threads
from colbert_fast._backends import cpu

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed in /proc/self/task")


def ragged(dtype: torch.dtype) -> tuple[cf.PackedTokens, cf.PackedTokens]:
    """About 80 MFLOP of scores and 9 of gradients, where 2 are the least that is shared among threads."""
    queries = embeddings([40, 1, 33, 0, 64, 17, 32, 8], 96, dtype)
    documents = planted(queries, embeddings([(37 * i) % 71 + 1 for i in range(60)], 96, dtype))
    return cf.PackedTokens.from_list(queries), cf.PackedTokens.from_list(documents)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["all-pairs", "pairs", "shared-rows"])
def test_bits_do_not_depend_on_the_number_of_threads(native: str, kind: str, dtype: torch.dtype, threads: Any) -> None:
    q, d = ragged(dtype)
    pairs = torch.stack([torch.randint(len(q), (400,)), torch.randint(len(d), (400,))], dim=1)
    if kind == "shared-rows":
        d = cf.PackedTokens(d.tokens, d.starts, (d.lengths + 9).minimum(len(d.tokens) - d.starts))

    def scored(n: int) -> list[torch.Tensor]:
        threads(n)
        listed = (q.max_length, d.max_length, False, False, 2**24, native)
        some = None if kind == "all-pairs" else pairs
        sides = (q.tokens, q.starts, q.lengths, d.tokens, d.scales, d.starts, d.lengths, some)
        scores, argmax = torch.ops.colbert_fast.score_argmax(*sides, *listed)
        grad_scores = torch.linspace(-1, 1, scores.numel())
        grads = torch.ops.colbert_fast.backward(*sides, *listed[:-1], grad_scores, argmax, True, True, native)
        without_argmax = torch.ops.colbert_fast.score(*sides, *listed)
        return [scores, argmax, *grads, without_argmax]

    expected = scored(1)
    assert torch.equal(expected[0], expected[-1])
    for n in range(2, 6):
        assert all(torch.equal(a, b) for a, b in zip(scored(n), expected, strict=True)), n
        assert cpu._C.pool_size() >= n - 1


def test_workers_treat_denormals_as_the_caller_does(native: str, threads: Any) -> None:
    q, d = torch.full((16, 32, 64), 1e-20), torch.full((400, 30, 64), 1e-20)
    threads(3)
    kept = cf.maxsim(q, d, backend=native)  # the workers start while denormals are kept
    assert (kept > 0).all()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        for n in (1, 3):
            threads(n)
            assert not cf.maxsim(q, d, backend=native).any()
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(cf.maxsim(q, d, backend=native), kept)


def test_more_threads_than_units(native: str, threads: Any) -> None:
    q, d = torch.randn(2, 40, 128), torch.randn(3, 500, 128)
    threads(1)
    expected = cf.maxsim(q, d, backend=native)
    threads(32)
    assert torch.equal(cf.maxsim(q, d, backend=native), expected)
    assert torch.equal(cf.maxsim(q, d[:1], backend=native), expected[:, :1])


def test_concurrent_callers(extension: str) -> None:
    assert_clean(
        python(
            r"""
from concurrent.futures import ThreadPoolExecutor
expected = [score(queries * k) for k in range(1, 5)]
def caller(k):
    a = (queries * k).requires_grad_()
    for _ in range(20):
        assert torch.equal(score(a.detach()), expected[k - 1])
    score(a).sum().backward()
    return a.grad
with ThreadPoolExecutor(4) as executor:
    grads = list(executor.map(caller, range(1, 5)))
assert all(torch.equal(grad, grads[0]) for grad in grads)
assert cpu._C.pool_size() == 2
""",
            extension,
        )
    )


@needs_proc
def test_threads_start_when_first_needed(extension: str) -> None:
    done = python(
        r"""
before = tasks()
assert cpu._C.pool_size() == 0
score(queries[:1, :2], documents[:1, :2])
assert cpu._C.pool_size() == 0 and tasks() == before
score()
assert cpu._C.pool_size() == 2
workers = tasks() - before
assert len(workers) == 2
for worker in workers:
    status = dict(line.split(":", 1) for line in open(f"/proc/self/task/{worker}/status"))
    assert int(status["SigBlk"], 16) >> (signal.SIGINT - 1) & 1
score()
cf.set_num_threads(2)
score()
assert tasks() - before == workers
cf.set_num_threads(5)
score()
assert cpu._C.pool_size() == 4 and len(tasks() - before) == 4
""",
        extension,
    )
    assert_clean(done)


@needs_proc
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say where threads may run")
def test_workers_keep_off_the_cpu_of_the_caller(extension: str) -> None:
    """As long as there are other CPUs for all of them; never where the caller may not run."""
    script = r"""
before = tasks()
every = os.sched_getaffinity(0)

def until(expected):
    # A worker is told where to run when a call begins and the worker has begun to serve.
    end = time.monotonic() + 300
    while True:
        score()
        cpus = [os.sched_getaffinity(int(worker)) for worker in tasks() - before]
        if len(cpus) == cf.get_num_threads() - 1 and all(map(expected, cpus)):
            return
        assert time.monotonic() < end, cpus

def free(some):
    return some <= every and len(some) == len(every) - (len(every) >= cf.get_num_threads())

until(free)
for cpu in every:
    os.sched_setaffinity(0, {cpu})
    until({cpu}.__eq__)
    os.sched_setaffinity(0, every)
    until(free)
# Now and then a worker is given the CPU of its caller. It is free again when the next call begins.
for threads in (3, 20):
    cf.set_num_threads(threads)
    for _ in range(50):
        score()
    until(lambda some: some <= every and len(some) >= len(every) - 1 and (len(some) > 1 or len(every) == 1))
"""
    assert_clean(python(script, extension))


@needs_proc
def test_import_starts_no_thread() -> None:
    script = r"""
import os
import numpy, torch
before = os.listdir("/proc/self/task")
import colbert_fast
assert os.listdir("/proc/self/task") == before
assert colbert_fast._backends.cpu._C is None or colbert_fast._backends.cpu._C.pool_size() == 0
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr


@forks
@pytest.mark.parametrize("when", ["before-first-use", "after-use", "while-scoring", "in-a-thread", "twice"])
def test_fork(extension: str, when: str) -> None:
    script = {
        "before-first-use": r"""
child = os.fork()
expected = score()
if child == 0:
    os._exit(0 if cpu._C.pool_size() == 2 else 1)
""",
        "after-use": r"""
expected = score()
child = os.fork()
if child == 0:
    in_child(expected)
""",
        "while-scoring": r"""
expected = score()
stop = threading.Event()
def loop():
    while not stop.is_set():
        score()
scoring = threading.Thread(target=loop)
scoring.start()
for i in range(20):
    time.sleep(0.003 * i % 0.01)
    child = os.fork()
    if child == 0:
        in_child(expected)
    wait_for(child)
stop.set()
scoring.join()
child = os.fork()
if child == 0:
    in_child(expected)
""",
        "in-a-thread": r"""
expected = score()
children = []
def fork():
    child = os.fork()
    if child == 0:
        in_child(expected)
    children.append(child)
forking = threading.Thread(target=fork)
forking.start()
forking.join()
(child,) = children
""",
        "twice": r"""
expected = score()
child = os.fork()
if child == 0:
    assert torch.equal(score(), expected)
    grandchild = os.fork()
    if grandchild == 0:
        in_child(expected)
    wait_for(grandchild)
    in_child_ok = torch.equal(score(), expected)
    os._exit(0 if in_child_ok else 1)
""",
    }[when]
    # The parent goes on with its own pool.
    assert_clean(python(script + "wait_for(child)\nassert torch.equal(score(), expected)\n", extension))


@forks
def test_data_loader_workers(extension: str) -> None:
    script = r"""
expected = score()
class Scores(torch.utils.data.Dataset):
    def __len__(self):
        return len(queries)
    def __getitem__(self, i):
        assert cf.get_num_threads() == int(sys.argv[2])
        return score(queries[i : i + 1])[0]
loader = torch.utils.data.DataLoader(
    Scores(), batch_size=4, num_workers=2, multiprocessing_context="fork", timeout=3600
)
assert torch.equal(torch.cat(list(loader)), expected)
"""
    assert_clean(python(script, extension, "3"))
    # If no number was set for this package, a worker takes torch's number, which DataLoader sets to 1.
    script = "del os.environ['COLBERT_FAST_NUM_THREADS']\n" + script
    assert_clean(python(script, extension, "1"))


@pytest.mark.parametrize("where", ["main", "thread", "daemon", "sys-exit-in-thread", "after-fork"])
def test_exit_with_a_live_pool(extension: str, where: str) -> None:
    if where == "after-fork" and not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    script = {
        "main": "score()",
        "thread": "score()\nthreading.Thread(target=score).start()",
        "daemon": "started = threading.Thread(target=score, daemon=True)\nstarted.start()\nstarted.join()",
        "sys-exit-in-thread": "threading.Thread(target=lambda: sys.exit(score().isnan().any())).start()",
        # This child ends by the exit of the interpreter.
        "after-fork": "score()\nchild = os.fork()\nscore()\nif child:\n    wait_for(child)",
    }[where]
    assert_clean(python(script, extension))


def test_exit_while_a_daemon_thread_scores(extension: str) -> None:
    # Calls the extension directly: how torch behaves in a thread when the interpreter ends is not tested here.
    script = r"""
q, d = torch.randn(400, 64), torch.randn(20000, 64)
start, lengths = torch.tensor([0]), torch.tensor([len(q), len(d)])
scores = torch.zeros(1)
a, b = (0, q, start, lengths[:1], None), (0, d, start, lengths[1:], None)
run = cpu._C.score
arguments = ("portable", a, b, None, len(q), False, False, 3, scores, None)
def loop():
    while True:
        run(*arguments)
threading.Thread(target=loop, daemon=True).start()
time.sleep(0.2)
"""
    assert_clean(python(script, extension))


def test_calls_are_counted_for_the_tier_that_ran(native: str) -> None:
    tier = native.removeprefix("cpu:")
    q, d = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    before = cpu._C.calls()
    scores = cf.maxsim(q, d, backend=native)
    assert cpu._C.calls() == {**before, tier: before[tier] + 1}
    scores.sum().backward()  # one call for each side
    assert cpu._C.calls() == {**before, tier: before[tier] + 3}


@pytest.fixture
def no_number(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(_threads, "_num_threads", None)
    monkeypatch.delenv("COLBERT_FAST_NUM_THREADS", raising=False)
    return monkeypatch


def test_number_of_threads(no_number: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert cf.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert cf.get_num_threads() == before
    no_number.setenv("COLBERT_FAST_NUM_THREADS", "7")
    assert cf.get_num_threads() == 7
    cf.set_num_threads(2)
    assert cf.get_num_threads() == 2


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_a_blank_number_in_the_environment_is_none(native: str, no_number: pytest.MonkeyPatch, text: str) -> None:
    no_number.setenv("COLBERT_FAST_NUM_THREADS", text)
    assert cf.get_num_threads() == torch.get_num_threads()
    cf.maxsim(torch.randn(1, 2, 3), torch.randn(1, 2, 3), backend=native)
    no_number.setenv("COLBERT_FAST_NUM_THREADS", " 5 ")
    assert cf.get_num_threads() == 5


@pytest.mark.parametrize("n", [np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), torch.ones(1).int() + 1])
def test_a_number_of_threads_may_be_any_integer(n: Any, threads: Any) -> None:
    threads(n)
    assert type(cf.get_num_threads()) is int and cf.get_num_threads() == 2


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "nan", "2147483648"])
def test_bad_number_in_the_environment(native: str, no_number: pytest.MonkeyPatch, text: str) -> None:
    no_number.setenv("COLBERT_FAST_NUM_THREADS", text)
    message = f"^COLBERT_FAST_NUM_THREADS must be .*; got '{text}'$"
    with pytest.raises(ValueError, match=message):
        cf.get_num_threads()
    with pytest.raises(ValueError, match=message):
        cf.maxsim(torch.randn(1, 2, 3), torch.randn(1, 2, 3), backend=native)


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "n must be 1 or more; got 0"),
        (-3, ValueError, "n must be 1 or more; got -3"),
        (2**31, ValueError, "n must be .*; got 2147483648"),
        (1.0, TypeError, "n must be an int; got 1.0"),
        (True, TypeError, "n must be an int; got True"),
        ("2", TypeError, "n must be an int; got '2'"),
        (torch.tensor(True), TypeError, r"n must be an int; got tensor\(True\)"),
        (np.True_, TypeError, "n must be an int; got .*"),
        (torch.tensor(2.0), TypeError, r"n must be an int; got tensor\(2.\)"),
        (torch.tensor([1, 2]), TypeError, r"n must be an int; got tensor\(\[1, 2\]\)"),
        (np.int64(0), ValueError, "n must be 1 or more; got 0"),
        (np.int64(2**31), ValueError, "n must be .*; got 2147483648"),
        (None, TypeError, "n must be an int; got None"),
    ],
)
def test_bad_number(n: Any, error: type[Exception], message: str) -> None:
    before = _threads._num_threads
    with pytest.raises(error, match=f"^{message}$"):
        cf.set_num_threads(n)
    assert _threads._num_threads == before
