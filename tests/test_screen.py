"""Screening in fewer bits changes no bit: a tier that screens equals the tier of plain multiply-adds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import embeddings, planted, score_argmax
from torch import Tensor

import colbert_fast as cf

# The tiers that screen, those that screen int8 only, and what does not but has the same float32 chains.
SCREENING = ["cpu:amx", "cpu:avx512_bf16"]
SCREENING_INT8 = ["cpu:avx512_vnni", "cpu:avx_vnni"]
PLAIN = {"cpu:avx_vnni": "cpu:avx2"}


def plain(tier: str) -> str:
    return PLAIN.get(tier, "cpu:avx512")


def runnable(tier: str) -> str:
    reasons = {b.name: b.unsupported for b in cf.backends()}
    for name in (tier, plain(tier)):
        if reasons[name] is not None:
            pytest.skip(f"{name}: {reasons[name]}")
    return tier


@pytest.fixture(params=SCREENING)
def screening(request: pytest.FixtureRequest) -> str:
    return runnable(request.param)


def assert_same_bits(screening: str, q: list[Tensor], d: list[Tensor]) -> None:
    for ours, theirs in zip(score_argmax(screening, q, d), score_argmax(plain(screening), q, d), strict=True):
        assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("make", ADVERSARIES, ids=lambda make: make.__name__)
def test_documents_made_to_be_screened_wrongly(screening: str, make: Callable[..., Tensor], dtype: torch.dtype) -> None:
    q = embeddings([40, 33, 64], 128)
    d = [make(query, row) for query in q for row in embeddings([1, 319, 320, 321, 700], 128)]
    assert_same_bits(screening, [x.to(dtype) for x in q], [x.to(dtype) for x in d])


@pytest.mark.parametrize("make", [zeros, *map(with_a, NUMBERS), *map(scaled, SCALES)], ids=lambda make: make.__name__)
def test_queries_made_to_be_screened_wrongly(screening: str, make: Callable[..., Tensor]) -> None:
    q, d = embeddings([40, 33, 64], 128), embeddings([5, 340, 700], 128)
    assert_same_bits(screening, [q[0], make(d[0], q[1]), q[2]], planted(q, d))


@pytest.mark.parametrize("dim", [1, 2, 3, 31, 33, 48, 64, 100, 127, 129, 320, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_dims(screening: str, dim: int, dtype: torch.dtype) -> None:
    q, d = embeddings([31, 17, 65], dim, dtype), embeddings([1, 12, 322, 641], dim, dtype)
    assert_same_bits(screening, q, planted(q, d))


@pytest.mark.parametrize(
    "make", [*DOCUMENTS, scaled(2.0**-21), scaled(2.0**21), scaled(1e30)], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tier", [*SCREENING_INT8, *SCREENING])
def test_int8_documents(tier: str, make: Callable[..., Tensor], dtype: torch.dtype) -> None:
    runnable(tier)
    for dim in (128, 33, 3):
        q = embeddings([1, 40, 33], dim)
        d = [make(query, row) for query in q for row in embeddings([1, 320, 700], dim)]
        # The same level in every row, and scales that decide.
        d.append(torch.ones(200, dim) * torch.linspace(1.0, 1.001, 200)[:, None])
        documents = cf.PackedTokens.from_list(d).quantize("int8")
        queries = [x.to(dtype) for x in q]
        for ours, theirs in zip(
            score_argmax(tier, queries, documents), score_argmax(plain(tier), queries, documents), strict=True
        ):
            assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


def test_one_zero_token(screening: str) -> None:
    """A query token of zeros ties with every document token, and the first one wins."""
    q, d = embeddings([40], 128), embeddings([500], 128)
    q[0][7] = 0.0
    assert_same_bits(screening, q, d)
    assert score_argmax(screening, q, d)[1][0, 0, 7] == 0


def test_screening_happens(screening: str) -> None:
    """The cases above would prove nothing if every chunk were left to the float32 tile."""
    before = cf._backends.cpu._C.chunks_screened()[screening.removeprefix("cpu:")]
    cf.maxsim(embeddings([40], 128), embeddings([500], 128), backend=screening)
    assert cf._backends.cpu._C.chunks_screened()[screening.removeprefix("cpu:")] == before + 2


@pytest.mark.parametrize("level", [None, 20, -20])
@pytest.mark.parametrize("tier", [*SCREENING_INT8, *SCREENING])
def test_screening_of_int8_happens(tier: str, level: int | None) -> None:
    """From the first query token on; and where the numbers of a row have one sign, which tells on their squares."""
    name = runnable(tier).removeprefix("cpu:")
    documents = cf.PackedTokens.from_list(embeddings([500], 128)).quantize("int8")
    if level is not None:
        documents = documents.with_tokens(torch.full_like(documents.tokens, level), documents.scales)
    for lq in (1, 40):
        before = cf._backends.cpu._C.chunks_screened()[name]
        cf.maxsim(embeddings([lq], 128), documents, backend=tier)
        assert cf._backends.cpu._C.chunks_screened()[name] >= before + (2 if level is None else 1)
