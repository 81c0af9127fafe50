"""Mistakes that only the Triton kernels can make: tiles, pieces, the second loop, the argmax. In the interpreter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, EVERY, assert_close, assert_scores, embeddings, planted, score_argmax
from torch import Tensor

import colbert_fast as cf
from colbert_fast import packed, reference
from colbert_fast._backends import triton_, triton_tiles
from colbert_fast._backends.problem import Problem
from colbert_fast._backends.triton_tiles import Config

pytestmark = pytest.mark.skipif(
    not triton_.INTERPRETED, reason="needs TRITON_INTERPRET=1 from the start; tests/test_triton.py runs this file so"
)

SMALL = Config(block_q=32, block_d=16, warps=1, stages=2)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that replaces the tuning table by one configuration."""

    def use(config: Config, processors: int = 1) -> None:
        monkeypatch.setattr(triton_tiles, "config_for", lambda *_: config)
        monkeypatch.setattr(triton_, "_gpu", lambda _: triton_._Gpu("sm_90", 232448, processors))
        triton_._score_plan.cache_clear()
        triton_._grad_plan.cache_clear()

    yield use
    monkeypatch.undo()
    triton_._score_plan.cache_clear()
    triton_._grad_plan.cache_clear()


def problem(queries: list[Tensor], documents: list[Tensor], **changes: Any) -> Problem:
    q, d = cf.PackedTokens.from_list(queries), cf.PackedTokens.from_list(documents)
    sides = (q.tokens, q.starts, q.lengths, d.tokens, None, d.starts, d.lengths, None, q.max_length, d.max_length)
    return Problem(*sides, False, False, 2**24)._replace(**changes)


def test_pieces_are_summed_in_chains(tiles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """4096 equal dimensions in 256 pieces: if all products were one chain, the sum would have an error of 4e-6."""
    monkeypatch.setattr(triton_tiles, "k_split", lambda dim, most: (16, 0))
    tiles(SMALL)
    d = [value.expand(1, 4096) for value in torch.rand(8) * 3 + 0.1]
    q = [torch.full((1, 4096), 0.7)]
    expected = reference.maxsim(q, d)
    error = (triton_.score(problem(q, d)).scores.double() - expected).abs() / expected
    assert float(error.max()) < 1.5e-6


def assert_winners(p: Problem, queries: list[Tensor], documents: list[Tensor]) -> None:
    scores, argmax, _ = triton_.score_argmax(p)
    assert argmax is not None
    assert_scores(scores, queries, documents)
    assert_scores(triton_.score(p).scores, queries, documents)
    argmax = argmax.view(len(queries), len(documents), -1)
    for i, q in enumerate(queries):
        for j, d in enumerate(documents):
            assert torch.equal(argmax[i, j, : len(q)].long(), reference.maxsim_pair(q, d)[1])
            assert (argmax[i, j, len(q) :] == -1).all()


# Lengths of queries, whether a tile is swapped, and how many documents a program scores: each third value follows from
# the two others.
LENGTHS = {"one": [3], "full": [32], "packed": [20, 9, 0, 11, 1], "long": [40]}
TILES = [
    pytest.param(lq, swap, run, id=f"{run}-{'swap' if swap else ''}-{name}")
    for number, (name, lq) in enumerate(LENGTHS.items())
    for swap in (False, True)
    for run in (1, 4)
    if EVERY or (run == 1) == (swap == (number % 2 == 0))
]


@pytest.mark.parametrize(("lq", "swap", "run"), TILES)
def test_a_maximum_at_every_place_of_a_tile(tiles: Any, lq: list[int], swap: bool, run: int) -> None:
    """Tiles have 16 rows. One document is shorter, one is as long; in the others the last two tiles overlap, by 15, 1,
    15 and 14 rows. Each document has one winner, and every place is tried.
    """
    tiles(SMALL._replace(swap=swap, run=run))
    queries = embeddings(lq, 20)
    documents = []
    for length in (1, 16, 17, 31, 33, 50):
        for place in sorted({0, 1, 14, 15, 16, length - 17, length - 16, length - 2, length - 1} & set(range(length))):
            document = 0.3 * embeddings([length], 20)[0]
            document[place] = torch.cat(queries)[place % len(torch.cat(queries))]
            documents.append(document)
    assert_winners(problem(queries, documents), queries, documents)


def test_equal_tokens_in_two_tiles_and_in_their_overlap(tiles: Any) -> None:
    tiles(SMALL)
    q = torch.eye(8)[:3]
    for lq in (1, 3):
        for first, second in ((0, 39), (15, 16), (16, 24), (24, 31), (23, 39), (7, 23)):
            d = torch.zeros(40, 8)
            d[first], d[second] = 1.0, 1.0
            queries = [q[:lq]] * (20 if lq == 3 else 1)
            assert_winners(problem(queries, [d]), queries, [d])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queries", [[32], [40] * 7, [300]], ids=["short", "packed", "long"])
def test_tiles_of_the_table(queries: list[int], dtype: torch.dtype) -> None:
    q = embeddings(queries, 24, dtype)
    d = planted(q, embeddings([300, 64, 129, 7], 24, dtype))
    p = problem(q, d)
    assert_scores(triton_.score(p).scores, q, d)
    assert_scores(triton_.score_argmax(p).scores, q, d)


@pytest.mark.parametrize("lq", [[5], [9] * 8], ids=["short", "packed"])
@pytest.mark.parametrize(
    ("dim", "piece"), [(5, 512), (48, 512), (96, 64), (100, 32), (320, 512), (384, 64), (768, 512), (2560, 64)]
)
def test_dims_in_pieces(tiles: Any, dim: int, piece: int, lq: list[int]) -> None:
    tiles(SMALL._replace(piece=piece))
    queries = embeddings(lq, dim)
    documents = planted(queries, embeddings([37, 16, 3], dim))
    assert_scores(triton_.score(problem(queries, documents)).scores, queries, documents)
    zeros = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)  # rows of zeros are found in pieces, too
    a = -torch.stack(queries).abs()
    zeros.abs_()
    assert_scores(cf.maxsim(a, zeros, backend="triton"), list(a), [d.abs() for d in documents])


@pytest.mark.parametrize("lengths", [(9, 40), (40, 9), (1, 16), (33, 1)], ids=str)
def test_equal_lengths_need_not_be_read(tiles: Any, lengths: tuple[int, int]) -> None:
    tiles(SMALL._replace(run=4))
    queries = embeddings([lengths[0]] * 5, 16)
    documents = planted(queries, embeddings([lengths[1]] * 7, 16))
    p = problem(queries, documents)
    for side in ("q", "d"):
        p = p._replace(**{f"{side}_starts": None, f"{side}_lengths": None})
        assert_winners(p, queries, documents)
    pairs = torch.tensor([[4, 6], [0, 0], [4, 1]])
    scores = triton_.score(p._replace(pairs=pairs)).scores
    assert torch.equal(scores, triton_.score(p).scores[pairs[:, 0], pairs[:, 1]])


@pytest.mark.parametrize("lq", [2, 100], ids=["short", "long"])
def test_the_place_of_the_maximum_is_not_that_of_the_document_before(tiles: Any, lq: int) -> None:
    """No product is greater than -inf. So for a document of -inf the places must be reset and not only replaced."""
    tiles(SMALL._replace(run=4))
    queries = [torch.ones(lq, 4)]
    first = torch.rand(60, 4)
    first[55] = 2.0
    # A program scores every twelfth document.
    documents = [first] * 18 + [torch.full((50, 4), float("-inf"))] * 9 + [torch.full((9, 4), float("-inf"))] * 9
    argmax = triton_.score_argmax(problem(queries, documents)).argmax
    assert argmax is not None
    assert argmax.tolist() == [[55] * lq] * 18 + [[0] * lq] * 18


@pytest.mark.parametrize("values", [
    [3e-39, 2e-39, 3e-39], [-1e-44, 0.0, 0.0], [0.0, -3e-39, 0.0], [1e-30, 1e-30 * (1 + 2**-23), 1e-30],
    [-1.0 - 2**-23, -1.0, -1.0], [-3e38, 3e38, 3e38], [2.0**-96, 2.0**-96 + 2.0**-119, 2.0**-96 + 2.0**-119],
    [-math.inf, 5.0, -math.inf], [1.0, math.inf, math.inf], [-math.inf] * 3, [1.0, math.nan, math.inf],
], ids=str)  # fmt: skip
@pytest.mark.parametrize("lq", [2, 100], ids=["short", "long"])
def test_the_first_of_the_greatest_however_near(tiles: Any, lq: int, values: list[float]) -> None:
    """The numbers differ in their last bit, or by less than any normal number."""
    tiles(SMALL)
    for places in ([0, 1, 2], [3, 18, 36], [37, 17, 1], [15, 16, 31]):
        d = torch.full((40, 1), -math.inf)
        d[places] = torch.tensor(values)[:, None]
        argmax = triton_.score_argmax(problem([torch.ones(lq, 1)], [d])).argmax
        # The first NaN wins.
        expected = d[:, 0].argmax() if not d.isnan().any() else d[:, 0].isnan().int().argmax()
        assert argmax is not None and (argmax == expected).all(), (places, argmax[0, :3], expected)


@pytest.mark.parametrize("nq", [1, 5])
def test_queries_without_a_token_alone(nq: int) -> None:
    queries, documents = [torch.empty(0, 4)] * nq, embeddings([3, 70, 0], 4)
    scores = triton_.score(problem(queries, documents)).scores
    assert scores.tolist() == [[0.0, 0.0, -1e9]] * nq


@pytest.mark.parametrize("processors", [1, 10**6], ids=["several-documents", "one-document"])
def test_documents_in_turn(tiles: Any, processors: int) -> None:
    tiles(SMALL._replace(run=4), processors)
    queries = embeddings([9, 3, 0, 12, 7, 1, 12], 16)
    documents = planted(queries, embeddings([1, 40, 3, 16, 0, 0, 17, 64, 5, 33, 8], 16))
    assert_winners(problem(queries, documents), queries, documents)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """A list to which each launch of the score kernel adds the order that it was given."""
    orders: list[Tensor | None] = []
    launch = triton_._launch

    def spy(name: str, programs: int, tensors: tuple[Tensor | None, ...], *rest: Any) -> None:
        if name == "score_kernel":
            orders.append(tensors[ORDER])
        launch(name, programs, tensors, *rest)

    monkeypatch.setattr(triton_, "_launch", spy)
    return orders


ORDER = 8  # the index of the order among the tensors of the score kernel


@pytest.mark.parametrize("order", ["longest", "shortest", "any"])
@pytest.mark.parametrize("lq", [[5], [9, 3, 0, 12, 7, 1, 12], [40]], ids=["short", "packed", "long"])
def test_the_order_makes_no_bit_of_difference(tiles: Any, launched: Any, lq: list[int], order: str) -> None:
    """Eleven documents. With packed queries a program scores four of them, and the last program three."""
    tiles(SMALL._replace(run=4))
    queries = embeddings(lq, 16)
    documents = planted(queries, embeddings([1, 40, 3, 16, 0, 0, 17, 64, 5, 33, 8], 16))
    p = problem(queries, documents)
    by_length = p.d_lengths.argsort(descending=order == "longest", stable=True)
    numbers = torch.randperm(len(documents)) if order == "any" else by_length
    ordered = p._replace(d_order=numbers.to(torch.int32))
    plain = triton_.score_argmax(p)
    assert_scores(plain.scores, queries, documents)
    scored = triton_.score_argmax(ordered)
    assert plain.argmax is not None and scored.argmax is not None
    assert torch.equal(scored.scores, plain.scores) and torch.equal(scored.argmax, plain.argmax)
    assert torch.equal(triton_.score(ordered).scores, plain.scores)
    assert [found is not None for found in launched] == [False, True, True]


@pytest.mark.parametrize("processors", [1, 5, 6, 7, 10**6])
def test_the_order_is_left_where_it_cannot_matter(tiles: Any, launched: Any, processors: int) -> None:
    """Six programs on six processors all start at once."""
    tiles(SMALL, processors)
    p = problem(embeddings([5], 16), embeddings([3, 40, 7, 1, 9, 16], 16))
    p = p._replace(d_order=p.d_lengths.argsort(descending=True).to(torch.int32))
    triton_.score(p)
    assert [order is not None for order in launched] == [processors < 6]


def test_the_order_is_left_where_there_are_many_programs(tiles: Any, launched: Any) -> None:
    """With more than 256 programs for each processor, the time of the last program does not matter."""
    tiles(SMALL, 1)
    many = problem(embeddings([5], 16), embeddings([2] * 257, 16))
    order = torch.arange(257, dtype=torch.int32)
    triton_.score(many._replace(d_order=order))
    few = problem(embeddings([5], 16), embeddings([2] * 256, 16))
    triton_.score(few._replace(d_order=order[:256]))
    assert [order is not None for order in launched] == [False, True]


def test_pairs_are_taken_as_they_come(tiles: Any, launched: Any) -> None:
    tiles(SMALL)
    queries, documents = embeddings([5, 7], 16), embeddings([3, 40, 7], 16)
    pairs = torch.tensor([[0, 2], [1, 1], [1, 0], [0, 0]])
    p = problem(queries, documents, pairs=pairs, d_order=torch.tensor([1, 2, 0], dtype=torch.int32))
    expected = reference.maxsim(queries, documents)[pairs[:, 0], pairs[:, 1]]
    assert_close(triton_.score(p).scores, expected)
    assert launched == [None]


def test_prebuilt_documents_are_taken_longest_first(tiles: Any, launched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order goes from PackedTokens to the kernel, with and without gradients. Scores are right even if the user
    then changes the lengths in place.
    """
    tiles(SMALL)
    monkeypatch.setattr(packed, "_ORDERED_ON", ("cpu",))
    queries, documents = embeddings([5, 7], 16), embeddings([3, 40, 7, 0, 16], 16)
    q, d = cf.PackedTokens.from_list(queries), cf.PackedTokens.from_list(documents)
    with pytest.warns(UserWarning, match="a document without a token"):
        assert_close(cf.maxsim(q, d, backend="triton"), reference.maxsim(queries, documents))
        rows = d.tokens.clone().requires_grad_()
        cf.maxsim(q, d.with_tokens(rows), backend="triton").sum().backward()
        best = cf.topk(q, d, 2, backend="triton")[1]
    assert torch.equal(best, reference.maxsim(queries, documents).argsort(1, descending=True)[:, :2])
    assert [order is None or order.tolist() for order in launched] == [[1, 4, 2, 0, 3]] * 3
    assert rows.grad is not None and bool(rows.grad.any())
    d.lengths[1], d.lengths[3] = 2, 1
    d.starts[3] = 9
    assert_close(
        cf.maxsim(q, d, backend="triton"),
        reference.maxsim(queries, [documents[0], documents[1][:2], documents[2], d.tokens[9:10], documents[4]]),
    )
    cf.maxsim_pairs(q, d, [[0, 1]], backend="triton")
    assert launched[3] is not None and launched[4] is None


def test_empty_documents_in_parts_of_a_long_query(tiles: Any) -> None:
    tiles(SMALL)
    scores, argmax, empty = triton_.score_argmax(problem(embeddings([100], 8), embeddings([0, 4, 0], 8)))
    assert scores[0, [0, 2]].tolist() == [-1e9, -1e9] and argmax is not None and (argmax[[0, 2]] == -1).all()
    assert empty


INT8 = [
    pytest.param(dim, lq, dtype, id=f"{dim}-{name}-{dtype}")
    for i, dim in enumerate((16, 100, 128))
    for j, dtype in enumerate(DTYPES)
    for k, (name, lq) in enumerate({"short": [32], "packed": [17] * 9}.items())
    if EVERY or (i + j + k) % 2
]


@pytest.mark.parametrize(("dim", "lq", "dtype"), INT8)
def test_int8_documents(dim: int, lq: list[int], dtype: torch.dtype) -> None:
    """Scores equal float64 scores of the dequantised rows. Some rows have a negative scale or a scale of zero."""
    queries = embeddings(lq, dim, dtype)
    lengths = [70, 1, 64, 130, 12]
    rows = torch.randint(-128, 128, (sum(lengths), dim), dtype=torch.int8)
    scales = torch.rand(len(rows)) / 64
    scales[::7], scales[3] = -scales[::7], 0.0
    exact = list((rows.double() * scales.double()[:, None]).split(lengths))
    p = problem(queries, list(rows.float().split(lengths)), d_tokens=rows, d_scales=scales)
    expected = reference.maxsim([q.double() for q in queries], exact)
    assert_close(triton_.score(p).scores, expected)
    scores, argmax, _ = triton_.score_argmax(p)
    assert_close(scores, expected)
    assert argmax is not None
    grad_scores = torch.randn(argmax.shape[0])
    grad_q, grad_d = triton_.backward(p, grad_scores, argmax, True, False)
    assert grad_d is None and grad_q is not None
    total = torch.zeros(p.q_tokens.shape, dtype=torch.float64)
    for number, (i, j) in enumerate((i, j) for i in range(len(queries)) for j in range(len(exact))):
        rows_of_q = slice(int(p.q_starts[i]), int(p.q_starts[i] + p.q_lengths[i]))
        total[rows_of_q] += grad_scores[number].double() * exact[j][argmax[number].long()]
    assert_close(grad_q, total)


@pytest.mark.parametrize("tensor", ["pairs", "all"])
def test_gradients_from_an_int16_argmax(tiles: Any, tensor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA tensors get this argmax. Documents share rows, tiles begin inside items, and some rows have no item."""
    tiles(SMALL._replace(block_q=16))
    pairs = torch.tensor([[2, 0], [0, 3], [1, 1], [2, 0], [0, 0], [1, 2]]) if tensor == "pairs" else None
    q, rows = cf.PackedTokens.from_list(embeddings([20, 5, 33], 12)), torch.randn(70, 12)
    starts, lengths = torch.tensor([0, 10, 3, 40]), torch.tensor([18, 25, 30, 17])
    sides = (q.tokens, q.starts, q.lengths, rows, None, starts, lengths, pairs, 33, 30, False, False, 2**24)
    weight = torch.randn(12 if pairs is None else 6)
    expected_argmax = torch.ops.colbert_fast.score_argmax(*sides, "cpu")[1]
    expected = torch.ops.colbert_fast.backward(*sides, weight, expected_argmax, True, True, "cpu")
    monkeypatch.setattr(Problem, "argmax_dtype", property(lambda _: torch.int16))
    p = Problem(*sides)
    argmax = triton_.score_argmax(p).argmax
    assert argmax is not None and argmax.dtype == torch.int16
    assert torch.equal(argmax.int(), expected_argmax)
    for grad, expected_grad in zip(triton_.backward(p, weight, argmax, True, True), expected, strict=True):
        assert grad is not None
        assert_close(grad, expected_grad)


@pytest.mark.parametrize("lq", [[3, 0, 5], [16] * 5, [17, 9, 40, 70], [2] * 30], ids=str)
@pytest.mark.parametrize("pairs", [False, True])
def test_gradients_of_documents_from_several_chunks(
    tiles: Any, lq: list[int], pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of 16 query tokens holds pairs of several documents, or a part of one pair. Documents share rows."""
    monkeypatch.setattr(triton_, "LOG_CHUNK", 4)
    tiles(SMALL)
    queries = embeddings(lq, 8)
    p = problem(queries, embeddings([60], 8))
    starts, lengths = torch.tensor([30, 0, 10, 55, 12]), torch.tensor([30, 25, 25, 0, 1])
    p = p._replace(d_starts=starts, d_lengths=lengths, max_ld=30)
    numbers = None
    if pairs:
        numbers = torch.randint(0, 60, (40, 2)) % torch.tensor([len(lq), 3])  # the last two documents are in no pair
        p = p._replace(pairs=numbers)
    argmax = triton_.score_argmax(p).argmax
    assert argmax is not None
    weight = torch.randn(len(argmax))
    grad = triton_.backward(p, weight, argmax, False, True)[1]
    expected = torch.zeros(60, 8, dtype=torch.float64)
    for number, winners in enumerate(argmax):
        i, j = numbers[number].tolist() if numbers is not None else (number // 5, number % 5)
        for t, winner in enumerate(winners.tolist()):
            if winner >= 0:
                expected[starts[j] + winner] += weight[number] * queries[i][t]
    assert grad is not None
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lq", [3, 40], ids=["short", "long"])
def test_rows_that_lie_far_apart(tiles: Any, lq: int, tmp_path: Path) -> None:
    """From the first to the last row of a tile there are 15 strides, more than 2^31 elements. The file is sparse."""
    tiles(SMALL)
    stride = 2**28
    storage = torch.from_file(str(tmp_path / "rows"), shared=True, size=16 * stride + 8, dtype=torch.float16)
    documents = embeddings([17], 8, torch.float16)
    rows = storage.as_strided((17, 8), (stride, 1))
    rows.copy_(documents[0])
    queries = embeddings([lq], 8, torch.float16)
    p = problem(queries, documents)._replace(d_tokens=rows)
    assert_scores(triton_.score(p).scores, queries, documents)


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
def test_an_infinite_token_has_a_gradient_only_where_it_won(poison: float) -> None:
    """In a product of matrices, 0 * inf = NaN would reach every row."""
    q, d = embeddings([6, 9], 8), embeddings([20, 5], 8)
    d = [x.abs() for x in d]
    q[0][2] = poison
    p = problem(q, d)
    argmax = triton_.score_argmax(p).argmax
    assert argmax is not None
    weight = torch.tensor([1.0, math.inf, 2.0, 3.0])
    grad = triton_.backward(p, weight, argmax, False, True)[1]
    expected = torch.zeros(25, 8)
    for number, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        for t in range(len(q[i])):
            expected[20 * j + argmax[number, t]] += weight[number] * q[i][t]
    torch.testing.assert_close(grad, expected, equal_nan=True)
    assert (expected == 0).any()


def test_rows_beyond_two_to_the_31_elements(tmp_path: Path) -> None:
    """In 32 bits, the number of a row times the size of a row would be negative, or lead to another row."""
    dim, first = 64, 2**31 // 64 + 7
    file = np.memmap(tmp_path / "sparse", dtype=np.float16, mode="w+", shape=(first + 40, dim))
    rows = torch.from_numpy(file)
    document, query = embeddings([37, 20], dim, torch.float16)
    rows[first : first + 37] = planted([query], [document])[0]
    far = cf.PackedTokens(rows, torch.tensor([first, 0]), torch.tensor([37, 3]))
    near = [rows[first : first + 37].clone(), rows[:3].clone()]
    scores, argmax = score_argmax("triton", [query], far)
    expected = score_argmax("triton", [query], near)
    assert torch.equal(scores, expected[0]) and torch.equal(argmax, expected[1])
    assert_scores(scores, [query], near)
    assert torch.equal(cf.maxsim(far, [query], backend="triton"), cf.maxsim(near, [query], backend="triton"))
