"""The encoder in C++ gives what the one in torch gives up to roundings, however the work is divided."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from test_codes import check_bound, integers
from torch import Tensor

from colbert_fast._codecs import Codes, encode, encode_planes, encoding, row_bytes, signs
from colbert_fast._extension import _C

pytestmark = pytest.mark.usefixtures("extension")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = ["8", "4", "2", "1", "planes"]


def encoded(kind: str, tokens: Tensor, lengths: list[int] | None = None) -> list[Codes]:
    counts = torch.tensor([len(tokens)] if lengths is None else lengths)
    if kind == "planes":
        return list(encode_planes(tokens, counts, seed=5))
    return [encode(tokens, counts, bits=int(kind), seed=5)]


def same(ours: list[Codes], others: list[Codes], rows: slice = slice(None)) -> bool:
    """Whether the codes of rows are those of all other rows, bit for bit."""
    names = ("levels", "multipliers", "slack", "low")
    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(ours, others, strict=True) for name in names]
    return all(a is None if b is None else torch.equal(a[rows], b) for a, b in pairs)


@pytest.mark.parametrize(
    ("dim", "dtype"),
    [
        (1, DTYPES[0]),
        (2, DTYPES[0]),
        (3, DTYPES[0]),
        (31, DTYPES[0]),
        (96, DTYPES[1]),
        (200, DTYPES[2]),
        (384, DTYPES[0]),
    ]
    + [(128, dtype) for dtype in DTYPES],
)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_torch(kind: str, dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(dim)
    tokens = torch.cat([torch.randn(40, dim), torch.randn(20, dim) ** 5, torch.zeros(1, dim)]).to(dtype)
    ours = encoded(kind, tokens, [30, 0, 31])
    with patch.object(encoding, "_C", None):
        others = encoded(kind, tokens, [30, 0, 31])
    for a, b in zip(ours, others, strict=True):
        check_bound(a, tokens)
        apart = (integers(a) - integers(b)).abs() // (1 if a.bits == 8 else 2)
        # The largest number of a token lies between two levels, if it is negative.
        assert apart.max() <= 1
        assert (apart > 0).float().mean() < 0.5 / dim + 0.001
        if dim >= 96:  # where one level means little
            for name in ("multipliers", "norms"):
                torch.testing.assert_close(getattr(a, name).float(), getattr(b, name).float(), rtol=0.01, atol=0)
            # One more or less in the last bit of a multiplier changes the slack of 8 bits by up to a third.
            ratio = a.slack[:-1].double() / b.slack[:-1]
            assert 0.97 < ratio.mean() < 1.03
            assert 0.6 < ratio.min() <= ratio.max() < 1.6


def test_largest_dim() -> None:
    for codes in encoded("planes", tokens := torch.randn(9, 4096)):
        check_bound(codes, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_encoded_alike_wherever_it_is(kind: str, threads: Any) -> None:
    tokens = torch.randn(1531, 40).half()
    tokens[[3, 700, 1530]] = 0
    whole = encoded(kind, tokens)
    for n in (1, 2, 5):
        threads(n)
        assert same(encoded(kind, tokens), whole)
    for rows in (slice(0, 0), slice(0, 1), slice(3, 10), slice(505, 1025), slice(1523, 1531)):
        assert same(whole, encoded(kind, tokens[rows]), rows)
    with ThreadPoolExecutor(3) as pool:
        assert all(same(codes, whole) for codes in pool.map(lambda _: encoded(kind, tokens), range(6)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_anywhere_in_memory(dtype: torch.dtype) -> None:
    tokens = torch.randn(20, 24).to(dtype)
    whole = encoded("8", tokens)
    wide = torch.full((20, 50), torch.nan, dtype=dtype)
    wide[:, 7:31] = tokens
    assert same(encoded("8", wide[:, 7:31]), whole)
    assert same(encoded("8", tokens.T.contiguous().T), whole)
    assert same(encoded("8", torch._neg_view(-tokens)), whole)
    size = tokens.element_size()
    shifted = np.frombuffer(b"\0" + tokens.view(torch.uint8).numpy().tobytes() + b"\0" * size, np.uint8).copy()
    unaligned = torch.from_numpy(shifted)[1 : 1 + 20 * 24 * size]
    array = np.ndarray((20, 24), {2: np.int16, 4: np.int32}[size], unaligned.numpy().data)
    assert same(encoded("8", torch.from_numpy(np.ascontiguousarray(array)).view(dtype)), whole)
    assert same(encoded("8", tokens[::3]), encoded("8", tokens[::3].clone()))
    assert same(encoded("8", tokens[:1].expand(9, 24)), encoded("8", tokens[:1].repeat(9, 1)))


def test_all_numbers_of_float16() -> None:
    every = torch.arange(2**16).to(torch.int32).to(torch.int16).view(torch.float16)
    tokens = every[every.isfinite()].view(-1, 64)
    assert same(encoded("8", tokens), encoded("8", tokens.float()))


def test_denormal_numbers_that_are_flushed(threads: Any) -> None:
    threads(1)
    tokens = torch.tensor([[1e-40, -3e-41, 1e-45], [1e-45, 0, 0], [1, 1e-40, 0], [2.0**-30, 1e-38, 1e-39]])
    torch.set_flush_denormal(True)
    try:
        codes = [some for kind in KINDS for some in encoded(kind, tokens)]
    finally:
        torch.set_flush_denormal(False)
    for some in codes:
        check_bound(some, tokens)
        assert bool((some.slack >= 2.0**-121).all())  # no kernel flushes it to zero


def test_the_first_of_the_bad_items_is_named(threads: Any) -> None:
    tokens = torch.randn(3000, 8)
    tokens[2900, 1], tokens[1400, 7], tokens[1401, 0] = torch.nan, torch.inf, torch.nan
    for n in (1, 4):
        threads(n)
        with pytest.raises(ValueError, match="item 1 has a NaN"):
            encoded("planes", tokens, [1400, 1, 1599])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": 3}, "tokens must be floating point"),
        ({"dtype": 4}, "dtype 4; 0 to 3 are known"),
        ({"tokens": torch.zeros(5, 0)}, "dim must be 1 to 4096; got 0"),
        ({"tokens": torch.zeros(0, 4097)}, "dim must be 1 to 4096; got 4097"),
        ({"tokens": torch.zeros(5, 12)[:, ::2]}, "tokens must have adjacent elements"),
        ({"signs": torch.ones(3, 6)}, "signs must have 24 elements; got 18"),
        ({"threads": 0}, "threads must be 1 or more; got 0"),
        ({"levels": torch.zeros(5, 2, dtype=torch.uint8)}, "levels must have 15 elements; got 10"),
        ({"low": torch.zeros(5, 2, dtype=torch.uint8)}, "low must have 15 elements; got 10"),
        ({"slack": torch.zeros(4, dtype=torch.bfloat16)}, "slack must have 5 elements; got 4"),
        ({"bits": 3}, "bits must be 8, 4, 2 or 1; got 3"),
        ({"bits": 4}, "a low plane needs 8 bits; got 4"),
        ({"high": None}, "a low plane needs a fit of the high one"),
    ],
)
def test_the_extension_checks_its_arguments(change: dict[str, Any], message: str) -> None:
    values = {"dtype": 0, "tokens": torch.zeros(5, 6), "signs": signs(6, 0), "threads": 1, "bits": 8}
    values |= {name: torch.zeros(5, row_bytes(6, 4), dtype=torch.uint8) for name in ("levels", "low")}
    values |= {"slack": torch.zeros(5, dtype=torch.bfloat16)} | change
    fit = (values["bits"], torch.zeros(5, dtype=torch.bfloat16), values["slack"], torch.zeros(5))
    names = ("dtype", "tokens", "signs", "threads", "levels", "low")
    with pytest.raises(ValueError, match=message):
        _C.encode(*(values[name] for name in names), fit, values.get("high", (4, *fit[1:])))
