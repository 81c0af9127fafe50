"""What is true of MaxSim for all numbers: every backend, random shapes, maxima planted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import assert_close, embeddings, planted, score_argmax
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import colbert_fast as cf
from colbert_fast import reference

# The fixtures of a test do not change between its examples, and every example draws from its own seed.
PROPERTY = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# kSerialFlops of csrc/host/plan.cpp: less work is done by one thread.
SERIAL_FLOPS = 2e6

SEEDS = st.integers(0, 2**31)
# Around the tiles of 4, 6, 12 rows, the panels of 8, 16, 32 lanes and the 16 floats of a cache line, and any other.
LENGTHS = st.one_of(st.sampled_from([1, 4, 6, 8, 12, 13, 16, 17, 31, 32, 33]), st.integers(1, 70))
DIMS = st.one_of(st.sampled_from([1, 2, 15, 16, 17, 32, 48, 128]), st.integers(1, 140))


def assert_same(backend: str, actual: Tensor, expected: Tensor) -> None:
    """Assert the same bits. Products of torch depend on the shape, so torch is compared within the tolerance."""
    if backend == "torch":
        assert_close(actual, expected)
    else:
        assert torch.equal(actual, expected)


def pair(seed: int, lq: int, ld: int, dim: int) -> tuple[Tensor, Tensor]:
    """Return a query, and a document that has some tokens of the query."""
    torch.manual_seed(seed)
    q = embeddings([lq], dim)[0]
    return q, planted([q], embeddings([ld], dim))[0]


def runnable() -> list[str]:
    return [b.name for b in cf.backends() if b.unsupported is None and b.device in (None, "cpu")]


@PROPERTY
@given(SEEDS, LENGTHS, LENGTHS, DIMS)
def test_permuting_document_tokens_permutes_the_argmax(backend: str, seed: int, lq: int, ld: int, dim: int) -> None:
    torch.manual_seed(seed)
    q, d = embeddings([lq, ld], dim)
    order = torch.randperm(ld)
    scores, argmax = score_argmax(backend, [q], [d])
    permuted, permuted_argmax = score_argmax(backend, [q], [d[order]])
    assert_same(backend, permuted, scores)
    # As rows: at dim 1 two tokens may be equal, and then either number is right.
    assert torch.equal(d[order][permuted_argmax], d[argmax])
    assert_same(backend, cf.maxsim([q], [d[order]], backend=backend), scores)


@PROPERTY
@given(SEEDS, LENGTHS, LENGTHS, DIMS)
def test_permuting_query_tokens_changes_nothing(backend: str, seed: int, lq: int, ld: int, dim: int) -> None:
    q, d = pair(seed, lq, ld, dim)
    order = torch.randperm(lq)
    scores, argmax = score_argmax(backend, [q], [d])
    permuted, permuted_argmax = score_argmax(backend, [q[order]], [d])
    assert_close(permuted, scores)
    assert torch.equal(d[permuted_argmax], d[argmax[..., order]])


@PROPERTY
@given(SEEDS, LENGTHS, LENGTHS, DIMS, st.data())
def test_a_duplicate_token_changes_nothing(
    backend: str, seed: int, lq: int, ld: int, dim: int, data: st.DataObject
) -> None:
    q, d = pair(seed, lq, ld, dim)
    row = data.draw(st.integers(0, ld - 1))
    place = data.draw(st.integers(row + 1, ld))
    longer = torch.cat([d[:place], d[row : row + 1], d[place:]])
    scores, argmax = score_argmax(backend, [q], [d])
    duplicated, duplicated_argmax = score_argmax(backend, [q], [longer])
    assert_same(backend, duplicated, scores)
    # The copy comes after its original, so it never wins. Products of torch may round the two differently.
    if backend != "torch":
        assert torch.equal(duplicated_argmax, argmax + (argmax >= place).int())


@PROPERTY
@given(SEEDS, LENGTHS, LENGTHS, DIMS)
def test_appending_a_token_never_decreases(backend: str, seed: int, lq: int, ld: int, dim: int) -> None:
    q, d = pair(seed, lq, ld, dim)
    longer = torch.cat([d, embeddings([1], dim)[0]])
    before, after = (cf.maxsim([q], [x], backend=backend) for x in (d, longer))
    assert bool(after >= before - (1e-5 if backend == "torch" else 0.0))


@PROPERTY
@given(SEEDS, LENGTHS, LENGTHS, LENGTHS, DIMS)
def test_a_split_document_scores_the_maximum_of_its_parts(
    backend: str, seed: int, lq: int, first: int, second: int, dim: int
) -> None:
    q, d = pair(seed, lq, first + second, dim)
    tokens = list(q.split(1))
    whole, argmax = score_argmax(backend, tokens, [d])
    parts, part_argmax = score_argmax(backend, tokens, [d[:first], d[first:]])
    best, which = parts.max(1, keepdim=True)
    assert_same(backend, whole, best)
    if backend != "torch":
        part_argmax = part_argmax.squeeze(-1) + torch.tensor([0, first])
        assert torch.equal(argmax.view(-1, 1), part_argmax.gather(1, which))
    assert_close(cf.maxsim([q], [d], backend=backend), best.double().sum().view(1, 1))


@PROPERTY
@given(SEEDS, LENGTHS, LENGTHS, DIMS, st.integers(-20, 20))
def test_a_query_scaled_by_a_power_of_two_scales_its_score(
    backend: str, seed: int, lq: int, ld: int, dim: int, power: int
) -> None:
    q, d = pair(seed, lq, ld, dim)
    scale = 2.0**power
    score = cf.maxsim([q], [d], backend=backend)
    assert_same(backend, cf.maxsim([q * scale], [d], backend=backend) / scale, score)
    assert_same(backend, cf.maxsim([q], [d * scale], backend=backend) / scale, score)


@PROPERTY
@given(SEEDS, st.lists(st.integers(0, 40), min_size=1, max_size=4), st.lists(LENGTHS, min_size=1, max_size=4), DIMS)
def test_batch_equals_loop(backend: str, seed: int, lq: list[int], ld: list[int], dim: int) -> None:
    torch.manual_seed(seed)
    queries = embeddings(lq, dim)
    documents = planted(queries, embeddings(ld, dim))
    batch, argmax = score_argmax(backend, queries, documents)
    assert_same(backend, cf.maxsim(queries, documents, backend=backend), batch)
    everything = torch.cartesian_prod(torch.arange(len(lq)), torch.arange(len(ld)))
    assert_same(backend, cf.maxsim_pairs(queries, documents, everything, backend=backend), batch.view(-1))
    for i, q in enumerate(queries):
        for j, d in enumerate(documents):
            alone, alone_argmax = score_argmax(backend, [q], [d])
            assert_same(backend, alone, batch[i : i + 1, j : j + 1])
            assert torch.equal(alone_argmax[0, 0], argmax[i, j, : len(q)])


@PROPERTY
@given(SEEDS, LENGTHS, LENGTHS, DIMS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_every_tier_agrees(seed: int, lq: int, ld: int, dim: int, dtype: torch.dtype) -> None:
    q, d = (x.to(dtype) for x in pair(seed, lq, ld, dim))
    expected = reference.maxsim(list(q.split(1)), [d])
    for name in runnable():
        scores, argmax = score_argmax(name, list(q.split(1)), [d])
        assert_close(scores, expected)
        # Rounding may only choose between tokens that are equally good.
        winners = d.double()[argmax.view(-1)]
        assert_close((q.double() * winners).sum(1, keepdim=True), expected)


@PROPERTY
@given(SEEDS, LENGTHS, LENGTHS, DIMS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_avx2_and_avx512_agree_bit_for_bit(seed: int, lq: int, ld: int, dim: int, dtype: torch.dtype) -> None:
    """Both are one chain of FMAs per dot product, in the order of the dimensions."""
    for b in cf.backends():
        if b.name in ("cpu:avx2", "cpu:avx512") and b.unsupported is not None:
            pytest.skip(f"{b.name}: {b.unsupported}")
    q, d = (x.to(dtype) for x in pair(seed, lq, ld, dim))
    for one, other in zip(score_argmax("cpu:avx2", [q], [d]), score_argmax("cpu:avx512", [q], [d]), strict=True):
        assert torch.equal(one, other)


@PROPERTY
@given(SEEDS, st.lists(LENGTHS, min_size=1, max_size=3), st.lists(LENGTHS, min_size=1, max_size=3), DIMS)
def test_ragged_equals_padded_under_a_mask(backend: str, seed: int, lq: list[int], ld: list[int], dim: int) -> None:
    torch.manual_seed(seed)
    queries = embeddings(lq, dim)
    documents = planted(queries, embeddings(ld, dim))
    ragged = cf.maxsim(queries, documents, backend=backend)
    sides = []
    for items in (queries, documents):
        width = max(map(len, items)) + 3
        padded, mask = torch.full((len(items), width, dim), float("nan")), torch.zeros(len(items), width)
        for i, item in enumerate(items):
            where = torch.randperm(width)[: len(item)].sort().values
            padded[i, where], mask[i, where] = item, 1.0
        sides.append((padded, mask))
    (a, a_mask), (b, b_mask) = sides
    assert_same(backend, cf.maxsim(a, b, a_mask, b_mask, backend=backend), ragged)
    zeros = torch.nn.utils.rnn.pad_sequence(queries, True), torch.nn.utils.rnn.pad_sequence(documents, True)
    assert_same(backend, cf.maxsim(*zeros, backend=backend), ragged)


@PROPERTY
@given(SEEDS, LENGTHS, LENGTHS, DIMS)
def test_similarities_at_the_argmax_sum_to_the_score(backend: str, seed: int, lq: int, ld: int, dim: int) -> None:
    q, d = pair(seed, lq, ld, dim)
    score, argmax = score_argmax(backend, [q], [d])
    assert int(argmax.min()) >= 0 and int(argmax.max()) < ld
    assert_close((q.double() * d.double()[argmax[0, 0]]).sum().view(1, 1), score)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ["many", "one-query", "one-document", "pairs", "shared-rows"])
@settings(PROPERTY, max_examples=2)
@given(seed=SEEDS)
def test_threads_agree_bit_for_bit(
    native: str, threads: Callable[[int], None], shape: str, dtype: torch.dtype, seed: int
) -> None:
    """Scores, argmax and gradients, with enough work for every thread to get some."""
    torch.manual_seed(seed)
    nq, nd, dim = {"one-query": (1, 300, 128), "one-document": (300, 1, 128)}.get(shape, (8, 40, 128))
    lq, ld = torch.randint(32, 49, (nq,)).tolist(), torch.randint(1, 90, (nd,)).tolist()
    queries = embeddings(lq, dim, dtype)
    q = cf.PackedTokens.from_list(queries)
    d = cf.PackedTokens.from_list(planted(queries, embeddings(ld, dim, dtype)))
    if shape == "shared-rows":  # every document also has the first rows of the next one
        d = cf.PackedTokens(d.tokens, d.starts, (d.lengths + 5).clamp(max=len(d.tokens) - d.starts))
    pairs = torch.stack([torch.randint(nq, (500,)), torch.randint(nd, (500,))], 1) if shape == "pairs" else None
    tensors = (q.tokens, q.starts, q.lengths, d.tokens, d.scales, d.starts, d.lengths, pairs)
    rest = (q.max_length, d.max_length, False, False, 2**24)
    count = nq * nd if pairs is None else len(pairs)
    assert 2 * count * min(lq) * dim > SERIAL_FLOPS  # of a backward pass; scoring has more
    weight = torch.randn(count)

    def results() -> tuple[Tensor, ...]:
        scores, argmax = torch.ops.colbert_fast.score_argmax(*tensors, *rest, native)
        grads = torch.ops.colbert_fast.backward(*tensors, *rest, weight, argmax, True, True, native)
        return scores, argmax, torch.ops.colbert_fast.score(*tensors, *rest, native), *grads

    threads(1)
    expected = results()
    for n in (2, 3, 4):
        threads(n)
        for actual, one in zip(results(), expected, strict=True):
            assert torch.equal(actual, one)
