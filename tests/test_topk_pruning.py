"""topk leaves documents out that cannot be among the best, and no bit of its result shows it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from cases import embeddings
from hypothesis import given, settings
from hypothesis import strategies as st
from lacking import here
from torch import Tensor

import colbert_fast as cf
from colbert_fast import _topk
from colbert_fast._backends import cpu
from colbert_fast._backends.problem import Problem

_C = cpu._C
# The tiers that have ceilings.
PRUNING = ("cpu:avx512_bf16", "cpu:avx512_vnni", "cpu:avx_vnni", "cpu:neon_i8mm", "cpu:neon_dotprod")
CASES = [*(torch.float32, torch.float16, torch.bfloat16), torch.int8]
ENOUGH = 300  # documents; with fewer than 256 nothing is left out


@pytest.fixture(params=here(name for name in PRUNING if name in {b.name for b in cf.backends() if not b.unsupported}))
def pruning(request: pytest.FixtureRequest) -> str:
    return request.param


def topics(dim: int = 64, dtype: torch.dtype = torch.float32, nd: int = ENOUGH) -> tuple[list[Tensor], cf.PackedTokens]:
    """Three queries, and documents of thirty topics; each query has tokens of one document."""
    lengths = torch.randint(5, 24, (nd,)).tolist()
    centres = embeddings([30], dim)[0]
    documents = [
        torch.nn.functional.normalize(2 * centres[i % 30] + d, dim=1) for i, d in enumerate(embeddings(lengths, dim))
    ]
    queries = [documents[i][:7] + 0.1 * embeddings([1], dim)[0] for i in (0, nd // 2, nd - 1)]
    packed = cf.PackedTokens.from_list(documents)
    if dtype is torch.int8:
        return queries, packed.quantize()
    return [q.to(dtype) for q in queries], packed.to(dtype=dtype)


def all_sorted(q: object, d: object, k: int, backend: str, **options: object) -> tuple[Tensor, Tensor]:
    values, order = cf.maxsim(q, d, backend=backend, **options).sort(dim=1, descending=True, stable=True)
    return values[:, :k], order[:, :k]


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    assert ours[0].isnan().equal(theirs[0].isnan())
    assert ours[0].nan_to_num(7.0).equal(theirs[0].nan_to_num(7.0))
    assert ours[1].equal(theirs[1])


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore the warning of a document without a token."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def left_out(backend: str) -> int:
    return _C.left_out()[backend.removeprefix("cpu:")]


def ceilings(backend: str, q: cf.PackedTokens, d: cf.PackedTokens) -> Tensor:
    p = Problem.of(q, d).explicit()
    most = torch.empty(p.shape)
    sides = cpu._side(p.q_tokens, p.q_starts, p.q_lengths), cpu._side(p.d_tokens, p.d_starts, p.d_lengths, p.d_scales)
    assert _C.ceilings(backend.removeprefix("cpu:"), *sides, p.max_lq, False, 1, most)
    return most


@pytest.mark.parametrize("dtype", CASES, ids=str)
@pytest.mark.parametrize("k", [1, 4])
def test_most_are_left_out(pruning: str, dtype: torch.dtype, k: int) -> None:
    q, d = topics(dtype=dtype)
    before = left_out(pruning)
    assert_same(cf.topk(q, d, k, backend=pruning), all_sorted(q, d, k, pruning))
    assert left_out(pruning) - before > len(q) * ENOUGH / 2


@pytest.mark.parametrize("dtype", CASES, ids=str)
def test_every_tier_gives_the_same(native: str, dtype: torch.dtype) -> None:
    q, d = topics(dtype=dtype)
    assert_same(cf.topk(q, d, 3, backend=native), all_sorted(q, d, 3, native))


def test_random_documents_are_all_scored_at_once(pruning: str) -> None:
    q, d = embeddings([20], 128), embeddings([40] * ENOUGH, 128)
    before = left_out(pruning)
    assert_same(cf.topk(q, d, 3, backend=pruning), all_sorted(q, d, 3, pruning))
    assert left_out(pruning) == before


def test_few_good_documents_among_many_are_noticed(pruning: str) -> None:
    """Random documents alone would all be scored. Of eight documents from everywhere, none would be a good one."""
    nd = 2048
    documents = torch.nn.functional.normalize(torch.randn(nd, 40, 128), dim=2)
    query = documents[64, :20] + 0.01 * torch.randn(20, 128)
    good = list(range(64, nd, 512))
    documents[good] = documents[64] + 0.01 * torch.randn(len(good), 40, 128)
    packed = cf.PackedTokens.from_padded(documents)
    before = left_out(pruning)
    assert_same(cf.topk([query], packed, 4, backend=pruning), all_sorted([query], packed, 4, pruning))
    assert left_out(pruning) - before > nd / 2


@pytest.mark.parametrize("make", [list, lambda d: [x[:, ::1] for x in d], lambda d: [x.numpy() for x in d]])
def test_lists(pruning: str, make: Callable[[list[Tensor]], object]) -> None:
    q, d = topics()
    before = left_out(pruning)
    assert_same(cf.topk(q, make(list(d)), 3, backend=pruning), all_sorted(q, d, 3, pruning))
    assert left_out(pruning) > before


def test_float32_queries_of_bfloat16_documents(pruning: str) -> None:
    q, d = topics()
    d = d.to(dtype=torch.bfloat16)
    assert_same(cf.topk(q, d, 3, backend=pruning), all_sorted(q, d, 3, pruning))


def test_ties_keep_the_order_of_the_documents(pruning: str) -> None:
    q, d = topics(nd=100)
    d = cf.PackedTokens.cat([d, d, d, d])
    before = left_out(pruning)
    scores, numbers = cf.topk(q, d, 6, backend=pruning)
    assert_same((scores, numbers), all_sorted(q, d, 6, pruning))
    assert (numbers[:, 1] - numbers[:, 0]).tolist() == [100] * 3
    assert left_out(pruning) > before


@pytest.mark.parametrize("dtype", CASES, ids=str)
@pytest.mark.parametrize("ragged", [False, True])
def test_candidates(pruning: str, dtype: torch.dtype, ragged: bool) -> None:
    """Of equal scores, and of a document that is named twice, the first candidate comes first."""
    q, d = topics(dtype=dtype)
    rows = [torch.randint(ENOUGH, (ENOUGH - ragged * 7 * i,)) for i in range(len(q))]
    scores = cf.maxsim(q, d, backend=pruning)
    before = left_out(pruning)
    values, numbers = cf.topk(q, d, 5, candidates=rows if ragged else torch.stack(rows), backend=pruning)
    assert left_out(pruning) > before + ENOUGH
    for i, row in enumerate(rows):
        expected, order = scores[i, row].sort(descending=True, stable=True)
        assert_same((values[i], numbers[i]), (expected[:5], row[order[:5]]))


@pytest.mark.parametrize("threads_of_call", [1, 3])
def test_threads(pruning: str, threads: Callable[[int], None], threads_of_call: int) -> None:
    q, d = topics(nd=1000)
    threads(threads_of_call)
    assert_same(cf.topk(q, d, 10, backend=pruning), all_sorted(q, d, 10, pruning))


def test_in_runs(pruning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_topk, "CHUNK_ELEMENTS", 3 * ENOUGH)
    q, d = topics(nd=2 * ENOUGH + 40)
    before = left_out(pruning)
    assert_same(cf.topk(q, d, 5, backend=pruning), all_sorted(q, d, 5, pruning))
    assert left_out(pruning) > before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, 1e-40, 0.0])
@pytest.mark.parametrize("dtype", CASES[:3], ids=str)
def test_numbers_without_a_bound(pruning: str, dtype: torch.dtype, value: float) -> None:
    q, d = topics(dtype=dtype)
    tokens = d.tokens.clone()
    for i in (3, 150, 299):
        tokens[int(d.starts[i]), 5 if i == 3 else slice(None)] = value
    d = d.with_tokens(tokens)
    assert_same(cf.topk(q, d, 5, backend=pruning), all_sorted(q, d, 5, pruning))
    q[1] = q[1].clone()
    q[1][0, 0] = value
    assert_same(cf.topk(q, d, 5, backend=pruning), all_sorted(q, d, 5, pruning))


def test_documents_and_queries_without_tokens(pruning: str) -> None:
    q, d = topics()
    documents = [x[:0] if i in (0, 17, 200) else x for i, x in enumerate(d)]
    for queries in (q, [*q, q[0][:0]]):
        with pytest.warns(UserWarning, match="document without a token") as caught:
            ours = cf.topk(queries, documents, 5, backend=pruning)
        assert len(caught) == 1
        with quiet():
            assert_same(ours, all_sorted(queries, documents, 5, pruning))
        packed = cf.PackedTokens.from_list(documents)
        every = torch.arange(len(documents)).expand(len(queries), -1)
        with pytest.warns(UserWarning, match="document without a token") as caught:
            assert_same(cf.topk(queries, packed, 5, candidates=every, backend=pruning), ours)
        assert len(caught) == 1


@pytest.mark.parametrize("pad", ["skip", "zero"])
def test_padded(pruning: str, pad: str) -> None:
    q, d = topics()
    queries = torch.nn.utils.rnn.pad_sequence(q, batch_first=True)
    documents = torch.nn.utils.rnn.pad_sequence(list(d), batch_first=True)
    documents[40] = 0
    before = left_out(pruning)
    with quiet():
        ours = cf.topk(queries, documents, 5, pad=pad, length_normalize=True, backend=pruning)
        assert_same(ours, all_sorted(queries, documents, 5, pruning, pad=pad, length_normalize=True))
    assert left_out(pruning) > before


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dim=st.sampled_from([1, 3, 16, 31, 64, 100, 128, 257, 1024]),
    dtype=st.sampled_from(CASES),
    scale=st.sampled_from([2.0**-19, 1e-3, 1.0, 300.0]),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
    shared=st.sampled_from([0.0, 0.9, 0.999]),
)
def test_no_score_exceeds_its_ceiling(
    seed: int, dim: int, dtype: torch.dtype, scale: float, spread: float, shared: float
) -> None:
    torch.manual_seed(seed)
    q = torch.randn(5, 3, dim) * torch.exp(spread / 3 * torch.randn(5, 3, 1))
    rows = torch.randn(140, dim) * torch.exp(spread * torch.randn(140, 1)) * torch.exp(spread * torch.randn(dim))
    rows = scale * (rows + shared / (1 - shared) * q[0, 0] if shared else rows)
    lengths = torch.tensor([1, 60, 0, 47, 1, 31])
    d = cf.PackedTokens.from_list(list(rows.split(lengths.tolist())))
    d = d.quantize() if dtype is torch.int8 else d.to(dtype=dtype)
    for q_dtype in {torch.float32, torch.float32 if dtype is torch.int8 else dtype}:
        packed = cf.PackedTokens.from_list(list(q.to(q_dtype)))
        for backend in PRUNING:
            if any(b.name == backend and not b.unsupported for b in cf.backends()):
                with quiet():
                    scores = cf.maxsim(packed, d, backend=backend)
                most = ceilings(backend, packed, d)
                assert (scores.isnan() | (scores <= most)).all()
                assert not most.isnan().any()
                assert (most[scores.isnan()] == float("inf")).all()


def test_ceilings_are_near_the_scores(pruning: str) -> None:
    """Ceilings of unit vectors: a bound of infinity would pass the test above."""
    q, d = topics(dim=128)
    for documents, slack in ((d, 0.05), (d.quantize(), 0.02)):
        packed = cf.PackedTokens.from_list(q)
        above = ceilings(pruning, packed, documents) - cf.maxsim(packed, documents, backend=pruning)
        assert above.max() < slack * 7
