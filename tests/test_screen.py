"""Screening in fewer bits changes no bit: a tier that screens equals the tier of plain multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from backends import REQUIRED
from cases import embeddings, planted, score_argmax
from lacking import LACKING, here
from torch import Tensor

import colbert_fast as cf

# The dtypes that each tier screens: all except bfloat16 where the tier multiplies it as it is, with its own rounding.
ALL = (torch.float32, torch.float16, torch.bfloat16)
SCREENING = {
    "cpu:amx": ALL[:2],
    "cpu:avx512_bf16": ALL[:2],
    "cpu:avx512_vnni": ALL,
    "cpu:avx_vnni": ALL,
}
# The tier that does not screen, but has the same float32 chains.
PLAIN = {"cpu:avx_vnni": "cpu:avx2"}
CASES = [pytest.param(tier, dtype, id=f"{tier}-{dtype}") for tier in here(SCREENING) for dtype in SCREENING[tier]]


def plain(tier: str) -> str:
    return PLAIN.get(tier, "cpu:avx512")


def runnable(tier: str) -> str:
    for name in (tier, plain(tier)):
        if name in LACKING:
            (pytest.fail if tier in REQUIRED else pytest.skip)(f"{name}: {LACKING[name]}")
    return tier


@pytest.fixture(params=here(SCREENING))
def screening(request: pytest.FixtureRequest) -> str:
    return runnable(request.param)


def screened(tier: str) -> int:
    return cf._backends.cpu._C.chunks_screened()[tier.removeprefix("cpu:")]


def assert_bits(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))


def assert_same_bits(tier: str, q: Sequence[Tensor], d: Any) -> None:
    assert_bits(score_argmax(tier, q, d), score_argmax(plain(tier), q, d))


def near_ties(q: Tensor, d: Tensor) -> Tensor:
    """Every row a neighbour of one query token, closer to the others than bfloat16 can tell."""
    return q[torch.arange(len(d)) % len(q)] + 2.0**-12 * d


def in_order(q: Tensor, d: Tensor) -> Tensor:
    """Every row better than the one before, so that each chunk has the winner so far."""
    return near_ties(q, d) * torch.linspace(0.9, 1.0, len(d))[:, None]


def duplicates(q: Tensor, d: Tensor) -> Tensor:
    """Nothing can be screened out, and the first of equals wins."""
    return q[:1].expand(len(d), -1).clone()


def zeros(q: Tensor, d: Tensor) -> Tensor:
    return torch.zeros_like(d)


def with_a(value: float) -> Callable[[Tensor, Tensor], Tensor]:
    def put(q: Tensor, d: Tensor) -> Tensor:
        d = d.clone()
        d[len(d) // 2, -1] = value
        return d

    put.__name__ = f"with_{value}"
    return put


def scaled(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    def scale(q: Tensor, d: Tensor) -> Tensor:
        return d * factor

    scale.__name__ = f"scaled_{factor}"
    return scale


DOCUMENTS = [near_ties, in_order, duplicates, zeros]
NUMBERS = [float("nan"), float("inf"), float("-inf"), 1e-40, 1e38, 2.0**21]
SCALES = [2.0**-149, 1e-30, 2.0**-21, 2.0**-10, 2.0**10, 2.0**21, 1e30]
ADVERSARIES = [*DOCUMENTS, *map(with_a, NUMBERS), *map(scaled, SCALES)]


@pytest.mark.parametrize(("tier", "dtype"), CASES)
@pytest.mark.parametrize("make", ADVERSARIES, ids=lambda make: make.__name__)
def test_documents_made_to_be_screened_wrongly(tier: str, make: Callable[..., Tensor], dtype: torch.dtype) -> None:
    runnable(tier)
    q = embeddings([40, 33, 64], 128)
    d = [make(query, row) for query in q for row in embeddings([1, 60, 319, 320, 321, 700], 128)]
    assert_same_bits(tier, [x.to(dtype) for x in q], [x.to(dtype) for x in d])


@pytest.mark.parametrize("make", [zeros, *map(with_a, NUMBERS), *map(scaled, SCALES)], ids=lambda make: make.__name__)
def test_queries_made_to_be_screened_wrongly(screening: str, make: Callable[..., Tensor]) -> None:
    q, d = embeddings([40, 33, 64], 128), embeddings([5, 340, 700], 128)
    assert_same_bits(screening, [q[0], make(d[0], q[1]), q[2]], planted(q, d))


@pytest.mark.parametrize("dim", [1, 2, 3, 31, 33, 48, 64, 96, 100, 127, 129, 255, 256, 257, 320, 384, 768, 1024, 4096])
@pytest.mark.parametrize(("tier", "dtype"), CASES)
def test_dims(tier: str, dim: int, dtype: torch.dtype) -> None:
    runnable(tier)
    q, d = embeddings([31, 17, 65], dim, dtype), embeddings([1, 12, 45, 322, 641], dim, dtype)
    assert_same_bits(tier, q, planted(q, d))


@pytest.mark.parametrize(("tier", "dtype"), CASES)
def test_every_small_dim(tier: str, dtype: torch.dtype) -> None:
    """Whatever part of a vector a row ends in."""
    before = screened(runnable(tier))
    for dim in range(1, 201):
        q, d = embeddings([20], dim, dtype), embeddings([45, 170], dim, dtype)
        assert_same_bits(tier, q, planted(q, d))
        if dtype == torch.float32:
            assert_same_bits(tier, q, cf.PackedTokens.from_list(planted(q, d)).quantize("int8"))
    assert screened(tier) - before >= 200


@pytest.mark.parametrize("make", [near_ties, in_order], ids=lambda make: make.__name__)
@pytest.mark.parametrize(("tier", "dtype"), CASES)
def test_pages(tier: str, make: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Chunks are longer with so many query tokens."""
    runnable(tier)
    (q,) = embeddings([600], 48)
    d = [make(q, rows) for rows in embeddings([1023, 1024, 1025], 48)] + planted([q], embeddings([2100], 48))
    assert_same_bits(tier, [q.to(dtype)], [x.to(dtype) for x in d])


def among(rows: list[Tensor], others: Tensor) -> Tensor:
    """The rows, one at either end of others that are too short to win."""
    return torch.cat([rows[0][None], others * 1e-3, rows[1][None]])


@pytest.mark.parametrize("swapped", [False, True], ids=["winner-last", "winner-first"])
@pytest.mark.parametrize(("tier", "dtype"), CASES)
def test_what_rows_may_lose_as_int8(tier: str, dtype: torch.dtype, swapped: bool) -> None:
    """The winner loses 0.48 of a level in each number, 97 % of the bound, and another row wins as much."""
    runnable(tier)
    winner = torch.full((128,), 3.484375)
    rival = torch.full((128,), 3.515625)
    rival[1:3] = 0.0
    winner[0] = rival[0] = 127.0  # the unit of a level is 1
    q = torch.ones(40, 128)
    assert q[0] @ winner > q[0] @ rival
    assert q[0] @ winner.round() < q[0] @ rival.round() - 100
    rows = [winner, rival] if swapped else [rival, winner]
    assert_same_bits(tier, [q.to(dtype)], [among(rows, embeddings([100], 128)[0]).to(dtype)])


@pytest.mark.parametrize("swapped", [False, True], ids=["winner-last", "winner-first"])
@pytest.mark.parametrize("tier", here(SCREENING))
def test_what_queries_may_lose_as_int8(tier: str, swapped: bool) -> None:
    """The winner has all that a query token loses in rounding, and another row has nothing of it."""
    runnable(tier)
    q = torch.full((128,), 3.49)
    q[0] = 127.0
    rival = torch.zeros(128)
    rival[0] = 127.0  # one level of this row is 0.0272
    winner = torch.full((128,), 127.0)
    winner[0] = 0.0
    scales = torch.tensor([q @ winner / (q @ rival) * 0.99, 1.0])
    rows = [rival * scales[0], winner * scales[1]]
    assert q @ rows[1] > q @ rows[0] > q.round() @ rows[1] + 5000
    documents = cf.PackedTokens.from_list([among(rows[::-1] if swapped else rows, embeddings([100], 128)[0])])
    assert_same_bits(tier, [q.repeat(40, 1)], documents.quantize("int8"))


@pytest.mark.parametrize("make", [*DOCUMENTS, *map(with_a, NUMBERS), *map(scaled, SCALES)], ids=lambda f: f.__name__)
def test_bfloat16_is_the_same_in_a_batch(make: Callable[..., Tensor]) -> None:
    """With few query tokens cpu:avx512_bf16 multiplies it as it is, with many it screens it."""
    tier = runnable("cpu:avx512_bf16")
    q = [x.bfloat16() for x in embeddings([32, 17, 32, 32], 128)]
    d = [*embeddings([500], 128), *(make(q[0].float(), row) for row in embeddings([1, 60, 320, 700], 128))]
    d = [x.bfloat16() for x in d]
    before = screened(tier)
    together = score_argmax(tier, q, d)
    after = screened(tier)
    for i, query in enumerate(q):
        scores, argmax = score_argmax(tier, [query], d)
        assert_bits((together[0][i], together[1][i, :, : len(query)]), (scores[0], argmax[0]))
    assert screened(tier) == after > before


@pytest.mark.parametrize(
    "make", [*DOCUMENTS, scaled(2.0**-21), scaled(2.0**21), scaled(1e30)], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int8_documents(screening: str, make: Callable[..., Tensor], dtype: torch.dtype) -> None:
    for dim in (128, 33, 3):
        q = embeddings([1, 40, 33], dim)
        d = [make(query, row) for query in q for row in embeddings([1, 60, 320, 700], dim)]
        # The same level in every row, and scales that decide.
        d.append(torch.ones(200, dim) * torch.linspace(1.0, 1.001, 200)[:, None])
        assert_same_bits(screening, [x.to(dtype) for x in q], cf.PackedTokens.from_list(d).quantize("int8"))


def test_one_zero_token(screening: str) -> None:
    """A query token of zeros ties with every document token, and the first one wins."""
    q, d = embeddings([40], 128), embeddings([500], 128)
    q[0][7] = 0.0
    assert_same_bits(screening, q, d)
    assert score_argmax(screening, q, d)[1][0, 0, 7] == 0


@pytest.mark.parametrize(("tier", "dtype"), CASES)
def test_screening_happens(tier: str, dtype: torch.dtype) -> None:
    """The cases above would prove nothing if every chunk were left to the chains of all rows."""
    before = screened(runnable(tier))
    cf.maxsim(embeddings([40], 128, dtype), embeddings([500], 128, dtype), backend=tier)
    assert screened(tier) == before + 2


@pytest.mark.parametrize("level", [None, 20, -20])
def test_screening_of_int8_happens(screening: str, level: int | None) -> None:
    """Also where all numbers of a row have one sign, which changes the sum of their squares."""
    documents = cf.PackedTokens.from_list(embeddings([500], 128)).quantize("int8")
    if level is not None:
        documents = documents.with_tokens(torch.full_like(documents.tokens, level), documents.scales)
    for lq in (1, 40):
        before = screened(screening)
        cf.maxsim(embeddings([lq], 128), documents, backend=screening)
        assert screened(screening) >= before + (2 if level is None else 1) * (lq > 1 or screening != "cpu:amx")


def ties_of_different_rows(count: int, dim: int) -> Tensor:
    """Rows with equal products with a query of ones. int8 rounds every second row, beginning with the first."""
    d = torch.zeros(count, dim)
    for row in range(0, count, 2):
        d[row, row % dim] = 4
    for row in range(1, count, 2):
        d[row, torch.arange(row, row + 4) % dim] = 1
    return d


def test_the_first_of_ties_wins_where_screening_gives_up(screening: str) -> None:
    """The guess is the second row, and there are more candidates than is worth it: the chains of all rows decide."""
    document = ties_of_different_rows(300, 16)
    q, d = [torch.ones(32, 16)], [document.clone() for _ in range(40)]
    before = screened(screening)
    assert_same_bits(screening, q, d)
    assert screened(screening) > before
    assert (score_argmax(screening, q, d)[1] == 0).all()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("quantized", [False, True])
def test_a_repeated_row_that_wins(screening: str, share: float, quantized: bool) -> None:
    q, d = embeddings([32], 128)[0], embeddings([600], 128)[0]
    d[torch.rand(600) < share] = torch.nn.functional.normalize(q[:3].sum(0), dim=0)
    documents = cf.PackedTokens.from_list([d])
    if quantized:
        documents = documents.quantize("int8")
        # The same numbers with another scale are another row.
        assert documents.scales is not None
        documents.scales[300] *= 1.5
    before = screened(screening)
    assert_same_bits(screening, [q], documents)
    assert screened(screening) > before
