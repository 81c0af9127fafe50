"""The amx tier with torch, fork and refused permission, on real AMX. test_sanitizers.py runs it on a model of AMX."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import assert_scores, embeddings, planted
from lacking import LACKING

import colbert_fast as cf


@pytest.fixture
def amx() -> str:
    if "cpu:amx" in LACKING:
        pytest.fail(f"cpu:amx: {LACKING['cpu:amx']}")
    return "cpu:amx"


@pytest.mark.needs("cpu:amx")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_beside_the_amx_of_torch(amx: str, dtype: torch.dtype) -> None:
    """Torch's bfloat16 products use AMX on the same thread, with tiles of its own."""
    q, d = embeddings([32, 9], 128, dtype), embeddings([300, 15, 40], 128, dtype)
    d = planted(q, d)
    sizes = [(64, 64, 64), (37, 100, 19), (256, 512, 33)]
    matrices = [(torch.randn(m, k).bfloat16(), torch.randn(k, n).bfloat16()) for m, k, n in sizes]
    expected = [a @ b for a, b in matrices]
    for _ in range(20):
        for (a, b), product in zip(matrices, expected, strict=True):
            assert_scores(cf.maxsim(q, d, backend=amx), q, d)
            assert torch.equal(a @ b, product)


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


SCORE = """
import os, torch, colbert_fast as cf
torch.manual_seed(0)
q, d = torch.randn(2, 32, 128).bfloat16(), torch.randn(50, 300, 128).bfloat16()
def score(): return cf.maxsim(q, d, backend="cpu:amx")
def finish(child): assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.needs("cpu:amx")
@pytest.mark.parametrize("first", [True, False], ids=["asked-before-fork", "asked-in-the-child"])
def test_forked_child(amx: str, first: bool) -> None:
    run(
        SCORE
        + f"""
expected = score() if {first} else None
child = os.fork()
if child == 0:
    ours = score()
    os._exit(0 if expected is None or torch.equal(ours, expected) else 1)
finish(child)
if expected is not None: assert torch.equal(score(), expected)
"""
    )


# A filter that answers the request, arch_prctl(ARCH_REQ_XCOMP_PERM), with EPERM and lets everything else pass.
# (Linux, Documentation/userspace-api/seccomp_filter.rst; struct sock_filter is code, jt, jf, k.)
REFUSE = """
import ctypes, struct
filters = [(0x20, 0, 0, 0), (0x15, 0, 3, 158), (0x20, 0, 0, 16), (0x15, 0, 1, 0x1023), (0x06, 0, 0, 0x50001),
           (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *f) for f in filters))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(filters), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
def refuse():
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
    assert libc.syscall(158, 0x1023, 18) == -1 and ctypes.get_errno() == 1
"""


def test_the_filter_refuses() -> None:
    """The filter of test_permission_refused works here, and the other tiers run under it."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("arch_prctl is of Linux on x86-64")
    run(REFUSE + "refuse()\nimport torch, colbert_fast as cf\ncf.maxsim(torch.ones(1, 2, 3), torch.ones(1, 2, 3))")


@pytest.mark.needs("cpu:amx")
def test_permission_refused(amx: str) -> None:
    run(
        REFUSE
        + SCORE
        + """
assert next(b for b in cf.backends() if b.name == "cpu:amx").unsupported is None
refuse()
before = cf._backends.cpu._C.calls()
cf.maxsim(q, d)
after = cf._backends.cpu._C.calls()
assert after["amx"] == before["amx"] and after["avx512_bf16"] == before["avx512_bf16"] + 1
assert "refuses" in next(b for b in cf.backends() if b.name == "cpu:amx").unsupported
try:
    score()
except NotImplementedError as error:
    assert "the kernel refuses the AMX registers" in str(error)
else:
    raise AssertionError
"""
    )
