"""The values of every backend, every dtype, every layout, against the float64 definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import DTYPES, SHAPES, assert_close, assert_scores, embeddings, planted

import colbert_fast as cf
from colbert_fast import reference

LAYOUTS = ["list", "packed", "padded", "padded-left", "padded-holes", "numpy", "nested", "gaps"]


def laid_out(layout: str, items: list[torch.Tensor]) -> tuple[object, object]:
    """Return the same items in a layout, and its mask or None."""
    longest = max(len(item) for item in items)
    dim = items[0].shape[1]
    if layout == "list":
        return items, None
    if layout == "packed":
        return cf.PackedTokens.from_list(items), None
    if layout == "numpy":
        return [item.numpy() for item in items], None
    if layout == "nested":
        return torch.nested.nested_tensor(items, layout=torch.jagged), None
    if layout == "gaps":  # out of order, with rows between the items that belong to no item and would win
        rows, starts = torch.full((0, dim), 1e4, dtype=items[0].dtype), [0] * len(items)
        for i in reversed(range(len(items))):
            starts[i] = len(rows) + 1
            rows = torch.cat([rows, torch.full((1, dim), 1e4, dtype=rows.dtype), items[i]])
        return cf.PackedTokens(rows, torch.tensor(starts), torch.tensor([len(item) for item in items])), None
    # Padding that would win, or make the score NaN, if it were read.
    padded = torch.full((len(items), longest + 3, dim), float("nan"), dtype=items[0].dtype)
    mask = torch.zeros(len(items), longest + 3, dtype=torch.bool)
    for i, item in enumerate(items):
        if layout == "padded-holes":
            where = torch.randperm(longest + 3)[: len(item)].sort().values
        else:
            first = longest + 3 - len(item) if layout == "padded-left" else 0
            where = torch.arange(first, first + len(item))
        padded[i, where] = item
        mask[i, where] = True
    return padded, mask


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("lq", "ld", "dim"), SHAPES)
def test_scores(backend: str, lq: list[int], ld: list[int], dim: int, dtype: torch.dtype) -> None:
    queries = embeddings(lq, dim, dtype)
    documents = planted(queries, embeddings(ld, dim, dtype))
    assert_scores(cf.maxsim(queries, documents, backend=backend), queries, documents)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    queries = embeddings([3, 8, 1], 20)
    documents = planted(queries, embeddings([5, 17, 2, 40], 20))
    a, a_mask = laid_out(layout, queries)
    b, b_mask = laid_out(layout, documents)
    expected = cf.maxsim(queries, documents, backend=backend)
    assert_scores(expected, queries, documents)
    scores = cf.maxsim(a, b, a_mask, b_mask, backend=backend)
    if backend == "torch":  # its products are cut differently
        torch.testing.assert_close(scores, expected)
    else:
        assert torch.equal(scores, expected)


@pytest.mark.parametrize("kind", ["bool", "float", "int", "list", "numpy"])
def test_kinds_of_mask(backend: str, kind: str) -> None:
    queries, documents = torch.randn(2, 4, 8), torch.randn(3, 6, 8)
    keep = torch.rand(3, 6) < 0.7
    keep[:, 2] = True
    mask = {
        "bool": keep,
        "float": keep.float(),
        "int": keep.int(),
        "list": list(keep),
        "numpy": keep.numpy(),
    }[kind]
    scores = cf.maxsim(queries, documents, b_mask=mask, backend=backend)
    assert_scores(scores, list(queries), [d[m] for d, m in zip(documents, keep, strict=True)])


def test_one_mask_row_serves_all(backend: str) -> None:
    documents = torch.randn(3, 6, 8)
    keep = torch.tensor([[True, False, True, True, False, False]])
    scores = cf.maxsim(torch.randn(2, 4, 8).neg_(), documents, b_mask=keep, backend=backend)
    assert scores.shape == (2, 3)
    queries = torch.randn(2, 4, 8)
    assert_scores(
        cf.maxsim(queries, documents, b_mask=keep, backend=backend), list(queries), [d[keep[0]] for d in documents]
    )


def test_mask_on_a_list_is_cut_to_each_item(backend: str) -> None:
    queries, documents = embeddings([4], 8), embeddings([3, 5], 8)
    mask = torch.ones(2, 5)
    mask[1, 0] = 0
    scores = cf.maxsim(queries, documents, b_mask=mask, backend=backend)
    assert_scores(scores, queries, [documents[0], documents[1][1:]])


def test_negative_similarities_beat_padding(backend: str) -> None:
    queries = torch.ones(1, 2, 4)
    documents = -torch.ones(2, 3, 4)
    mask = torch.tensor([[True, False, False], [True, True, False]])
    assert torch.equal(cf.maxsim(queries, documents, b_mask=mask, backend=backend), torch.tensor([[-8.0, -8.0]]))


def test_single_embedding_is_a_batch_of_one(backend: str) -> None:
    q, d = torch.randn(4, 8), torch.randn(6, 8)
    assert_scores(cf.maxsim(q, d.numpy(), backend=backend), [q], [d])


def test_integers_become_float32(backend: str) -> None:
    q, d = torch.randint(-127, 128, (4, 8), dtype=torch.int8), torch.randint(-127, 128, (6, 8), dtype=torch.int8)
    assert_scores(cf.maxsim([q], [d], backend=backend), [q], [d])


def test_float64_is_scored_in_float64() -> None:
    queries, documents = [torch.randn(5, 8).double()], [torch.randn(7, 8).double(), torch.randn(3, 8).double()]
    scores = cf.maxsim(queries, documents)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, reference.maxsim(queries, documents), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("chunk_elements", [1, 100, 5000, 10**9])
def test_chunks_change_nothing(backend: str, chunk_elements: int) -> None:
    queries = embeddings([3, 8, 1], 20)
    documents = planted(queries, embeddings([5, 17, 2, 40], 20))
    assert_scores(cf.maxsim(queries, documents, chunk_elements=chunk_elements, backend=backend), queries, documents)
    pairwise = cf.maxsim_pairwise(queries, documents[:3], chunk_elements=chunk_elements, backend=backend)
    assert_close(pairwise, reference.maxsim(queries, documents[:3]).diagonal())


def test_length_normalize_divides_by_the_tokens(backend: str) -> None:
    queries, documents = embeddings([3, 8, 0], 20), embeddings([5, 17, 4], 20)
    expected = reference.maxsim(queries, documents) / torch.tensor([[3.0], [8.0], [1.0]])
    assert_close(cf.maxsim(queries, documents, length_normalize=True, backend=backend), expected)
    pairwise = cf.maxsim_pairwise(queries, documents, length_normalize=True, backend=backend)
    assert_close(pairwise, expected.diagonal())
    padded, mask = laid_out("padded-holes", queries)
    assert_close(cf.maxsim(padded, documents, a_mask=mask, length_normalize=True, backend=backend), expected)
    zero_padded = torch.nn.utils.rnn.pad_sequence(queries, batch_first=True)
    assert_close(cf.maxsim(zero_padded, documents, length_normalize=True, backend=backend), expected)


def test_pairwise(backend: str) -> None:
    queries = embeddings([3, 8, 1, 32], 20)
    documents = planted(queries, embeddings([5, 17, 2, 40], 20))
    expected = reference.maxsim(queries, documents).diagonal()
    assert_close(cf.maxsim_pairwise(queries, documents, backend=backend), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pairs_in_any_order_with_repetition(backend: str, dtype: torch.dtype) -> None:
    queries = embeddings([3, 40, 1, 32], 33, dtype)
    documents = planted(queries, embeddings([5, 17, 0, 40, 13], 33, dtype))
    pairs = torch.tensor([[3, 4], [0, 0], [3, 3], [1, 2], [0, 4], [3, 4], [2, 1], [1, 0]])
    expected = reference.maxsim(queries, documents)[pairs[:, 0], pairs[:, 1]]
    with pytest.warns(UserWarning, match="without a token"):
        assert_close(cf.maxsim_pairs(queries, documents, pairs, backend=backend), expected)
    some = pairs[pairs[:, 1] != 2]
    assert_close(cf.maxsim_pairs(queries, documents, some.tolist(), backend=backend), expected[pairs[:, 1] != 2])
    assert_close(cf.maxsim_pairs(queries, documents, some.int().numpy(), backend=backend), expected[pairs[:, 1] != 2])


def test_no_pairs(backend: str) -> None:
    scores = cf.maxsim_pairs(torch.randn(2, 3, 4), torch.randn(2, 3, 4), [], backend=backend)
    assert scores.shape == (0,)


def test_scores_of_numpy_follow_the_queries() -> None:
    scores = cf.maxsim([np.ones((2, 3), dtype=np.float32)], [np.ones((1, 3), dtype=np.float32)])
    assert scores.device.type == "cpu"
    assert scores.tolist() == [[6.0]]
