"""Which document token won each query token, in the positions of the caller's own rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, SHAPES, assert_close, embeddings, planted
from torch import Tensor

import colbert_fast as cf
from colbert_fast import reference
from colbert_fast._argmax import joined
from colbert_fast._maxsim import parts_of
from colbert_fast._scoring import score_with_argmax

LAYOUTS = ["list", "list-mask", "numpy", "packed", "part", "nested", "zero-rows", "mask-left", "mask-holes"]


def laid_out(layout: str, items: list[Tensor]) -> tuple[Any, Any, list[Tensor]]:
    """Return the same items in a layout, its mask or None, and the row of every token."""
    whole = [torch.arange(len(item)) for item in items]
    if layout in ("list", "numpy"):
        return [item.numpy() if layout == "numpy" else item for item in items], None, whole
    if layout == "packed":
        return cf.PackedTokens.from_list(items), None, whole
    if layout == "part":  # beside a longer item
        longer = torch.randn(max(map(len, items)) + 5, items[0].shape[1])
        return cf.PackedTokens.from_list([longer, *items])[1:], None, whole
    if layout == "nested":
        return torch.nested.nested_tensor(items, layout=torch.jagged), None, whole
    longest = max(len(item) for item in items) + 3
    padding = 0.0 if layout == "zero-rows" else float("nan")
    padded = torch.full((len(items), longest, items[0].shape[1]), padding)
    rows = []
    for i, item in enumerate(items):
        holes = layout != "mask-left"
        where = torch.randperm(longest)[: len(item)].sort().values if holes else torch.arange(longest)[-len(item) :]
        padded[i, where] = item
        rows.append(where)
    mask = torch.zeros(padded.shape[:2], dtype=torch.bool)
    for i, where in enumerate(rows):
        mask[i, where] = True
    if layout == "list-mask":
        cut = [slice(int(where.max()) + 1) for where in rows]
        return [padded[i, some] for i, some in enumerate(cut)], [mask[i, some] for i, some in enumerate(cut)], rows
    return padded, None if layout == "zero-rows" else mask, rows


def whole_numbers(lengths: list[int]) -> list[Tensor]:
    """Embeddings whose products are exact, with many equal products."""
    return [torch.randint(-1, 2, (length, 6)).float() + torch.eye(6)[0] * 3 for length in lengths]


def expected_argmax(
    queries: list[Tensor], documents: list[Tensor], q_rows: list[Tensor], d_rows: list[Tensor], length: int
) -> Tensor:
    argmax = torch.full((len(queries), len(documents), length), -1)
    for i, q in enumerate(queries):
        for j, d in enumerate(documents):
            if len(d):
                argmax[i, j, q_rows[i]] = d_rows[j][reference.maxsim_pair(q, d)[1]]
    return argmax


def assert_same_scores(backend: str, actual: Tensor, expected: Tensor) -> None:
    """A GPU may add in another order when it keeps the winners."""
    if backend == "triton":
        assert_close(actual, expected)
    else:
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("lq", "ld", "dim"), SHAPES[1:9])
def test_scores_and_winners(backend: str, lq: list[int], ld: list[int], dim: int, dtype: torch.dtype) -> None:
    queries = embeddings(lq, dim, dtype)
    documents = planted(queries, embeddings(ld, dim, dtype))
    scores, argmax = cf.maxsim_with_argmax(queries, documents, backend=backend)
    assert_same_scores(backend, scores, cf.maxsim(queries, documents, backend=backend))
    assert argmax.dtype == torch.int64 and argmax.shape == (len(lq), len(ld), max(lq))
    for i, q in enumerate(queries):
        for j, d in enumerate(documents):
            assert (argmax[i, j, len(q) :] == -1).all()
            products = q.double() @ d.double().T
            won = products.gather(1, argmax[i, j, : len(q), None])
            assert_close(won.squeeze(1), products.amax(1))


@pytest.mark.parametrize("row", [0, 11, 12, 49])
def test_a_planted_maximum(backend: str, row: int) -> None:
    (q,), (d,) = embeddings([32], 128), embeddings([50], 128)
    d[row] = 3 * q[17]
    assert cf.maxsim_with_argmax([q], [d], backend=backend)[1][0, 0, 17] == row


@pytest.mark.parametrize("b_layout", LAYOUTS)
@pytest.mark.parametrize("a_layout", LAYOUTS)
def test_positions_are_rows_of_the_input(a_layout: str, b_layout: str) -> None:
    queries, documents = whole_numbers([3, 8, 1]), whole_numbers([5, 17, 2, 40])
    (a, a_mask, a_rows), (b, b_mask, b_rows) = laid_out(a_layout, queries), laid_out(b_layout, documents)
    scores, argmax = cf.maxsim_with_argmax(a, b, a_mask, b_mask)
    assert torch.equal(scores, cf.maxsim(a, b, a_mask, b_mask))
    length = a.shape[1] if isinstance(a, Tensor) and not a.is_nested else max(int(r.max()) + 1 for r in a_rows)
    expected = expected_argmax(queries, documents, a_rows, b_rows, length)
    assert torch.equal(argmax, expected)
    pairs = torch.tensor([[2, 3], [0, 0], [1, 3], [1, 3]])
    some, won = cf.maxsim_with_argmax(a, b, a_mask, b_mask, pairs=pairs)
    assert_close(some, scores[pairs[:, 0], pairs[:, 1]])
    assert torch.equal(won, expected[pairs[:, 0], pairs[:, 1]])


def test_masks_on_every_backend(backend: str) -> None:
    queries, documents = whole_numbers([3, 8, 1]), whole_numbers([5, 17, 2, 40])
    for layout in ("zero-rows", "mask-holes"):
        (a, a_mask, a_rows), (b, b_mask, b_rows) = laid_out(layout, queries), laid_out(layout, documents)
        scores, argmax = cf.maxsim_with_argmax(a, b, a_mask, b_mask, backend=backend)
        assert_same_scores(backend, scores, cf.maxsim(a, b, a_mask, b_mask, backend=backend))
        assert torch.equal(argmax, expected_argmax(queries, documents, a_rows, b_rows, a.shape[1]))


def test_the_first_of_equals_wins(backend: str) -> None:
    """In rows of the input: the first of equal rows is not the first row."""
    token = torch.ones(1, 24)
    padded = torch.zeros(1, 60, 24)
    padded[0, 7:] = token
    mask = torch.ones(1, 60)
    mask[0, :9] = 0
    for b, b_mask, first in (([token.expand(50, 24)], None, 0), (padded, None, 7), (padded, mask, 9)):
        assert (cf.maxsim_with_argmax([token], b, None, b_mask, backend=backend)[1] == first).all()


def test_nothing_to_win(backend: str) -> None:
    a, b = torch.randn(2, 4, 8), torch.randn(3, 5, 8)
    a_mask, b_mask = torch.ones(2, 4), torch.ones(3, 5)
    a_mask[1], b_mask[0] = 0, 0
    with pytest.warns(UserWarning, match="without a token"):
        scores, argmax = cf.maxsim_with_argmax(a, b, a_mask, b_mask, backend=backend)
    assert (scores[:, 0] == -1e9).all() and (scores[1, 1:] == 0).all()
    assert (argmax[:, 0] == -1).all() and (argmax[1] == -1).all() and (argmax[0, 1:] >= 0).all()
    for x, y, shape in (
        ([], [torch.randn(3, 8)], (0, 1, 0)),
        ([torch.randn(3, 8)], [], (1, 0, 3)),
        (torch.zeros(0, 4, 8), b, (0, 3, 4)),
        (a, torch.zeros(0, 5, 8), (2, 0, 4)),
        (torch.zeros(2, 0, 8), b, (2, 3, 0)),
        ([], [], (0, 0, 0)),
    ):
        scores, argmax = cf.maxsim_with_argmax(x, y, backend=backend)
        assert scores.shape == shape[:2] and argmax.shape == shape and argmax.dtype == torch.int64
    with pytest.warns(UserWarning, match="without a token"):
        assert (cf.maxsim_with_argmax(a, torch.zeros(1, 0, 8), None, torch.zeros(1, 0))[1] == -1).all()
    for pairs in ([], torch.zeros(0, 2, dtype=torch.int64)):
        scores, argmax = cf.maxsim_with_argmax(a, b, a_mask, b_mask, pairs=pairs)
        assert scores.shape == (0,) and argmax.shape == (0, 4)


def test_one_matrix_and_int8(backend: str) -> None:
    (q,), (d,) = embeddings([6], 16), embeddings([30], 16)
    d[12] = 2 * q[3]
    keep = torch.ones(30)
    keep[:5] = 0
    int8 = cf.PackedTokens.from_list([d]).quantize()
    for b, b_mask in ((d, None), (d, keep), (d.numpy(), keep.numpy()), (int8, None)):
        scores, argmax = cf.maxsim_with_argmax(q, b, None, b_mask, backend=backend)
        assert argmax.shape == (1, 1, 6) and argmax[0, 0, 3] == 12
        assert_same_scores(backend, scores, cf.maxsim(q, b, None, b_mask, backend=backend))


def test_zero_rows_as_tokens(backend: str) -> None:
    a, b = torch.ones(1, 2, 4), -torch.ones(2, 9, 4)
    b[0, 3] = 0
    a[0, 1] = 0
    assert cf.maxsim_with_argmax(a, b, backend=backend)[1].tolist() == [[[0, -1], [0, -1]]]
    assert cf.maxsim_with_argmax(a, b, pad="zero", backend=backend)[1].tolist() == [[[3, -1], [0, -1]]]


def test_gradients_are_those_of_maxsim(backend: str) -> None:
    a, b = torch.randn(3, 6, 16), torch.randn(4, 20, 16)
    mask = torch.rand(4, 20) < 0.7
    grads = []
    for call in (cf.maxsim_with_argmax, cf.maxsim):
        sides = [side.clone().requires_grad_() for side in (a, b)]
        result = call(*sides, None, mask, backend=backend)
        scores = result[0] if isinstance(result, tuple) else result
        (scores * torch.arange(12.0).view(3, 4)).sum().backward()
        grads.append([side.grad for side in sides])
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(ours, theirs)
    argmax = cf.maxsim_with_argmax(a.clone().requires_grad_(), b)[1]
    assert not argmax.requires_grad
    with torch.no_grad():
        assert not cf.maxsim_with_argmax(a.clone().requires_grad_(), b)[0].requires_grad


def test_float64(extension: str) -> None:
    a, b = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(4, 6, 5)
    scores, argmax = cf.maxsim_with_argmax(a, b)
    assert scores.dtype == torch.float64
    products = torch.einsum("aid,bjd->abij", a, b.double())
    assert torch.equal(argmax, products.argmax(-1)) and torch.equal(scores, cf.maxsim(a, b))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles() -> None:
    a, b = torch.randn(2, 5, 8), torch.randn(3, 9, 8)
    masks = torch.rand(2, 5) < 0.7, torch.rand(3, 9) < 0.7
    masks[1][:, 2] = True
    pairs = torch.tensor([[0, 2], [1, 1]])

    def both(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return *cf.maxsim_with_argmax(a, b, *masks), *cf.maxsim_with_argmax(a, b, pairs=pairs)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for sides in ((a, b), (a.requires_grad_(), b.requires_grad_())):
        for actual, expected in zip(compiled(*sides), both(*sides), strict=True):
            torch.testing.assert_close(actual, expected)
    torch.autograd.grad(compiled(a, b)[0].sum(), (a, b))


def test_another_device() -> None:
    """Documents that are not on the device are scored in parts, and the positions do not depend on the parts."""
    a, b = torch.randn(2, 5, 8), torch.randn(3, 9, 8)
    assert cf.maxsim_with_argmax(a.to("meta"), b.to("meta"), device="meta")[1].shape == (2, 3, 5)
    q, d = cf.PackedTokens.from_padded(a), cf.PackedTokens.from_padded(b)
    each = [score_with_argmax(q, part, None, (False, False), None) for part in parts_of(d, 150)]
    assert len(each) == 2
    for whole, parts in zip(cf.maxsim_with_argmax(q, d), joined(each, 5, q.device), strict=True):
        assert torch.equal(whole, parts)


def test_errors() -> None:
    a, b = torch.randn(2, 5, 8), torch.randn(3, 9, 8)
    with pytest.raises(ValueError, match="b_mask must be"):
        cf.maxsim_with_argmax(a, b, None, torch.ones(3, 8))
    with pytest.raises(ValueError, match="pairs must number queries from 0 to 1; got the number 2"):
        cf.maxsim_with_argmax(a, b, pairs=[[2, 0]])
    with pytest.raises(TypeError, match="pairs"):
        cf.maxsim_with_argmax(a, b, pairs=[[0.5, 0]])
    with pytest.raises(ValueError, match="pad must be"):
        cf.maxsim_with_argmax(a, b, pad="none")
    with pytest.raises(ValueError, match="no backend is called"):
        cf.maxsim_with_argmax(a, b, backend="none")
    with pytest.raises(TypeError, match="a must be"):
        cf.maxsim_with_argmax(None, b)


def test_numpy_arrays_go_to_the_queries() -> None:
    b = np.random.default_rng(0).standard_normal((3, 9, 8), dtype=np.float32)
    scores, argmax = cf.maxsim_with_argmax(torch.randn(2, 5, 8), b)
    assert scores.device == argmax.device == torch.device("cpu")


@pytest.mark.filterwarnings("ignore:a document without a token")
@pytest.mark.parametrize("kept", [[[0]], [[2], [0, 1]], [[], [3]], [[], []]])
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_list_whose_mask_keeps_fewer_rows_than_the_longest_item_has(side: str, kept: list[list[int]]) -> None:
    items = [torch.randn(5, 3) for _ in kept]
    mask = torch.zeros(len(kept), 5, dtype=torch.bool)
    for row, places in zip(mask, kept, strict=True):
        row[places] = True
    other = [torch.randn(4, 3)]
    sides: dict[str, Any] = {"a": other, "b": other, side: items, f"{side}_mask": mask}
    padded = {**sides, side: torch.stack(items)}
    scores, argmax = cf.maxsim_with_argmax(**sides)
    expected, winners = cf.maxsim_with_argmax(**padded)
    assert torch.equal(scores, expected)
    assert torch.equal(argmax, winners)
    assert torch.equal(cf.maxsim(**sides), expected)
    leaves = [item.clone().requires_grad_() for item in items]
    cf.maxsim(**{**sides, side: leaves}).sum().backward()
    for leaf, row in zip(leaves, mask, strict=True):
        assert leaf.grad is not None
        assert not leaf.grad[~row].any()
