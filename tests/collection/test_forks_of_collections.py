"""A forked child reads the collection of its parent, which waits, and writes where its parent has nothing open."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

SCRIPT = """
import os, signal, sys, threading, torch, colbert_fast as cf
from colbert_fast.collection.lock import WriterLock
torch.set_num_threads(2)
x = torch.randn(700, 700); x @ x
collection = cf.Collection(sys.argv[1], wait=60)
collection.add(["a", "b"], torch.ones(2, 3, 8), [{"n": 1}, {"n": 2}])

def forked(function):
    process = os.fork()
    if process == 0:
        signal.alarm(240)
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0

def read():
    assert collection.ids("n = 2") == ["b"]
    assert torch.get_num_threads() == 1  # threads of the parent are not waited for
    assert torch.equal(collection["a"], torch.ones(3, 8).half())
    assert collection.metadata("a") == {"n": 1} and len(collection) == 2
    assert collection.topk(torch.ones(1, 2, 8), 1).ids == [["a"]]
    collection.close()

# Another thread holds the lock of the collection.
with collection._lock:
    done = []
    thread = threading.Thread(target=lambda: (forked(read), done.append(True)))
    thread.start()
    thread.join()
    assert done
assert collection.ids() == ["a", "b"]

def cannot_lock():
    try:
        with WriterLock(sys.argv[1]).held(0):
            pass
    except TimeoutError:
        return
    raise AssertionError("the lock of the parent is the child's too")

with collection._writer._writing():
    forked(cannot_lock)
collection.delete(["b"])
collection.close()

def write():
    with cf.Collection(sys.argv[1]) as own:
        own.add(["c"], torch.zeros(1, 3, 8))
        own.delete(["a"])
        own.compact()

forked(write)
with cf.Collection(sys.argv[1]) as again:
    again.verify()
    assert again.ids() == ["c"]
"""


def test_a_forked_child(tmp_path: os.PathLike[str]) -> None:
    command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", SCRIPT]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr
