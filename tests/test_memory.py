"""Any memory that a caller may use: strided, unaligned, read-only, mapped, huge. No call overruns or changes it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, assert_close, assert_scores, embeddings, planted
from torch import Tensor

import colbert_fast as cf
from colbert_fast import reference

PROC = Path("/proc/self/status")
needs_proc = pytest.mark.skipif(not PROC.exists(), reason="resident memory is read from /proc/self/status")
posix = pytest.mark.skipif(os.name != "posix", reason="guard pages are made with mprotect")


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


def stepped_rows(x: Tensor) -> Tensor:
    apart = torch.full((x.shape[0], 3, x.shape[1], x.shape[2]), 1e4, dtype=x.dtype)
    apart[:, 1] = x
    return apart[:, 1]


def stepped_tokens(x: Tensor) -> Tensor:
    apart = torch.full((x.shape[0], 2 * x.shape[1], x.shape[2]), 1e4, dtype=x.dtype)
    apart[:, ::2] = x
    return apart[:, ::2]


def columns(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:2], x.shape[2] + 7), 1e4, dtype=x.dtype)
    wide[..., 3:-4] = x
    return wide[..., 3:-4]


def storage_offset(x: Tensor) -> Tensor:
    longer = torch.full((x.numel() + 1,), 1e4, dtype=x.dtype)
    longer[1:] = x.flatten()
    return longer[1:].view(x.shape)


def unaligned(x: Tensor) -> Tensor:
    raw = bytearray(b"\x7e" + x.contiguous().view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(raw, dtype=x.dtype, offset=1).view(x.shape)


STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "stepped-items": stepped_rows,
    "stepped-tokens": stepped_tokens,
    "columns": columns,
    "stepped-columns": lambda x: x.repeat_interleave(2, 2)[..., ::2],
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "items-last": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "expanded": lambda x: x[:1].expand(x.shape),
    "expanded-tokens": lambda x: x[:, :1].expand(x.shape),
    "storage-offset": storage_offset,
    "unaligned": unaligned,
    "negated-view": lambda x: torch._neg_view(-x),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", STRIDED)
def test_strided_tensors(native: str, layout: str, dtype: torch.dtype) -> None:
    q = STRIDED[layout](torch.stack(embeddings([9] * 3, 20, dtype)))
    d = STRIDED[layout](torch.stack(embeddings([14] * 4, 20, dtype)))
    assert_scores(cf.maxsim(q, d, backend=native), list(q), list(d))
    q_grad, d_grad = q.detach().requires_grad_(), d.detach().requires_grad_()
    cf.maxsim(q_grad, d_grad, backend=native).sum().backward()
    plain_q, plain_d = q.detach().clone().requires_grad_(), d.detach().clone().requires_grad_()
    cf.maxsim(plain_q, plain_d, backend=native).sum().backward()
    assert torch.equal(q_grad.grad, plain_q.grad)
    assert torch.equal(d_grad.grad, plain_d.grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["columns", "stepped", "transposed", "expanded", "storage-offset", "unaligned"])
def test_strided_rows_of_packed_tokens(native: str, layout: str, dtype: torch.dtype) -> None:
    rows = torch.cat(embeddings([60], 24, dtype))
    tokens = {
        "columns": lambda: columns(rows[None])[0],
        "stepped": lambda: stepped_tokens(rows[None])[0],
        "transposed": lambda: rows.T.contiguous().T,
        "expanded": lambda: rows[:1].expand(rows.shape),
        "storage-offset": lambda: storage_offset(rows),
        "unaligned": lambda: unaligned(rows),
    }[layout]()
    documents = cf.PackedTokens(tokens, torch.tensor([40, 0, 13]), torch.tensor([20, 13, 27]))
    queries = embeddings([33, 2], 24, dtype)
    assert_scores(cf.maxsim(queries, documents, backend=native), queries, list(documents))


def test_unaligned_numbers_beside_the_tokens(native: str) -> None:
    queries, documents = embeddings([4, 9], 16), embeddings([5, 17, 2], 16)
    packed = cf.PackedTokens.from_list(documents)
    odd = cf.PackedTokens(packed.tokens, unaligned(packed.starts), unaligned(packed.lengths))
    pairs = torch.tensor([[1, 2], [0, 0], [1, 1]])
    expected = reference.maxsim(queries, documents)[pairs[:, 0], pairs[:, 1]]
    assert_close(cf.maxsim_pairs(queries, odd, unaligned(pairs), backend=native), expected)


@pytest.mark.parametrize("layout", ["unaligned", "negated-view", "expanded", "stepped"])
def test_incoming_gradients_of_any_layout(native: str, layout: str) -> None:
    q, d = torch.randn(3, 5, 8, requires_grad=True), torch.randn(4, 6, 8)
    weights = torch.randn(3, 4)
    grad_scores = {
        "unaligned": lambda: unaligned(weights),
        "negated-view": lambda: torch._neg_view(-weights),
        "expanded": lambda: weights[:1].expand(3, 4),
        "stepped": lambda: weights.repeat_interleave(2, 1)[:, ::2],
    }[layout]()
    (grad,) = torch.autograd.grad(cf.maxsim(q, d, backend=native), q, grad_scores)
    (expected,) = torch.autograd.grad(cf.maxsim(q, d, backend=native), q, grad_scores.clone().resolve_neg())
    assert torch.equal(grad, expected)


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


def packed_fields(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows inside records with an odd number of bytes: no stride is a multiple of the element size."""
    records = np.zeros(array.shape[0], dtype=[("row", array.dtype, array.shape[1:]), ("byte", "u1")])
    records["row"] = array
    return records["row"]


NUMPY: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
    "read-only": read_only,
    "fortran": np.asfortranarray,
    "reversed-rows": lambda array: array[::-1].copy()[::-1],
    "reversed-columns": lambda array: array[:, ::-1].copy()[:, ::-1],
    "stepped": lambda array: array.repeat(2, axis=0)[::2],
    "other-byte-order": lambda array: array.astype(array.dtype.newbyteorder()),
    "packed-fields": packed_fields,
    "broadcast": lambda array: np.broadcast_to(array[:1], array.shape),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("layout", NUMPY)
def test_numpy_arrays(native: str, layout: str, dtype: type[np.generic]) -> None:
    queries = [q.numpy().astype(dtype) for q in embeddings([5, 1, 33], 20)]
    documents = [d.numpy().astype(dtype) for d in embeddings([12, 1, 40], 20)]
    a, b = [NUMPY[layout](q) for q in queries], [NUMPY[layout](d) for d in documents]
    scores = cf.maxsim(a, b, backend=native)
    assert_scores(scores, [torch.tensor(q.astype(dtype)) for q in a], [torch.tensor(d.astype(dtype)) for d in b])
    padded = NUMPY[layout](documents[0])
    assert torch.equal(cf.maxsim(a, padded[None], backend=native), scores[:, :1])


def test_memory_mapped_arrays(native: str, tmp_path: Path) -> None:
    queries, documents = embeddings([7] * 3, 24), embeddings([18] * 5, 24)
    path = tmp_path / "documents.npy"
    np.save(path, torch.stack(documents).numpy())
    before = path.read_bytes()
    mapped = np.load(path, mmap_mode="r")
    assert_scores(cf.maxsim(torch.stack(queries), mapped, backend=native), queries, documents)
    assert_scores(cf.maxsim(queries, [mapped[i] for i in range(5)], backend=native), queries, documents)
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_are_never_written(native: str, dtype: torch.dtype) -> None:
    queries = torch.stack(embeddings([33] * 3, 40, dtype)).requires_grad_()
    documents = torch.stack(embeddings([50] * 4, 40, dtype)).requires_grad_()
    mask = torch.rand(4, 50) < 0.8
    pairs = torch.tensor([[2, 3], [0, 0], [2, 1]])
    inputs = [queries, documents, mask, pairs]
    before = [x.detach().clone() for x in inputs]
    cf.maxsim(queries, documents, backend=native).sum().backward()
    cf.maxsim(queries, documents, b_mask=mask, backend=native).sum().backward()
    cf.maxsim_pairs(queries, documents, pairs, backend=native).sum().backward()
    assert all(torch.equal(x.detach(), was) for x, was in zip(inputs, before, strict=True))


def resident_bytes() -> int:
    lines = dict(line.split(":", 1) for line in PROC.read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024


@needs_proc
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_than_2_to_the_31_elements(native: str, dtype: torch.dtype, tmp_path: Path) -> None:
    dim, rows = 128, 2**25 + 1000
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(rows * dim * dtype.itemsize)
    bits = np.memmap(path, dtype=np.float32 if dtype == torch.float32 else np.int16, mode="r+", shape=(rows, dim))
    tokens = torch.from_numpy(bits).view(dtype)
    assert tokens.numel() > 2**32
    queries = embeddings([3, 33], dim, dtype)
    documents = planted(queries, embeddings([50, 1, 13], dim, dtype))
    lengths = [50, 1, 13]
    starts = [rows - 50, 2**24 + 5, 2**25 + 7]  # at the end; around 2^31 and 2^32 elements
    for start, document in zip(starts, documents, strict=True):
        tokens[start : start + len(document)] = document
    before = resident_bytes()
    packed = cf.PackedTokens(tokens, torch.tensor(starts), torch.tensor(lengths))
    assert_scores(cf.maxsim(queries, packed, backend=native), queries, documents)
    assert_scores(cf.maxsim(packed, queries, backend=native), documents, queries)
    grads = [q.clone().requires_grad_() for q in queries]
    expected = [q.clone().requires_grad_() for q in queries]
    cf.maxsim(grads, packed, backend=native).sum().backward()
    cf.maxsim(expected, documents, backend=native).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(grads, expected, strict=True))
    assert resident_bytes() - before < 2**26


GUARDED = r"""
import ctypes, mmap, sys
import torch
import colbert_fast as cf

backend = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
DATA = 1024 * PAGE
alive = []

def guarded_pages():
    area = mmap.mmap(-1, DATA + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for guard in (address, address + PAGE + DATA):
        if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    alive.append(area)
    return (ctypes.c_char * DATA).from_address(address + PAGE)

pages = guarded_pages(), guarded_pages()

def placed(side, rows, dim, stride, dtype, at_end):
    # The last element ends where the guard page begins, or the first one begins where it ends.
    elements = (rows - 1) * stride + dim
    offset = DATA - elements * dtype.itemsize if at_end else 0
    flat = torch.frombuffer(pages[side], dtype=dtype, count=elements, offset=offset)
    flat.normal_() if dtype.is_floating_point else flat.random_(-128, 128)
    return flat.as_strided((rows, dim), (stride, 1))

def packed(tokens):
    scales = torch.ones(len(tokens)) if tokens.dtype == torch.int8 else None
    return cf.PackedTokens(tokens, torch.tensor([0]), torch.tensor([len(tokens)]), scales)

cf.set_num_threads(1)
calls = 0
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for dim in (1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 128, 130):
        for lq in (1, 7, 8, 9, 17, 33):
            for ld in (1, 4, 5, 6, 7, 11, 12, 13, 40, 170):
                at_end = (lq + ld + dim) % 3 != 0
                stride = dim + 5 * ((lq + ld) % 2)
                for end in (at_end, not at_end) if ld in (1, 13) else (at_end,):
                    q = placed(0, lq, dim, stride, dtype, end)
                    d = placed(1, ld, dim, stride, dtype, end)
                    near = cf.maxsim(packed(q), packed(d), backend=backend)
                    elsewhere = cf.maxsim(packed(q.clone()), packed(d.clone()), backend=backend)
                    assert torch.equal(near, elsewhere)
                    q.requires_grad_(), d.requires_grad_()
                    cf.maxsim(packed(q), packed(d), backend=backend).sum().backward()
                    calls += 1
# Rows of every dim are narrowed where documents are screened.
for dim in range(1, 201):
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
        q = placed(0, 20, dim, dim, torch.float32 if dtype == torch.int8 else dtype, True)
        d = placed(1, 165, dim, dim, dtype, True)
        near = cf.maxsim(packed(q), packed(d), backend=backend)
        assert torch.equal(near, cf.maxsim(packed(q), packed(d.clone()), backend=backend))
for dim in (1, 3, 15, 17, 31, 33, 63, 65, 128, 130):
    for lq in (1, 9, 33):
        for ld in (1, 5, 13, 170):
            for end in (True, False):
                q = placed(0, lq, dim, dim, torch.float32, end)
                d = placed(1, ld, dim, dim + 5 * (lq % 2), torch.int8, end)
                near = cf.maxsim(packed(q), packed(d), backend=backend)
                assert torch.equal(near, cf.maxsim(packed(q), packed(d.clone()), backend=backend))
                calls += 1
# As padded tensors: there, rows of zeros are searched whenever a maximum is 0.
for end in (True, False):
    q = placed(0, 9, 24, 24, torch.float32, end).abs_().view(1, 9, 24)
    d = placed(1, 13, 24, 24, torch.float32, end).abs_().neg_().view(1, 13, 24)
    q[0, [0, 3, -1]] = 0
    d[0, [0, 3, -1]] = 0
    assert cf.maxsim(q, d, backend=backend) < 0
print(calls)
"""


@posix
def test_nothing_outside_the_inputs_is_read(native: str) -> None:
    done = python(GUARDED, native)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2000


@posix
@pytest.mark.parametrize("outside", ["buffer[DATA]", "buffer[-1]"])
def test_guard_pages_end_a_process_that_reads_outside(outside: str) -> None:
    # This shows that the guards work: the same pages, and one byte too far.
    setup = GUARDED.partition("pages = ")[0].replace("import torch\nimport colbert_fast as cf\n", "")
    read = (
        f"buffer = ctypes.cast(guarded_pages(), ctypes.POINTER(ctypes.c_char))\nbuffer[0], buffer[DATA - 1]\n{outside}"
    )
    done = python(setup + read, "none")
    assert done.returncode < 0, done.stderr


PEAK = r"""
import sys
import torch
import colbert_fast as cf

def peak():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) * 1024

backend = sys.argv[1]
cf.set_num_threads(2)

def all_pairs(q, d):
    return cf.maxsim(q, d, backend=backend)

def pairwise(q, d):
    return cf.maxsim_pairwise(q, d, backend=backend)

def gradient(q, d):
    scores = cf.maxsim(q.requires_grad_(), d.requires_grad_(), backend=backend)
    scores.sum().backward()
    return scores

def inputs(kind):
    queries, documents, lq, ld = (400, 400, 336, 2000) if kind is pairwise else (64, 64, 64, 1024)
    return torch.randn(queries, lq, 4), torch.randn(documents, ld, 4)

ready = [(kind, *inputs(kind)) for kind in (all_pairs, pairwise, gradient)]
for kind, q, d in ready:
    kind(q[:2].clone(), d[:2].clone())
for kind, q, d in ready:
    before = peak()
    scores = kind(q, d)
    assert scores.isfinite().all()
    assert 4 * scores.numel() * q.shape[1] * d.shape[1] >= 2**30
    assert peak() - before < 2**25, (kind.__name__, peak() - before)
"""


@needs_proc
def test_similarities_are_never_all_in_memory(native: str) -> None:
    done = python(PEAK, native)
    assert done.returncode == 0, done.stderr
