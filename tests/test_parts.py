"""If there are fewer documents than threads, a document is cut into parts, and the scores have the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DTYPES, assert_scores, embeddings, planted, score_argmax
from torch import Tensor

import colbert_fast as cf


def same_on_all_threads(threads: Any, backend: str, a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Return scores and argmax on one thread, after comparing them with those on more threads."""
    threads(1)
    scores, argmax = score_argmax(backend, a, b)
    for n in (2, 3, 8):
        threads(n)
        more, places = score_argmax(backend, a, b)
        assert torch.equal(more.view(torch.int32), scores.view(torch.int32))
        assert torch.equal(places, argmax)
    return scores, argmax


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(native: str, threads: Any, dtype: torch.dtype) -> None:
    q, d = embeddings([33, 0, 5], 96, dtype), embeddings([5000, 0], 96, dtype)
    d = planted(q, d)
    with pytest.warns(UserWarning, match="a document without a token"):
        scores, argmax = same_on_all_threads(threads, native, q, d)
    assert_scores(scores[:, :1], q, d[:1])
    assert torch.equal(scores[:, 1], torch.full((3,), -1e9))
    assert torch.equal(argmax[:, 1], torch.full((3, 33), -1, dtype=torch.int32))


def test_the_winner_is_found_in_every_part(native: str, threads: Any) -> None:
    q, d = embeddings([40], 64), embeddings([4096], 64)
    places = torch.arange(40) * 102 + 50
    d[0][places] = q[0]
    assert torch.equal(same_on_all_threads(threads, native, q, d)[1][0, 0], places.to(torch.int32))


def test_the_first_of_equals_wins_over_all_parts(native: str, threads: Any) -> None:
    q, d = embeddings([40], 64), [embeddings([1], 64)[0].expand(4096, -1).contiguous()]
    assert torch.equal(same_on_all_threads(threads, native, q, d)[1], torch.zeros(1, 1, 40, dtype=torch.int32))


def test_nan_in_one_part(native: str, threads: Any) -> None:
    q, d = embeddings([40], 64), embeddings([4096], 64)
    d[0][3000, 5] = float("nan")
    scores, argmax = same_on_all_threads(threads, native, q, d)
    assert scores.isnan().all()
    assert torch.equal(argmax, torch.full((1, 1, 40), 3000, dtype=torch.int32))


def test_padding_of_zeros(native: str, threads: Any) -> None:
    """Rows of zeros are no tokens, also where a part has no others, and where all real scores are negative."""
    q = torch.rand(1, 40, 64) + 0.1
    d = torch.zeros(1, 4096, 64)
    d[0, 1500:2000] = -torch.rand(500, 64)
    scores, argmax = same_on_all_threads(threads, native, q, d)
    assert_scores(scores, [q[0]], [d[0, 1500:2000]])
    assert (argmax >= 1500).all()


def test_int8(native: str, threads: Any) -> None:
    q, d = embeddings([40], 96), cf.PackedTokens.from_list(embeddings([4000], 96)).quantize("int8")
    threads(1)
    alone = cf.maxsim(q, d, backend=native)
    threads(3)
    assert torch.equal(cf.maxsim(q, d, backend=native), alone)
    assert_scores(alone, q, [d[0]])


def test_pairs(native: str, threads: Any) -> None:
    q, d = embeddings([40, 7], 96), embeddings([3000, 2500], 96)
    pairs = [[1, 0], [0, 1]]
    threads(1)
    alone = cf.maxsim_pairs(q, d, pairs, backend=native)
    threads(8)
    assert torch.equal(cf.maxsim_pairs(q, d, pairs, backend=native), alone)
    torch.testing.assert_close(alone, cf.maxsim(q, d, backend="torch")[[1, 0], [0, 1]], rtol=1e-5, atol=1e-5)


def test_cancellation_in_one_part(native: str, threads: Any) -> None:
    """Where a tier multiplies bfloat16, a maximum near 0 is one of float32: of a document, not of a part of it."""
    q = torch.ones(32, 64, dtype=torch.bfloat16)
    d = torch.full((512, 64), -1.0, dtype=torch.bfloat16)
    d[3] = d[400] = 0
    d[3, :4] = torch.tensor([1, 0, -1, 2.0**-26])
    d[400, 0] = 2.0**-27
    same_on_all_threads(threads, native, [q], [d])


def test_many_dimensions(native: str, threads: Any) -> None:
    """No memory is taken for what is not done with so many numbers: on 16 threads that was 26 GB."""
    threads(16)
    q, d = torch.ones(1, 1, 400_000), torch.ones(16, 1, 400_000)
    assert torch.equal(cf.maxsim(q, d, backend=native), torch.full((1, 16), 4e5))
