"""Shapes with their boundaries named, inputs with the maximum planted, and the one tolerance."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import colbert_fast as cf
from colbert_fast import reference
from colbert_fast._lowering import lower

# Inputs are rounded to their dtype before the float64 reference gets them. So the only error is the rounding of float32
# sums: at most 130 + log2(blocks) roundings of 2^-24, for blocks of 128 products.
TOLERANCE = 1e-5

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# (query lengths, document lengths, dim). Tiles have 12, 6 or 4 document rows. Panels have 32, 16 or 8 query tokens; the
# last panel has 16, 8 or 4 if that is enough.
SHAPES = [
    pytest.param([1], [1], 1, id="one-number"),
    pytest.param([32], [300, 180, 12, 24], 128, id="text"),
    pytest.param([31, 32, 33], [11, 12, 13], 128, id="around-a-tile"),
    pytest.param([1, 7, 8, 9, 15, 16, 17], [1, 2, 3, 4, 5, 6, 7], 64, id="short"),
    pytest.param([4, 5, 19, 20, 21, 36, 37], [5, 6, 7, 18], 33, id="around-a-vector"),
    pytest.param([47, 48, 49, 63, 64, 65], [23, 25, 35, 37], 48, id="around-two-panels"),
    pytest.param([5, 0, 3], [4, 9, 1], 7, id="empty-query"),
    pytest.param([5, 3], [4, 9, 1, 2, 30], 3, id="tiny-dim"),
    pytest.param([12], [50, 49], 15, id="dim-line-1"),
    pytest.param([12], [50, 49], 16, id="dim-line"),
    pytest.param([12], [50, 49], 17, id="dim-line+1"),
    pytest.param([20, 33], [40, 41], 96, id="dim-96"),
    pytest.param([10], [90], 129, id="dim-129"),
    pytest.param([9, 40], [70, 3], 320, id="dim-320"),
    pytest.param([33], [70, 26], 768, id="dim-768"),
    pytest.param([17], [25], 1024, id="dim-1024"),
    pytest.param([130, 1, 200], [100, 64], 32, id="long-queries"),
    pytest.param([3] * 40, [5] * 30, 24, id="many-small"),
    pytest.param([2], [1500], 40, id="long-document"),
]


# Where a test takes long, and runs some combinations of its parameters in which any two values meet,
# COLBERT_FAST_EVERY=1 runs all. `make test-interpreter` sets it.
EVERY = os.environ.get("COLBERT_FAST_EVERY") == "1"


def embeddings(lengths: Sequence[int], dim: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Unit vectors, rounded to dtype."""
    return [torch.nn.functional.normalize(torch.randn(length, dim), dim=-1).to(dtype) for length in lengths]


def planted(queries: list[Tensor], documents: list[Tensor]) -> list[Tensor]:
    """Copy the documents, with a query token at the first, the last and every fifth row.

    A random document hides a lost row; one whose best rows are everywhere does not.
    """
    tokens = torch.cat(queries)
    result = []
    for d in documents:
        d = d.clone()
        for row in {0, len(d) - 1, *range(0, len(d), 5)} if len(d) and len(tokens) else ():
            d[row] = tokens[torch.randint(len(tokens), ())]
        result.append(d)
    return result


def assert_scores(actual: Tensor, queries: Sequence[Tensor], documents: Sequence[Tensor]) -> None:
    """Compare all-pairs scores with float64 on the same inputs."""
    expected = reference.maxsim(queries, documents)
    assert actual.shape == expected.shape
    assert actual.dtype == (torch.float64 if any(d.dtype == torch.float64 for d in documents) else torch.float32)
    assert_close(actual, expected)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Assert values within TOLERANCE of float64, relative to the value, or to 1 (equal unit vectors) near zero."""
    torch.testing.assert_close(actual.double(), expected.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def assert_within_products(actual: Tensor, queries: Sequence[Tensor], documents: Sequence[Tensor]) -> None:
    """Assert scores within TOLERANCE of float64, relative to the sum over query tokens of the winner's |products|."""
    for i, q in enumerate(queries):
        for j, d in enumerate(documents):
            score, argmax = reference.maxsim_pair(q, d)
            products = (q.double() * d[argmax].double()).abs().sum()
            error = abs(float(actual[i, j].double() - score))
            assert error <= TOLERANCE * products, f"{error / products:.2e} of the products, query {i}, document {j}"


def score_argmax(backend: str, a: Any, b: Any, a_mask: Any = None, b_mask: Any = None) -> tuple[Tensor, Tensor]:
    """Return scores ``[nq, nd]`` and the winning document tokens ``[nq, nd, lq]``, from any layout."""
    (q, skip_zero_q), (d, skip_zero_d) = lower(a, a_mask, "a"), lower(b, b_mask, "b")
    sides = (q.tokens, q.starts, q.lengths, d.tokens, d.scales, d.starts, d.lengths)
    scores, argmax = torch.ops.colbert_fast.score_argmax(
        *sides, None, q.max_length, d.max_length, skip_zero_q, skip_zero_d, 2**24, backend
    )
    torch.testing.assert_close(cf.maxsim(a, b, a_mask, b_mask, backend=backend), scores, equal_nan=True)
    return scores, argmax.view(*scores.shape, q.max_length)
