"""Lists of documents are scored where they lie: nothing is joined, and no other memory is read."""

from __future__ import annotations

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
from torch.utils._python_dispatch import TorchDispatchMode

import colbert_fast as cf
from colbert_fast import reference
from colbert_fast._backends import cpu
from colbert_fast._lowering import TokenList, lower

PROC = Path("/proc/self/status")
Arrays = list[np.ndarray[Any, Any]]


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tensors in each call of torch.cat."""
    calls: list[int] = []
    cat = torch.cat

    def counted(tensors: Any, *arguments: Any, **options: Any) -> Tensor:
        calls.append(len(tensors))
        return cat(tensors, *arguments, **options)

    monkeypatch.setattr(torch, "cat", counted)
    return calls


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The addresses of the documents of each call of a list, as the extension gets them."""
    calls: list[list[int]] = []
    in_place = cpu._in_place

    def seen(problem: Any) -> Any:
        dtype, items, dim = in_place(problem)
        calls.append([item.data_ptr() for item in items])
        return dtype, items, dim

    monkeypatch.setattr(cpu, "_in_place", seen)
    return calls


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_joined_or_moved(
    native: str, dtype: torch.dtype, joins: list[int], addresses: list[list[int]]
) -> None:
    queries = cf.PackedTokens.from_padded(torch.stack(embeddings([9, 9], 20, dtype)))
    documents = planted(list(queries), embeddings([14, 1, 33, 12], 20, dtype))
    joins.clear()
    scores = cf.maxsim(queries, documents, backend=native)
    pairs = cf.maxsim_pairs(queries, tuple(documents), [[1, 3], [0, 2]], backend=native)
    pairwise = cf.maxsim_pairwise(queries, documents[:2], backend=native)
    assert joins == []
    given = [d.data_ptr() for d in documents]
    assert addresses == [given, given, given[:2]]
    assert_scores(scores, list(queries), documents)
    assert_close(pairs, reference.maxsim(list(queries), documents)[[1, 0], [3, 2]])
    assert_close(pairwise, reference.maxsim(list(queries), documents[:2]).diagonal())


def test_topk_of_a_list(native: str, addresses: list[list[int]]) -> None:
    queries, documents = embeddings([9, 3], 20), embeddings([14, 1, 33, 12], 20)
    scores, numbers = cf.topk(queries, documents, 3, backend=native)
    expected = reference.maxsim(queries, documents).sort(descending=True)
    assert torch.equal(numbers, expected.indices[:, :3])
    assert_close(scores, expected.values[:, :3])
    assert addresses == [[d.data_ptr() for d in documents]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("lq", "ld", "dim"), [([33, 9], [14, 1, 70, 12, 3], 24), ([32], [180, 300, 7, 64] * 10, 128)], ids=["few", "many"]
)
def test_the_bits_are_those_of_packed_documents(
    native: str, lq: list[int], ld: list[int], dim: int, dtype: torch.dtype
) -> None:
    queries = embeddings(lq, dim, dtype)
    documents = planted(queries, embeddings(ld, dim, dtype))
    packed = cf.PackedTokens.from_list(documents)
    assert torch.equal(cf.maxsim(queries, documents, backend=native), cf.maxsim(queries, packed, backend=native))


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("change", [lambda a: a, read_only, lambda a: np.concatenate([a, a])[: len(a)]])
def test_arrays_stay_where_they_are(
    native: str, change: Callable[[Any], Any], joins: list[int], addresses: list[list[int]]
) -> None:
    queries = embeddings([9], 20)
    documents: Arrays = [change(d.numpy()) for d in embeddings([14, 1, 33], 20)]
    scores = cf.maxsim(queries[0][None], documents, backend=native)
    assert joins == []
    assert addresses == [[array.ctypes.data for array in documents]]
    assert_scores(scores, queries, [torch.tensor(array) for array in documents])


def unaligned(x: Tensor) -> Tensor:
    raw = bytearray(b"\x7e" + x.contiguous().view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(raw, dtype=x.dtype, offset=1).view(x.shape)


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "columns": lambda x: torch.cat([x, x.new_full((len(x), 3), 1e4)], dim=1)[:, :20],
    "stepped-rows": lambda x: x.repeat_interleave(2, 0)[::2],
    "transposed": lambda x: x.T.contiguous().T,
    "expanded": lambda x: x[:1].expand(len(x), 20),
    "unaligned": unaligned,
    "negated-view": lambda x: torch._neg_view(-x),
    "slice": lambda x: torch.cat([x.new_full((2, 20), 1e4), x, x.new_full((2, 20), 1e4)])[2:-2],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ODD)
def test_odd_items_beside_plain_ones(native: str, layout: str, dtype: torch.dtype) -> None:
    queries = embeddings([9, 33], 20, dtype)
    documents = planted(queries, embeddings([14, 5, 33], 20, dtype))
    documents[1] = ODD[layout](documents[1])
    assert_scores(cf.maxsim(queries, documents, backend=native), queries, documents)


@pytest.mark.parametrize("nothing", [torch.zeros(0, 4), torch.zeros(0), np.zeros((0, 9)), []], ids=repr)
def test_empty_items(backend: str, nothing: Any) -> None:
    queries, documents = embeddings([3], 4), embeddings([2, 5], 4)
    for some in ([nothing, *documents], [*documents, nothing]):
        with pytest.warns(UserWarning, match="without a token"):
            scores = cf.maxsim(queries, some, backend=backend)
        expected = [d if isinstance(d, Tensor) and len(d) else torch.zeros(0, 4) for d in some]
        assert_scores(scores, queries, expected)
    with pytest.warns(UserWarning, match="without a token"):
        assert cf.maxsim(queries, [nothing], backend=backend).tolist() == [[-1e9]]


def test_who_joins_after_all(joins: list[int]) -> None:
    """Documents are joined for gradients, for a backend that needs one matrix, and where torch watches the calls."""
    queries, documents = torch.randn(1, 3, 8), embeddings([2, 5], 8)
    expected = cf.maxsim(queries, documents)
    assert joins == []
    torch.testing.assert_close(cf.maxsim(queries, documents, backend="torch"), expected)
    assert len(joins) == 1
    with_gradient = queries.clone().requires_grad_()
    cf.maxsim(with_gradient, documents).sum().backward()
    assert with_gradient.grad is not None and len(joins) == 2
    wanted = [d.clone().requires_grad_() for d in documents]
    cf.maxsim(queries, wanted).sum().backward()
    assert all(d.grad is not None for d in wanted) and len(joins) == 3
    with torch.no_grad():
        assert torch.equal(cf.maxsim(with_gradient, wanted), expected)
    assert len(joins) == 3


class Recorded(TorchDispatchMode):
    """The names of the ops that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["list", "packed", "padded"])
def test_the_op_is_there_for_those_who_look(form: str) -> None:
    """Calls leave out the dispatcher, but not where something listens to it."""
    queries, documents = torch.randn(2, 3, 8), torch.randn(4, 5, 8)
    b = {"list": list(documents), "packed": cf.PackedTokens.from_padded(documents), "padded": documents}[form]
    expected = cf.maxsim(queries, b)
    with Recorded() as mode:
        assert torch.equal(cf.maxsim(queries, b), expected)
    assert mode.names.count("colbert_fast.score.default") == 1
    with torch.profiler.profile() as profile:
        assert torch.equal(cf.maxsim(queries, b), expected)
    assert [event.count for event in profile.key_averages() if event.key == "colbert_fast::score"] == [1]
    compiled = torch.compile(lambda q: cf.maxsim(q, b), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(queries), expected)


# torch.vmap runs an op without a rule once for each item, and since 2.15 warns of it.
@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
def test_vmap_over_queries() -> None:
    queries, documents = torch.randn(3, 2, 4, 8), embeddings([5, 2], 8)
    expected = torch.stack([cf.maxsim(q, documents) for q in queries])
    assert torch.equal(torch.vmap(lambda q: cf.maxsim(q, documents))(queries), expected)


def test_a_list_lowers_to_its_own_tensors() -> None:
    documents = embeddings([3, 0, 5], 8)
    lowered, skip_zero = lower(documents, None, "b", join=False)
    assert isinstance(lowered, TokenList) and not skip_zero
    assert (len(lowered), lowered.dim, lowered.rows, lowered.max_length) == (3, 8, 8, 5)
    assert (lowered.dtype, str(lowered.device), lowered.lengths.tolist()) == (torch.float32, "cpu", [3, 0, 5])
    assert all(a is b for a, b in zip(lowered, documents, strict=True))
    assert isinstance(lowered[1:], TokenList) and lowered[1:].tokens.shape == (5, 8)
    assert torch.equal(lowered.tokens, torch.cat(documents)) and lowered.starts.tolist() == [0, 3, 3]
    assert type(lower(documents, None, "b")[0]) is cf.PackedTokens
    assert lowered.to(dtype=torch.float64).tokens.dtype == torch.float64


PEAK = r"""
import sys
import torch
import colbert_fast as cf

def peak():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) * 1024

documents = [torch.randn(64, 128) for _ in range(2000)]
query = torch.randn(1, 4, 128)
cf.maxsim(query, documents[:2], backend=sys.argv[1])
before = peak()
cf.maxsim(query, documents, backend=sys.argv[1])
cf.topk(query, [d.numpy() for d in documents], 3, backend=sys.argv[1])
assert sum(d.nbytes for d in documents) > 2**25
assert peak() - before < 2**23, peak() - before
"""


@pytest.mark.skipif(not PROC.exists(), reason="resident memory is read from /proc/self/status")
def test_memory_of_a_call(native: str) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK, native], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
