"""Upper bounds of scores from codes: never below the score, close to their definition, the same on every backend."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from cases import embeddings, planted
from hypothesis import given, settings
from hypothesis import strategies as st
from lacking import LACKING
from test_codes import integers, wild_tokens
from torch import Tensor

import colbert_fast as cf
from colbert_fast import reference
from colbert_fast._backends import torch_upper
from colbert_fast._codecs import Codes, encode, encode_planes, rotate
from colbert_fast._upper import upper_bounds
from colbert_fast.packed import PackedTokens

KINDS = ["8", "4", "2", "1", "4 of 4+4", "8 of 4+4"]
# The backends that take tensors of this machine's CPU. test_triton.py runs tests of this file in the interpreter.
BACKENDS = [b.name for b in cf.backends() if b.name not in LACKING and b.device in (None, "cpu")]


@pytest.fixture(params=[name for name in ("cpu", "torch", "triton") if any(b.startswith(name) for b in BACKENDS)])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def codes_of(documents: list[Tensor], kind: str) -> Codes:
    tokens, lengths = torch.cat(documents).float(), torch.tensor([len(d) for d in documents])
    if "+" in kind:
        return encode_planes(tokens, lengths, seed=1)[kind[0] == "8"]
    return encode(tokens, lengths, bits=int(kind), seed=1)


def defined(queries: list[Tensor], codes: Codes) -> Tensor:
    """Return the bounds ``[A, n]`` as they are defined, in float64, with the rotated queries as they are."""
    result = torch.zeros(len(queries), len(codes), dtype=torch.float64)
    v = integers(codes) * codes.multipliers.double()[:, None]
    for i, q in enumerate(queries):
        each = rotate(q.double(), codes.seed) @ v.T + codes.slack.double() * q.double().norm(dim=1)[:, None]
        for j, (start, length) in enumerate(zip(codes.starts.tolist(), codes.lengths.tolist(), strict=True)):
            best = each[:, start : start + length]
            result[i, j] = best.amax(1).sum() if length else -1e9
    return result


def distances(queries: list[Tensor], codes: Codes, backend: str) -> Tensor:
    """Return ``[A, n]``: how much larger than its definition the bound of a backend may be.

    It is what int8 costs, or two numbers of bfloat16: once in the products, and once where it is added. Sums in float32
    cost less than 1e-4 of the products.
    """
    steps = 2**15 if backend == "torch" else 127
    result = torch.zeros(len(queries), len(codes), dtype=torch.float64)
    for i, q in enumerate(queries):
        # Each number is off by half a step, and in the extension one number by a whole step, so that the sum is even.
        largest = rotate(q.double(), codes.seed).abs().amax(1)
        off = 2 * largest / steps * math.sqrt(codes.dim / 4 + 1) + 1e-4 * q.double().norm(dim=1)
        result[i] = off.sum() * codes.norms.double()
    return result


def check(queries: list[Tensor], documents: list[Tensor], codes: Codes, backend: str) -> Tensor:
    bounds = upper_bounds(PackedTokens.from_list(queries), codes, backend=backend)
    assert bounds.dtype == torch.float32 and bounds.shape == (len(queries), len(documents))
    assert not bool(bounds.isnan().any())
    assert bool((bounds.double() >= reference.maxsim(queries, documents)).all())
    expected = defined(queries, codes)
    assert bool((bounds.double() >= expected).all())
    room = distances(queries, codes, backend) + 1e-5 * expected.abs() + 1e-24
    assert bool((bounds.double() <= expected + room)[:, codes.lengths > 0].all())
    assert bool((bounds[:, codes.lengths == 0] == -1e9).all())
    return bounds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 15, 96, 130, 640])
def test_bounds(backend: str, kind: str, dim: int) -> None:
    """Empty queries and documents, tokens of zeros, and documents with copies of query tokens at every place."""
    queries = embeddings([5, 0, 32, 1], dim)
    queries[2][3] = 0
    documents = planted(queries, embeddings([1, 0, 7, 64, 75], dim))
    documents[3][5] = 0
    documents.append(torch.zeros(2, dim))
    check(queries, documents, codes_of(documents, kind), backend)


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_decides(backend: str, kind: str) -> None:
    """The best token at every place of a document, so that a backend that loses a token is seen."""
    dim = 48
    q = torch.nn.functional.normalize(torch.randn(1, dim), dim=1)
    documents = []
    for place in range(33):
        d = -q + 0.3 * torch.nn.functional.normalize(torch.randn(33, dim), dim=1)
        d[place] = q[0]
        documents.append(d)
    bounds = check([q], documents, codes_of(documents, kind), backend)
    assert float(bounds.min()) > 0.5


@settings(max_examples=50)
@given(wild_tokens(), wild_tokens(), st.sampled_from(KINDS), st.data())
def test_wild_scales(tokens: Tensor, others: Tensor, kind: str, data: st.DataObject) -> None:
    backend = data.draw(st.sampled_from(BACKENDS))
    dim = min(tokens.shape[1], others.shape[1])
    cut = data.draw(st.integers(0, len(tokens)))
    documents = [tokens[:cut, :dim].contiguous(), tokens[cut:, :dim].contiguous()]
    queries = [others[:, :dim].contiguous(), others[:1, :dim].contiguous()]
    codes = codes_of(documents, kind)
    bounds = upper_bounds(PackedTokens.from_list(queries), codes, backend=backend).double()
    assert not bool(bounds.isnan().any())
    assert bool((bounds >= reference.maxsim(queries, documents)).all())
    # The bound is near its definition, unless the tokens are so long or short that float32 may lose numbers.
    longest = codes.norms.double().amax() + codes.slack.double().amax()
    off = 1e-5 * torch.stack([q.double().norm(dim=1).sum() for q in queries])[:, None] * longest + 1e-24
    most = defined(queries, codes) + distances(queries, codes, backend) + off
    near = (bounds <= most) | (most.abs() > 1e38)
    assert not 1e-12 < longest < 1e30 or bool((near | (codes.lengths == 0)).all())


def test_items_in_any_order(backend: str) -> None:
    queries = PackedTokens.from_list(embeddings([4, 9], 64))
    documents = embeddings([3, 0, 40, 1, 17], 64)
    for kind in KINDS:
        codes = codes_of(documents, kind)
        items = torch.tensor([4, 0, 0, 1, 2])
        whole = upper_bounds(queries, codes, backend=backend)
        torch.testing.assert_close(upper_bounds(queries, codes.select(items), backend=backend), whole[:, items])
        assert upper_bounds(queries, codes.select(items[:0]), backend=backend).shape == (2, 0)
        nothing = torch.tensor([1, 1])
        assert bool((upper_bounds(queries, codes.select(nothing), backend=backend) == -1e9).all())


def test_nothing_to_bound(backend: str) -> None:
    codes = codes_of(embeddings([3, 0], 16), "4")
    assert upper_bounds(PackedTokens.from_list([]), codes, backend=backend).shape == (0, 2)
    bounds = upper_bounds(PackedTokens.from_list([torch.zeros(0, 16)] * 3), codes, backend=backend)
    assert bounds.tolist() == [[0.0, -1e9]] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes_of_queries(dtype: torch.dtype) -> None:
    queries = [q.to(dtype) for q in embeddings([7, 20], 96, torch.float64)]
    documents = planted([q.float() for q in queries], embeddings([30, 5], 96))
    check(queries, documents, codes_of(documents, "8"), "torch" if dtype == torch.float64 else BACKENDS[0])


def test_float64_beyond_float32() -> None:
    codes = codes_of(embeddings([4], 8), "8")
    for scale in (1e-200, 1e-60, 1e60, 1e200):
        queries = [scale * torch.randn(3, 8, dtype=torch.float64)]
        bounds = upper_bounds(PackedTokens.from_list(queries), codes)
        assert not bool(bounds.isnan().any())
        assert bool((bounds.double() >= defined(queries, codes)).all())


def test_rows_beside_the_queries_may_be_anything(backend: str) -> None:
    documents = embeddings([9, 30], 32)
    codes = codes_of(documents, "8")
    tokens = torch.randn(12, 32)
    tokens[[0, 5, 6, 11]] = torch.tensor([math.nan, math.inf, -math.inf, 1e38])[:, None]
    queries = PackedTokens(tokens, torch.tensor([7, 1, 2]), torch.tensor([4, 4, 3]))
    expected = upper_bounds(PackedTokens.from_list(list(queries)), codes, backend=backend)
    assert torch.equal(upper_bounds(queries, codes, backend=backend), expected)


def test_special_codes(backend: str) -> None:
    """An infinite slack bounds nothing; nor does a norm for which float32 has no room. Neither makes NaN."""
    codes = codes_of([*embeddings([3, 4, 5], 16)], "8")
    slack, norms = codes.slack.clone(), codes.norms.clone()
    slack[4], norms[2] = math.inf, math.inf
    codes = replace(codes, slack=slack, norms=norms)
    bounds = upper_bounds(PackedTokens.from_list([torch.ones(1, 16), torch.zeros(2, 16)]), codes, backend=backend)
    assert not bool(bounds.isnan().any())
    assert bounds[0].isinf().tolist() == [False, True, True]


def test_refusals(backend: str) -> None:
    codes = codes_of(embeddings([3, 4], 16), "8")
    queries = PackedTokens.from_list(embeddings([2, 3], 16))
    with pytest.raises(TypeError, match="queries must be floating point; got int8"):
        upper_bounds(queries.quantize(), codes, backend=backend)
    with pytest.raises(ValueError, match=r"got queries \[\*, 8\] and codes \[\*, 16\]"):
        upper_bounds(PackedTokens.from_list(embeddings([2], 8)), codes, backend=backend)
    for bad in (math.nan, math.inf, -math.inf):
        tokens = queries.tokens.clone()
        tokens[3, 7] = bad
        with pytest.raises(ValueError, match="query 1 has a NaN or an infinity"):
            upper_bounds(queries.with_tokens(tokens), codes, backend=backend)
    with pytest.raises(ValueError, match="no backend is called 'gpu'"):
        upper_bounds(queries, codes, backend="gpu")


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (6, 2), (0, -1), (2**62, 1), (0, 2**62), (2**62, 2**62)])
def test_items_outside_of_the_codes(backend: str, start: int, length: int) -> None:
    codes = codes_of(embeddings([3, 4], 16), "8")
    codes = replace(codes, starts=torch.tensor([0, start]), lengths=torch.tensor([3, length]))
    with pytest.raises(ValueError, match="item 1"):
        upper_bounds(PackedTokens.from_list(embeddings([2], 16)), codes, backend=backend)


def test_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few queries, few documents and few tokens of a document at a time."""
    queries, documents = embeddings([9, 4, 7, 20], 40), embeddings([3, 200, 0, 31, 31, 90], 40)
    codes = codes_of(documents, "8 of 4+4")
    whole = check(queries, documents, codes, "torch")
    for elements in (1, 5000, 40_000):
        monkeypatch.setattr(torch_upper, "CHUNK_ELEMENTS", elements)
        torch.testing.assert_close(check(queries, documents, codes, "torch"), whole)


def test_settings_of_torch_do_not_matter(backend: str) -> None:
    """Low precision is for those who ask for products, and gradients are for scores."""
    documents = embeddings([30, 8], 64)
    codes = codes_of(documents, "4")
    tokens = torch.randn(12, 64, requires_grad=True)
    queries = PackedTokens.from_list([tokens])
    plain = upper_bounds(queries, codes, backend=backend)
    assert not plain.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(upper_bounds(queries, codes, backend=backend), plain)
    torch.set_float32_matmul_precision("medium")
    try:
        torch.testing.assert_close(upper_bounds(queries, codes, backend=backend), plain, rtol=1e-6, atol=1e-6)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_backends_agree() -> None:
    queries, documents = embeddings([32, 7], 128), embeddings([40, 180, 3], 128)
    for kind in KINDS:
        codes = codes_of(documents, kind)
        packed = PackedTokens.from_list(queries)
        expected = upper_bounds(packed, codes, backend="torch").double()
        for backend in BACKENDS:
            room = distances(queries, codes, backend) + distances(queries, codes, "torch")
            assert bool(((upper_bounds(packed, codes, backend=backend) - expected).abs() <= room).all())
