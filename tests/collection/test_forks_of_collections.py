"""A forked child uses the collection of its parent, while the parent goes on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

SCRIPT = """
import os, signal, sys, threading, torch, colbert_fast as cf
torch.set_num_threads(2)
x = torch.randn(700, 700); x @ x
collection = cf.Collection(sys.argv[1], wait=60)
collection.add(["a", "b"], torch.ones(2, 3, 8), [{"n": 1}, {"n": 2}])
other = cf.Collection(sys.argv[1])

def child(held):
    process = os.fork()
    if process == 0:
        signal.alarm(240)
        code = 1
        try:
            if held:
                held.release()
            assert collection.ids("n = 2") == ["b"]
            assert torch.get_num_threads() == 1  # threads of the parent are not waited for
            assert torch.equal(collection["a"], torch.ones(3, 8).half())
            if held:  # the change of the parent goes on, and this child has its descriptors
                try:
                    cf.Collection(sys.argv[1], wait=0).delete(["a"])
                except TimeoutError:
                    code = 0
            else:
                collection.refresh()
                collection.add(["c"], torch.zeros(1, 3, 8))
                assert collection.topk(torch.ones(1, 2, 8), 1).ids == [["a"]]
                collection.close()
                code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

# Another thread holds the lock of the collection.
lock = collection._lock
lock.acquire()
entered = threading.Event()
def fork():
    assert child(None) == 0
    entered.set()
thread = threading.Thread(target=fork)
thread.start()
thread.join()
lock.release()
assert entered.is_set()
assert "c" not in other and collection.ids() == ["a", "b"]
collection.refresh()
assert collection.ids() == ["a", "b", "c"]
with collection._writer._writing():
    assert child(threading.Semaphore()) == 0
collection.delete(["c"])
collection.compact()
collection.verify()
assert collection.ids() == ["a", "b"]
"""


def test_a_forked_child(tmp_path: os.PathLike[str]) -> None:
    command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", SCRIPT]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr
