"""Upper bounds of scores by the C++ extension: never below the score, and no more above it than the codes explain."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from cases import embeddings
from processes import assert_clean, python
from test_codes import encoded, integers
from torch import Tensor

import colbert_fast as cf
from colbert_fast._backends import cpu
from colbert_fast._backends.cpu_upper import upper_bounds
from colbert_fast._codecs import BITS, Codes, rotate, rotate_back, row_bytes

KINDS = ["8", "4", "2", "1", "4 of 4+4", "8 of 4+4"]
DIMS = [1, 3, 31, 64, 96, 128, 200, 384, 1024]
# Empty documents, documents around a tile, and documents of two and three chunks at dim 128 or more.
DOCUMENTS = [5, 0, 300, 1, 17, 40, 513, 12]
# An empty query, queries around a vector and around a panel.
QUERIES = [32, 0, 3, 16, 17, 50]
EMPTY_DOCUMENT = -1e9


def bounds(backend: str, queries: list[Tensor], codes: Codes) -> Tensor:
    q = cf.PackedTokens.from_list(queries)
    return upper_bounds(backend.removeprefix("cpu:"), q.tokens, q.starts, q.lengths, codes).double()


def model(queries: list[Tensor], codes: Codes) -> tuple[Tensor, Tensor]:
    """Return the bounds in float64 without int8 queries, and what int8 queries may add to them."""
    v, slack = integers(codes) * codes.multipliers.double()[:, None], codes.slack.double()
    expected = torch.full((len(queries), len(codes)), EMPTY_DOCUMENT, dtype=torch.float64)
    allowed = torch.zeros_like(expected)
    for i, q in enumerate(queries):
        rotated, norms = rotate(q.double(), codes.seed), q.double().norm(dim=1)
        # Each number is off by half a step, and one number by a whole step, which makes the sum even.
        off = (rotated.abs().amax(1) / 127 * math.sqrt(codes.dim / 4 + 1)).sum() + 2e-6 * norms.sum()
        for j, (start, length) in enumerate(zip(codes.starts, codes.lengths, strict=True)):
            if length:
                rows = slice(start, start + length)
                expected[i, j] = (rotated @ v[rows].T + norms[:, None] * slack[rows]).amax(1).sum()
                # Once for the product with int8 numbers, which may be too large, and once for its bound.
                allowed[i, j] = 2 * off * codes.norms[j].double() + 1e-6 * (norms.sum() * slack[rows].amax())
    return expected, allowed


def check(actual: Tensor, expected: Tensor, allowed: Tensor) -> None:
    assert actual.shape == expected.shape
    # The product with the rotated query is exact to 1e-13 in float64.
    assert bool((actual >= expected - 1e-12 * expected.abs()).all())
    assert bool((actual <= expected + allowed + 1e-6 * expected.abs()).all())


@lru_cache(maxsize=1)
def tokens(dim: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return queries, documents and their scores."""
    torch.manual_seed(dim)
    queries, documents = embeddings(QUERIES, dim), embeddings(DOCUMENTS, dim)
    documents = [d * torch.rand(len(d), 1) for d in documents]
    for d in documents:
        if len(d) > 1:
            d[-1], d[len(d) // 2] = queries[0][0], queries[5][49]
    return queries, documents, cf.reference.maxsim(queries, documents)


def example(kind: str, dim: int) -> tuple[list[Tensor], Codes, Tensor]:
    queries, documents, scores = tokens(dim)
    return queries, encoded(kind, torch.cat(documents), DOCUMENTS), scores


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", DIMS)
def test_bounds(kind: str, dim: int, threads: Any) -> None:
    queries, codes, scores = example(kind, dim)
    modelled = model(queries, codes)
    first = None
    for backend in [b.name for b in cf.backends() if b.name.startswith("cpu:") and b.unsupported is None]:
        threads(1)
        actual = bounds(backend, queries, codes)
        check(actual, *modelled)
        assert bool((actual >= scores).all())
        assert bool((actual[1] == torch.tensor(DOCUMENTS).eq(0) * EMPTY_DOCUMENT).all())
        # All tiers multiply the same integers.
        first = actual if first is None else first
        torch.testing.assert_close(actual, first, rtol=1e-6, atol=1e-5)
        threads(3)
        assert torch.equal(bounds(backend, queries, codes), actual)


def test_extreme_numbers(native: str) -> None:
    """The largest sums, of both signs: all levels 0 or all of them the largest, and queries of one magnitude."""
    for dim in (127, 128, 1024, 4096):
        for bits in BITS:
            width = row_bytes(dim, bits)
            levels = torch.tensor([[0], [255]], dtype=torch.uint8).expand(2, width).repeat(20, 1)
            multipliers = torch.tensor([1.0, 0.5, -1.0, 2.0]).repeat(10).bfloat16()
            codes = Codes(
                bits, dim, 0, levels, multipliers, torch.zeros(40).bfloat16(), torch.zeros(2),
                torch.tensor([0, 20]), torch.tensor([20, 20]),
            )  # fmt: skip
            longest = (integers(codes).norm(dim=1) * codes.multipliers.double().abs()).max()
            codes = replace(codes, norms=longest.float().expand(2) * (1 + 2**-22))
            # Numbers of one magnitude after the rotation.
            row = torch.randn(dim).sign()
            query = rotate_back(torch.stack([torch.ones(dim), -torch.ones(dim), row]).double(), 0).float()
            check(bounds(native, [query, query[:1]], codes), *model([query, query[:1]], codes))


def test_every_chunk_border(native: str) -> None:
    """A token that wins is found wherever it is, in documents of any length around chunks and tiles."""
    dim = 64
    lengths = [1, 11, 12, 13, 31, 32, 33, 63, 65, 255, 256, 257, 511, 512, 513, 514, 1025]
    for kind in ("8", "4"):
        queries = embeddings([1, 20], dim)
        rows = torch.nn.functional.normalize(torch.randn(sum(lengths), dim), dim=1) * 0.1
        ends = torch.tensor(lengths).cumsum(0)
        for place in (ends - 1, ends - torch.tensor(lengths), ends - (torch.tensor(lengths) + 1) // 2):
            planted = rows.clone()
            planted[place] = queries[0][0]
            codes = encoded(kind, planted, lengths)
            actual = bounds(native, queries, codes)
            assert bool((actual[0] >= 1).all())
            check(actual, *model(queries, codes))


def test_any_items_in_any_order(native: str) -> None:
    queries, codes, _ = example("4", 96)
    every = bounds(native, queries, codes)
    for items in ([3], [7, 2, 2, 0, 1, 6, 2], [], list(range(8))):
        chosen = torch.tensor(items, dtype=torch.int64)
        assert torch.equal(bounds(native, queries, codes.select(chosen)), every[:, chosen])


def test_many_queries(native: str, threads: Any) -> None:
    """More query tokens than are packed at once; each bound is what the query alone gets."""
    dim = 32
    queries = embeddings([5] * 300 + [3000] + [1] * 40, dim)
    documents = embeddings([40, 7, 300], dim)
    codes = encoded("8", torch.cat(documents), [40, 7, 300])
    threads(2)
    actual = bounds(native, queries, codes)
    for i in (0, 299, 300, 301, 340):
        assert torch.equal(bounds(native, [queries[i]], codes)[0], actual[i])
    assert bool((actual >= cf.reference.maxsim(queries, documents)).all())


@pytest.mark.parametrize("flush", [False, True])
def test_numbers_of_any_size(native: str, flush: bool) -> None:
    sizes = [1.0, 1e-45, 1e-40, 1e-38, 1e-30, 1e-18, 1e-5, 1e10, 1e25, 1e38, 0.0]
    queries = [q * size for q, size in zip(embeddings([7] * 11, 24), sizes, strict=True)]
    queries.append(torch.cat([q[:1] for q in queries]))
    documents = [d * size for d, size in zip(embeddings([30] * 11, 24), sizes, strict=True)]
    documents.append(torch.cat([d[:1] for d in documents]))
    for kind in KINDS:
        codes = encoded(kind, torch.cat(documents), [len(d) for d in documents])
        torch.set_flush_denormal(flush)
        try:
            actual = bounds(native, queries, codes)
        finally:
            torch.set_flush_denormal(False)
        scores = cf.reference.maxsim(queries, documents)
        expected, allowed = model(queries, codes)
        assert not bool(actual.isnan().any())
        assert bool((actual >= scores).all())
        assert bool((actual >= expected - 1e-12 * expected.abs()).all())
        # Bounds above all numbers of float32, and of tokens of such a norm, may be inf. Numbers that may be flushed to
        # zero are bounded less tightly.
        finite = (expected + allowed < 3e38) & (torch.stack([d.norm(dim=1).amax() for d in documents]) < 1e34)
        least = torch.stack([q.norm(dim=1).sum() for q in queries])[:, None].double() * 1e-29
        assert bool((actual <= (expected + allowed) * (1 + 1e-6) + least + 1e-37)[finite].all())
        assert bool((actual[10] == 0).all())


def test_codes_without_a_bound(native: str) -> None:
    """Rows that say nothing make a bound of inf, and never of NaN. A query of zeros is 0 for all items."""
    dim = 16
    huge, nan, inf = 3e38, float("nan"), float("inf")
    multipliers = torch.tensor([0.0, huge, -huge, nan, inf, 1.0, 1.0, 1.0]).bfloat16()
    slack = torch.tensor([inf, 1.0, 1.0, 1.0, 1.0, nan, -1.0, 1.0]).bfloat16()
    for bits in BITS:
        levels = torch.randint(0, 256, (8, row_bytes(dim, bits)), dtype=torch.uint8)
        norms = torch.tensor([1.0] * 7 + [inf])
        codes = Codes(
            bits, dim, 0, levels, multipliers, slack, norms, torch.arange(8), torch.ones(8, dtype=torch.int64)
        )
        actual = bounds(native, [torch.randn(3, dim), torch.zeros(2, dim), torch.zeros(0, dim)], codes)
        assert bool((actual[0] == inf).all())
        assert bool((actual[1:] == 0).all())
        assert bool((bounds(native, [torch.full((1, dim), nan)], codes) == inf).all())


def test_views_of_memory(native: str) -> None:
    """Queries of a narrower dtype, rows apart, and tensors that are not contiguous."""
    queries, codes, _ = example("2", 31)
    expected = bounds(native, [q.half().float() for q in queries], codes)
    assert torch.equal(bounds(native, [q.half() for q in queries], codes), expected)
    strided = replace(codes, levels=torch.stack([codes.levels] * 2, 2)[..., 0])
    assert not strided.levels.is_contiguous()
    assert torch.equal(bounds(native, [q.half() for q in queries], strided), expected)


def test_refused(extension: str) -> None:
    queries, codes, _ = example("4", 31)

    def refused(message: str, dim: int = 31, **changed: Any) -> None:
        wrong = replace(codes, **changed)
        with pytest.raises(ValueError, match=message):
            bounds("portable", [q[:, :1].expand(-1, dim) for q in queries], wrong)

    refused("need the same dim; got 30 and 31", dim=30)
    refused(r"item 2 of codes is the rows \[5, \+889\) of 888", lengths=torch.tensor([5, 0, 889, 1, 1, 1, 1, 1]))
    refused(r"item 0 of codes is the rows \[-1, \+5\)", starts=codes.starts - 1)
    big = 2**63 - 1
    refused(rf"item 0 of codes is the rows \[{big}, \+5\)", starts=torch.full_like(codes.starts, big))
    tensors: list[Any] = [codes.levels, None, codes.multipliers, codes.slack, codes.norms, codes.starts, codes.lengths]
    q = cf.PackedTokens.from_list(queries)

    def call(bits: int, parts: list[Any], signs: Tensor | None = None) -> None:
        side = (0, q.tokens, q.starts, q.lengths, None)
        signs = torch.ones(4, 31) if signs is None else signs
        cpu._C.upper("portable", side, signs, (bits, 31, *parts), 1, torch.empty(len(q), len(codes)))

    call(4, tensors)
    for bits, at, wrong, message in [
        (3, 0, codes.levels, "8, 4, 2 or 1 bits, and 8 in two planes; got 3"),
        (4, 1, codes.levels, "8 in two planes; got 4"),
        (8, 0, codes.levels, "levels must be contiguous, any number of rows of 31; got 888 rows of 16"),
        (4, 2, codes.multipliers[1:], "multipliers must be contiguous, 888 rows of 1; got 887"),
        (4, 3, codes.slack[::2], "slack must be contiguous, 888"),
        (4, 4, codes.norms[1:], "norms must be contiguous, 8 rows of 1; got 7"),
        (4, 5, codes.starts[1:], "starts and lengths must be equally long; got 7 and 8"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(bits, [*tensors[:at], wrong, *tensors[at + 1 :]])
    with pytest.raises(ValueError, match="signs must have 124 elements; got 31"):
        call(4, tensors, torch.ones(1, 31))


def test_interrupts_and_forks(extension: str) -> None:
    """Ctrl-C ends a long call, the next call works, and so does a call of a forked child."""
    script = r"""
from colbert_fast._backends.cpu_upper import upper_bounds
from colbert_fast._codecs import encode
tier = next(tier for tier, reason in cpu._C.tiers() if reason is None and cpu._C.refused(tier) is None)
lengths = torch.full((200,), 100)
codes = encode(torch.randn(20_000, 64), lengths, bits=8, seed=0)
def bound(n):
    rows = torch.ones(32 * n, 64).cumsum(0)
    return upper_bounds(tier, rows, torch.arange(n) * 32, torch.full((n,), 32), codes)
few = bound(2)
def during(number, frame):
    assert torch.equal(bound(2), few)
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, during)
for _ in range(3):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        while True:
            bound(500)
    except KeyboardInterrupt:
        pass
    assert torch.equal(bound(2), few)
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        signal.alarm(3600)
        os._exit(0 if torch.equal(bound(2), few) else 1)
    wait_for(child)
"""
    assert_clean(python(script, extension))
