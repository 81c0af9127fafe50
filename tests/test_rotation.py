"""The rotation of the codes is orthogonal, the same everywhere, and as exact as it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_fast._codecs import rotate, rotate_back, rotation_error, signs

DIMS = [1, 2, 3, 4, 5, 7, 8, 96, 100, 127, 128, 130, 384, 1024]


def matrix(dim: int, seed: int) -> np.ndarray:
    """Build the rotation from matrices, as the docstring of the module says."""
    p = 2 ** int(np.log2(dim))
    transform = np.ones((1, 1))
    while len(transform) < p:
        transform = np.kron(np.array([[1, 1], [1, -1]]), transform) / np.sqrt(2)
    result = np.eye(dim)
    for stage, some in enumerate(signs(dim, seed).double().numpy()):
        step = np.eye(dim)
        here = slice(0, p) if stage % 2 == 0 else slice(dim - p, dim)
        step[here, here] = transform
        result = step @ (some[:, None] * result)
    return result


@pytest.mark.parametrize("dim", DIMS)
def test_is_the_product_of_its_stages(dim: int) -> None:
    wanted = matrix(dim, 3)
    np.testing.assert_allclose(wanted @ wanted.T, np.eye(dim), atol=1e-12)
    rows = torch.eye(dim, dtype=torch.float64)
    np.testing.assert_allclose(rotate(rows, 3).numpy().T, wanted, atol=1e-12)
    np.testing.assert_allclose(rotate_back(rows, 3).numpy().T, wanted.T, atol=1e-12)


def test_signs_stay_what_they_are() -> None:
    # A file holds the seed alone.
    assert ["".join("+-"[s < 0] for s in row) for row in signs(16, 7).tolist()] == SIGNS_OF_SEED_7
    assert signs(16, 7) is signs(16, 7)
    assert not torch.equal(signs(16, 7), signs(16, 8))


SIGNS_OF_SEED_7 = ["-++++-+-+---+---", "+--+++++-++-++++", "-++-+++---++--+-", "+------+--+-+---"]


@given(st.sampled_from([1, 3, 8, 96, 128, 300, 1024]), st.integers(0, 2**64 - 1), st.integers(-40, 100))
@settings(max_examples=60, deadline=None)
def test_error_in_float32(dim: int, seed: int, exponent: int) -> None:
    torch.manual_seed(seed % 1000)
    rows = torch.cat([torch.randn(8, dim), torch.eye(dim)[:4], torch.ones(1, dim)]) * 2.0**exponent
    error = (rotate(rows, seed).double() - rotate(rows.double(), seed)).norm(dim=1)
    assert bool((error <= rotation_error(dim) * rows.double().norm(dim=1)).all())
    back = (rotate_back(rotate(rows, seed), seed).double() - rows).norm(dim=1)
    assert bool((back <= 2.01 * rotation_error(dim) * rows.double().norm(dim=1)).all())


def test_spreads_the_energy() -> None:
    for dim in (96, 128, 384):
        assert float(rotate(torch.eye(dim), 0).abs().max()) < 6 / dim**0.5


@pytest.mark.parametrize(("dim", "seed"), [(0, 0), (4097, 0), (8, -1), (8, 2**64)])
def test_errors(dim: int, seed: int) -> None:
    with pytest.raises(ValueError, match=r"must be \d to \S+.*; got"):
        signs(dim, seed)
