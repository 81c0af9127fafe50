"""Mistakes that only the Triton kernel of upper bounds can make: tiles, pieces, parts. In the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import embeddings
from test_codes import integers
from test_upper import KINDS, codes_of
from torch import Tensor

from colbert_fast._backends import torch_upper, triton_, triton_tiles, triton_upper
from colbert_fast._backends.triton_tiles import Config
from colbert_fast._codecs import Codes, rotate
from colbert_fast.packed import PackedTokens

SMALL = Config(block_q=32, block_d=16, warps=1, stages=2)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that replaces the tuning table by one configuration."""

    def use(config: Config) -> None:
        monkeypatch.setattr(triton_tiles, "config_for", lambda *_: config)
        triton_upper._plan.cache_clear()

    yield use
    triton_upper._plan.cache_clear()


def in_int8(queries: list[Tensor], codes: Codes) -> tuple[Tensor, Tensor]:
    """Return the bounds ``[A, n]`` of queries in int8, in float64 without margins, and the margins ``[A, n]``."""
    result = torch.zeros(len(queries), len(codes), dtype=torch.float64)
    margins = torch.zeros_like(result)
    v = integers(codes) * codes.multipliers.double()[:, None]
    for i, q in enumerate(queries):
        rows = rotate(q.double(), codes.seed)
        step = rows.abs().amax(1, keepdim=True) / 127
        y = step * (rows / step).round()
        norm = q.double().norm(dim=1)
        each = y @ v.T + codes.slack.double() * norm[:, None]
        for j, (start, length) in enumerate(zip(codes.starts.tolist(), codes.lengths.tolist(), strict=True)):
            best = each[:, start : start + length]
            off = (rows - y).norm(dim=1).sum() * codes.norms[j].double()
            result[i, j] = best.amax(1).sum() + off if length else -1e9
        margins[i] = torch_upper.margin(codes.dim) * norm.sum() * codes.norms
    return result, margins


def check(queries: list[Tensor], codes: Codes) -> None:
    bounds = triton_upper.upper_bounds(PackedTokens.from_list(queries), codes).double()
    expected, margins = in_int8(queries, codes)
    empty = codes.lengths == 0
    assert bool((bounds[:, empty] == -1e9).all())
    assert bool((bounds >= expected)[:, ~empty].all())
    assert bool((bounds <= expected + 1.1 * margins + 1e-5 * expected.abs() + 1e-30)[:, ~empty].all())


@pytest.mark.parametrize("lq", [[3], [20, 9, 0, 11, 1], [40, 7]], ids=["one", "packed", "long"])
@pytest.mark.parametrize("swap", [False, True], ids=["", "swap"])
@pytest.mark.parametrize("kind", ["4", "8 of 4+4"])
def test_tiles(tiles: Any, lq: list[int], swap: bool, kind: str) -> None:
    """A tile has 16 rows and a program at most 4 documents. The best token is at every place of some document."""
    tiles(SMALL._replace(swap=swap, run=4))
    dim = 24
    q = torch.nn.functional.normalize(torch.randn(1, dim), dim=1)
    documents = [torch.zeros(0, dim)]
    for length in (1, 16, 17, 33):
        for place in {0, length - 1}:
            d = -q + 0.3 * torch.nn.functional.normalize(torch.randn(length, dim), dim=1)
            d[place] = q[0]
            documents.append(d)
    queries = [q + 0.1 * torch.randn(length, dim) for length in lq]
    check(queries, codes_of(documents, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces(tiles: Any, kind: str) -> None:
    """One piece with and without dimensions that are not there, and several pieces."""
    tiles(SMALL)
    for dim in (1, 32, 100, 257, 500):
        sizes = triton_upper._sizes(dim, int(kind[0]), "8 of" in kind)
        assert (sizes["PIECES"] > 1) == (dim > 256)
        assert sizes["NUMBERS"] >= 32 and sizes["NUMBERS"] * sizes["PIECES"] < 2 * max(dim, 32)
        queries, documents = embeddings([2, 5], dim), embeddings([3, 17], dim)
        check(queries, codes_of(documents, kind))


def test_many_queries_are_bounded_in_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, codes = embeddings([3, 1, 4, 1, 5], 16), codes_of(embeddings([3, 0, 9], 16), "4")
    launches: list[int] = []
    launch = triton_._launch
    monkeypatch.setattr(triton_, "_launch", lambda *a: (launches.append(1), launch(*a)))
    monkeypatch.setattr(triton_upper, "CHUNK_ELEMENTS", 6)
    check(queries, codes)
    assert len(launches) == 3
