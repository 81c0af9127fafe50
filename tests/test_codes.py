"""Codes bound every product with their tokens, and estimate the tokens as well as their bits allow."""

from __future__ import annotations

import math
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from colbert_fast._codecs import (
    BITS,
    Codes,
    decoded,
    encode,
    encode_planes,
    encoding,
    packed_levels,
    rotate,
    row_bytes,
    unpacked_levels,
)
from colbert_fast._extension import MISSING

# Each in C++, where the extension is, and in torch.
ARITHMETICS = ["torch"] if MISSING else ["C++", "torch"]
KINDS = [f"{bits} in {where}" for where in ARITHMETICS for bits in ("8", "4", "2", "1", "4 of 4+4", "8 of 4+4")]


def encoded(kind: str, tokens: Tensor, lengths: list[int] | None = None, seed: int = 1) -> Codes:
    counts = torch.tensor([len(tokens)] if lengths is None else lengths, dtype=torch.int64, device="cpu")
    with ExitStack() as stack:
        if kind.endswith("torch"):
            stack.enter_context(patch.object(encoding, "_C", None))
        if "+" in kind.partition(" in ")[0]:
            return encode_planes(tokens, counts, seed=seed)[kind[0] == "8"]
        return encode(tokens, counts, bits=int(kind[0]), seed=seed)


def integers(codes: Codes) -> Tensor:
    """Return the integers v of all rows, float64."""
    if codes.low is None:
        levels = unpacked_levels(codes.levels, codes.bits, codes.dim)
    else:
        levels = 16 * unpacked_levels(codes.levels, 4, codes.dim) + unpacked_levels(codes.low, 4, codes.dim)
    a, b = BITS[codes.bits]
    return a * levels.double() - b


def check_bound(codes: Codes, tokens: Tensor) -> None:
    """Check slack and norms, in float64, which is exact enough: the slack has 8 bits."""
    x = tokens.double()
    v, norm = integers(codes) * codes.multipliers.double()[:, None], x.norm(dim=1)
    slack = codes.slack.double()
    assert bool(codes.multipliers.isfinite().all())
    # This is what the bound needs for all query tokens at once: it is attained by q in the direction of the residual.
    assert bool(((rotate(x, codes.seed) - v).norm(dim=1) <= slack + 1e-13 * norm).all())
    # The same bound for what takes the place of tokens that are not kept. These codes have all tokens in order.
    estimate = decoded(codes).double()
    assert bool(((rotate(estimate, codes.seed) - v).norm(dim=1) <= slack + 1e-13 * norm).all())
    longest = [v[a : a + n].norm(dim=1).max() if n else 0.0 for a, n in zip(codes.starts, codes.lengths, strict=True)]
    assert bool((codes.norms.double() >= torch.tensor(longest, dtype=torch.float64)).all())


WILD = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 1e-38, 1e-45, -3e-42, 3.4e38, -1e38, 1e-12, 2.0**-30, 2.0**60]),
    st.floats(-1, 1, width=32),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
)


@st.composite
def wild_tokens(draw: st.DrawFn) -> Tensor:
    """Tokens of all scales: arbitrary numbers, random directions, one number alone, zeros, repeated tokens."""
    dim = draw(st.integers(1, 40) | st.sampled_from([64, 96, 127, 128, 384, 1024]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    scales = 10.0 ** np.array(draw(st.lists(st.integers(-45, 38), min_size=4, max_size=4)))
    rows = rng.standard_normal((7, dim)) * np.concatenate([scales, [1, 0, 1]])[:, None] / math.sqrt(dim)
    rows[4] = 0
    rows[4, draw(st.integers(0, dim - 1))] = draw(WILD)
    some = draw(st.lists(WILD, min_size=1, max_size=8))
    rows[6] = np.resize(some, dim)
    rows = np.clip(rows, -3.4e38, 3.4e38)
    return torch.from_numpy(rows[draw(st.lists(st.integers(0, 6), min_size=1, max_size=9))].astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
@given(wild_tokens(), st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_bound(kind: str, tokens: Tensor, seed: int) -> None:
    codes = encoded(kind, tokens, seed=seed)
    check_bound(codes, tokens)
    zero = (tokens == 0).all(1)
    assert torch.equal(codes.slack == 0, zero)
    assert not bool(codes.multipliers[zero].any())


@pytest.mark.parametrize("kind", KINDS)
def test_score_is_bounded(kind: str) -> None:
    torch.manual_seed(0)
    tokens = torch.nn.functional.normalize(torch.randn(60, 128), dim=1)
    lengths = [20, 0, 40]
    codes = encoded(kind, tokens, lengths)
    q = torch.cat([torch.randn(5, 128), tokens[[7, 30]]]).double()
    products = rotate(q, codes.seed) @ (integers(codes) * codes.multipliers.double()[:, None]).T
    bounds = products + codes.slack.double() * q.norm(dim=1, keepdim=True)
    exact = q @ tokens.double().T
    assert bool((exact <= bounds).all())
    for start, length in ((0, 20), (20, 40)):
        item = slice(start, start + length)
        assert exact[:, item].amax(1).sum() <= bounds[:, item].amax(1).sum()


# The slack over the norm, for tokens in any direction. It is at least the residual over w = sqrt(3/4).
SLACK = {"8": 0.0086, "4": 0.125, "2": 0.40, "1": 0.70, "4 of 4+4": 0.135, "8 of 4+4": 0.0086}


@pytest.mark.parametrize("dim", [96, 128, 384])
@pytest.mark.parametrize("kind", KINDS)
def test_bound_is_tight(kind: str, dim: int) -> None:
    torch.manual_seed(2)
    peaked = torch.randn(100, dim) ** 5  # a few numbers have all the energy
    tokens = torch.cat([torch.randn(100, dim), peaked, torch.eye(dim)[:20]])
    codes = encoded(kind, tokens)
    norm = tokens.double().norm(dim=1)
    assert float((codes.slack.double() / norm).mean()) < SLACK[kind.partition(" in ")[0]]
    error = (decoded(codes).double() - tokens).norm(dim=1) / norm
    assert float(error.mean()) < 0.9 * SLACK[kind.partition(" in ")[0]]
    assert float(codes.norms.double() / norm.max()) < 1.05


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 127, 128])
def test_packing(dim: int, bits: int) -> None:
    levels = torch.randint(0, 2**bits, (5, dim), dtype=torch.uint8)
    packed = packed_levels(levels, bits)
    assert packed.shape == (5, row_bytes(dim, bits))
    assert torch.equal(unpacked_levels(packed, bits, dim), levels)
    for j, byte in enumerate(packed[0].tolist()):
        pieces = [levels[0, i] if (i := piece * packed.shape[1] + j) < dim else 0 for piece in range(8 // bits)]
        assert byte == sum(int(number) << (bits * piece) for piece, number in enumerate(pieces))


@pytest.mark.parametrize("dim", [1, 5, 128])
def test_planes_share_the_high_bits(dim: int) -> None:
    tokens = torch.randn(30, dim)
    lengths = torch.tensor([10, 20])
    first, both = encode_planes(tokens, lengths, seed=4)
    assert (first.bits, first.low, both.bits) == (4, None, 8)
    assert first.levels is both.levels
    whole = encode(tokens, lengths, bits=8, seed=4)
    assert torch.equal(integers(both), integers(whole))
    for name in ("multipliers", "slack", "norms"):
        assert torch.equal(getattr(both, name), getattr(whole, name))
    torch.testing.assert_close(decoded(both), decoded(whole))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_encoded_as_it_is(kind: str, dtype: torch.dtype) -> None:
    tokens = torch.randn(20, 130).to(dtype)
    codes, same = encoded(kind, tokens), encoded(kind, tokens.float())
    for name in ("levels", "multipliers", "slack", "norms"):
        assert torch.equal(getattr(codes, name), getattr(same, name))


@pytest.mark.parametrize("kind", KINDS)
def test_items_without_tokens(kind: str) -> None:
    tokens = torch.randn(3, 8)
    codes = encoded(kind, tokens, [0, 1, 0, 2, 0])
    assert codes.starts.tolist() == [0, 0, 1, 1, 3]
    assert (codes.norms > 0).tolist() == [False, True, False, True, False]
    assert len(encoded(kind, tokens[:0], [])) == 0
    assert encoded(kind, tokens[:0], [0, 0]).norms.tolist() == [0, 0]
    assert decoded(encoded(kind, tokens[:0], [0, 0])).shape == (0, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_select(kind: str) -> None:
    tokens = torch.randn(9, 16)
    codes = encoded(kind, tokens, [2, 3, 4])
    some = codes.select(torch.tensor([2, 0]))
    assert some.levels is codes.levels
    assert (len(some), some.lengths.tolist(), some.starts.tolist()) == (2, [4, 2], [5, 0])
    assert torch.equal(some.norms, codes.norms[[2, 0]])
    assert torch.equal(decoded(some), decoded(codes)[[5, 6, 7, 8, 0, 1]])
    assert torch.equal(codes.to("cpu").slack, codes.slack)


@pytest.mark.parametrize("kind", KINDS)
def test_modes_of_torch(kind: str) -> None:
    tokens = torch.randn(9, 33)
    codes = encoded(kind, tokens)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            same = encoded(kind, tokens, [9])
            estimate = decoded(same)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(same.levels, codes.levels)
    assert torch.equal(same.norms, codes.norms)
    assert torch.equal(estimate, decoded(codes))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_have_no_gradient(kind: str) -> None:
    tokens = torch.randn(9, 33, requires_grad=True)
    codes, same = encoded(kind, tokens), encoded(kind, tokens.detach())
    for name in ("levels", "multipliers", "slack", "norms"):
        assert not getattr(codes, name).requires_grad
        assert torch.equal(getattr(codes, name), getattr(same, name))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_refused(kind: str, value: float) -> None:
    tokens = torch.full((300, 16), 3e38)
    tokens[250:, 3] = value
    with pytest.raises(ValueError, match="item 3 has a NaN or an infinity"):
        encoded(kind, tokens, [200, 0, 50, 50])


@pytest.mark.parametrize(
    ("tokens", "lengths", "options", "error", "message"),
    [
        (torch.zeros(2, 3).double(), [2], {}, TypeError, "tokens must be float32, .*; got torch.float64"),
        (torch.zeros(2, 3), [2.0], {}, TypeError, "lengths must be int64; got torch.float32"),
        (torch.zeros(6), [6], {}, ValueError, r"tokens must be \[total, dim\] .*; got shape \[6\]"),
        (torch.zeros(2, 3), [3], {}, ValueError, "their sum the 2 tokens; got"),
        (torch.zeros(2, 3), [3, -1], {}, ValueError, "each 0 or more"),
        (torch.zeros(2, 0), [2], {}, ValueError, "dim must be 1 to 4096; got 0"),
        (torch.zeros(2, 4097), [2], {}, ValueError, "dim must be 1 to 4096; got 4097"),
        (torch.zeros(2, 3), [2], {"bits": 3}, ValueError, "bits must be 8, 4, 2 or 1; got 3"),
        (torch.zeros(2, 3), [2], {"seed": -1}, ValueError, "seed must be 0 .*; got -1"),
    ],
)
def test_errors(tokens: Tensor, lengths: list[float], options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode(tokens, torch.tensor(lengths), **{"bits": 8, "seed": 0, **options})


def test_codes_check_their_tensors() -> None:
    codes = encoded("4 in torch", torch.randn(3, 9))
    parts = {name: getattr(codes, name) for name in codes.__dataclass_fields__}
    with pytest.raises(ValueError, match=r"levels must be \[3, 9\]; got shape \[3, 5\]"):
        Codes(**{**parts, "bits": 8})
    with pytest.raises(ValueError, match=r"bits must be .* and 8 with a low plane; got 4"):
        Codes(**{**parts, "low": codes.levels})
    with pytest.raises(TypeError, match=r"slack must be torch.bfloat16; got torch.float32"):
        Codes(**{**parts, "slack": codes.slack.float()})
    with pytest.raises(ValueError, match=r"norms must be \[1\]; got shape \[2\]"):
        Codes(**{**parts, "norms": torch.zeros(2)})
