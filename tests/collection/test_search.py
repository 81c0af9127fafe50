"""A certified search finds what float64 finds on every document, whatever the documents are."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from cases import embeddings
from in_memory import CODES, Snapshot, assert_exact, brute_force, codes_of, float64_scores, snapshot
from torch import Tensor

from colbert_fast import PackedTokens, _backends
from colbert_fast._backends import BACKENDS
from colbert_fast._codecs import decoded
from colbert_fast.collection import search, streaming
from colbert_fast.collection.search import SearchResult, recall, topk

CERTIFIED = ["int8", "int4+4", "int4"]
Data = tuple[list[Tensor], list[Tensor]]


def random_data(dim: int, lengths: Sequence[int] = (3, 12, 7, 1, 9) * 12, scale: float = 1) -> Data:
    queries = embeddings([5, 1, 8], dim)
    return queries, [x * scale for x in embeddings(lengths, dim)]


def near_ties(dim: int) -> Data:
    """Documents around the k-th place whose scores differ by less than float32 can tell."""
    queries, items = random_data(dim)
    best = torch.cat(queries)
    for i in range(0, len(items), 2):
        items[i] = best.clone()
        items[i][0, i % dim] += 1e-7 * (i % 7 - 3)
    return queries, items


def repeated(dim: int) -> Data:
    queries, items = random_data(dim)
    return queries, [items[i % 7].clone() for i in range(60)]


def planted(dim: int) -> Data:
    queries, items = random_data(dim)
    for i in range(5, 60, 6):
        items[i] = torch.cat([items[i], queries[i % 3][:1], queries[i % 2][-1:]])
    return queries, items


def zeros_and_empty(dim: int) -> Data:
    queries, items = random_data(dim)
    for i in range(0, 60, 3):
        items[i] = items[i] * 0
        items[i + 1] = items[i + 1][:0] if i % 2 else torch.cat([items[i + 1], torch.zeros(1, dim)])
    return [*queries, torch.zeros(4, dim), torch.zeros(0, dim)], items


def wild(dim: int) -> Data:
    queries, items = random_data(dim)
    scales = 10.0 ** torch.arange(-20, 21, 4)
    for i, item in enumerate(items):
        items[i] = item * scales[(i + torch.arange(len(item))) % len(scales)].unsqueeze(1)
    return [*queries, queries[0] * 1e-20, queries[2] * 1e20, torch.cat([queries[0] * 1e-20, queries[1] * 1e20])], items


def opposite(dim: int) -> Data:
    """All scores below 0."""
    queries, items = random_data(dim)
    away = torch.cat(queries).sum(0)
    return queries, [-(away + 0.3 * x) for x in items]


DATA = [near_ties, repeated, planted, zeros_and_empty, wild, opposite]


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("data", DATA, ids=lambda data: data.__name__)
@pytest.mark.parametrize("dim", [2, 31])
def test_adversarial_data_is_searched_as_by_float64(data: Callable[[int], Data], codes: str, dim: int) -> None:
    queries, items = data(dim)
    result = topk(snapshot(items, codes, cuts=[21, 40], gone=[4, 25]), queries, 10)
    assert_exact(result, queries, items, 10, gone=[4, 25])
    assert result.certified
    assert ((result.read >= 10) & (result.read <= 58)).all()


@pytest.mark.parametrize("codes", CERTIFIED)
@pytest.mark.parametrize("dim", [1, 2, 3, 31, 64, 96, 128, 130, 384, 1024])
def test_every_dim(codes: str, dim: int) -> None:
    queries, items = random_data(dim)
    assert_exact(topk(snapshot(items, codes), queries, 10), queries, items, 10)


@pytest.mark.parametrize("codes", CERTIFIED)
def test_the_largest_numbers_and_an_empty_query(codes: str) -> None:
    queries, items = [torch.zeros(0, 128), torch.ones(1, 128) * 1e-36], random_data(128)[1]
    items[3] = torch.full((2, 128), 3e38)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_exact(topk(snapshot(items, codes), queries, 10), queries, items, 10)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("count", [1, 60])
def test_scores_below_the_normal_numbers_of_float32(codes: str, exact: bool, count: int) -> None:
    queries, items = random_data(100, [9] * count)
    queries = [q * 1e-39 for q in queries]
    items = [x * 1e-3 for x in items]
    source = snapshot(items, codes, exact=exact)
    with np.errstate(all="raise"):
        result = topk(source, queries, min(10, count))
    if not exact:
        items = [x.clone() for x in decoded(source.segments[0].codes[-1]).split([len(x) for x in items])]
    for i, query in enumerate(queries):
        best = brute_force(query, items, 10)
        assert result.ids[i] == [name for _, name in best]
        # To the last bit: no number of float32 is nearer.
        assert torch.equal(result.scores[i], torch.tensor([score for score, _ in best], dtype=torch.float64).float())


@pytest.mark.parametrize("codes", CERTIFIED)
@pytest.mark.parametrize("k", [1, 59, 60, 61, 1030])
def test_every_k(codes: str, k: int) -> None:
    queries, items = near_ties(16)
    scores, ids = topk(snapshot(items, codes, cuts=[30]), queries, k)
    width = min(k, 1024)  # as in cf.topk: a large k gives no more columns than documents, but at least 1024
    assert scores.shape == (3, width)
    filled = SearchResult(scores[:, :60], [row[:60] for row in ids], certified=True, read=scores)
    assert_exact(filled, queries, items, min(k, 60))
    assert all(name is None for row in ids for name in row[60:])
    assert (scores[:, 60:] == -torch.inf).all()


@pytest.mark.parametrize("codes", CERTIFIED)
def test_many_documents_are_left_out(codes: str) -> None:
    queries, items = random_data(64, [6] * 800)
    for i in range(10):  # clear winners
        items[71 * i] = torch.cat([items[71 * i], torch.cat(queries) * (1 - 0.02 * i)])
    result = topk(snapshot(items, codes, cuts=[500]), queries, 10)
    assert_exact(result, queries, items, 10)
    assert (result.read == 15).all()  # those of the first round


@pytest.mark.parametrize("codes", CODES)
def test_a_batch_is_searched_as_its_queries_alone(codes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, items = near_ties(24)
    source = snapshot(items, codes)
    scores, ids = together = topk(source, queries, 7)
    for i, query in enumerate(queries):
        alone = topk(source, query, 7)
        assert torch.equal(alone[0], scores[i : i + 1])
        assert alone[1] == [ids[i]]
        assert torch.equal(alone.read, together.read[i : i + 1])
    monkeypatch.setattr(search, "_PAIRS_AT_ONCE", 130)  # blocks of two queries
    monkeypatch.setattr(search, "_PAIRS_OF_ROUND", 5)
    in_blocks = topk(source, queries, 7)
    assert torch.equal(in_blocks[0], scores)
    assert in_blocks[1] == ids


@pytest.mark.parametrize("codes", CERTIFIED)
def test_every_backend_and_number_of_threads_finds_the_same(
    codes: str, backend: str, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, items = near_ties(33)
    source = snapshot(items, codes, cuts=[11])
    (chosen,) = (b for b in BACKENDS if b.name == backend)
    device = None if chosen.device == "cpu" else chosen.device
    if device is not None:  # the fixture's backend would get the codes in CPU memory
        monkeypatch.setattr(_backends, "BACKENDS", BACKENDS)
        _backends._select.cache_clear()
    for number in (1, 2, 5):
        threads(number)
        assert_exact(topk(source, queries, 10, backend=backend, device=device), queries, items, 10)


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("codes", CODES)
def test_a_filter_may_leave_no_document_or_one(codes: str, left: int) -> None:
    queries, items = random_data(8)
    gone = [i for i in range(60) if i != 33 or not left]
    result = topk(snapshot(items, codes, cuts=[20, 40], gone=gone), queries, 3)
    assert_exact(result, queries, items, 3, gone=gone)
    assert result.read.tolist() == [left] * 3
    assert topk(snapshot(items, codes, gone=gone), queries, 3, candidates=5)[1] == result[1]


def test_a_snapshot_without_segments_has_no_document() -> None:
    scores, ids = topk(Snapshot([]), torch.ones(2, 3, 4), 2)
    assert scores.tolist() == [[-torch.inf] * 2] * 2
    assert ids == [[None] * 2] * 2


LAYOUTS: dict[str, Callable[[list[Tensor]], Any]] = {
    "list": lambda queries: queries,
    "float64": lambda queries: [q.double() for q in queries],
    "half": lambda queries: [q.half() for q in queries],
    "arrays": lambda queries: [q.numpy() for q in queries],
    "packed": PackedTokens.from_list,
    "part": lambda queries: PackedTokens.from_list([*queries, queries[0]])[:3],
    "gaps": lambda queries: PackedTokens(
        torch.cat([torch.full((1, 12), torch.nan), *queries]), torch.tensor([1, 6, 7]), torch.tensor([5, 1, 8])
    ),
    "padded": lambda queries: torch.nn.utils.rnn.pad_sequence(queries, batch_first=True),
    "nested": lambda queries: torch.nested.nested_tensor(queries, layout=torch.jagged),
    "graph": lambda queries: [q.clone().requires_grad_() for q in queries],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_queries_come_in_every_layout(layout: str) -> None:
    queries, items = random_data(12)
    if layout == "half":
        queries = [q.half().float() for q in queries]
    result = topk(snapshot(items, "int8"), LAYOUTS[layout](queries), 5)
    assert_exact(result, queries, items, 5)
    assert not result.scores.requires_grad


def test_one_matrix_is_one_query_and_no_query_finds_nothing() -> None:
    queries, items = random_data(12)
    source = snapshot(items, "int8")
    assert_exact(topk(source, queries[0], 5), queries[:1], items, 5)
    for none in ([], torch.empty(0, 4, 12)):
        scores, ids = result = topk(source, none, 5)
        assert (scores.shape, ids, result.certified) == ((0, 5), [], True)


@pytest.mark.parametrize("codes", CODES)
def test_candidates_are_rescored_and_not_certified(codes: str) -> None:
    queries, items = near_ties(16)
    source = snapshot(items, codes, cuts=[30])
    everything = topk(source, queries, 5, candidates=60)
    assert_exact(everything, queries, items, 5)
    assert not everything.certified
    some = topk(source, queries, 5, candidates=9)
    assert some.read.tolist() == [9, 9, 9]
    for query, scores, ids in zip(queries, *some, strict=True):
        expected = torch.tensor(float64_scores(query, [items[int(str(name)[1:])] for name in ids]))
        torch.testing.assert_close(scores, expected.float(), rtol=1e-5, atol=1e-5)
        assert (scores[:-1] >= scores[1:]).all()


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("candidates", [None, 60])
@pytest.mark.parametrize("data", [random_data, near_ties])
def test_without_exact_tokens_codes_are_ranked(codes: str, data: Any, candidates: int | None) -> None:
    queries, items = data(32)
    items[8] = items[8][:0]
    source = snapshot(items, codes, exact=False, cuts=[30])
    result = topk(source, queries, 5, candidates=candidates)
    assert result.certified == (candidates is None)
    rows = [
        decoded(segment.codes[-1])[start : start + length]
        for segment in source.segments
        for start, length in zip(segment.codes[-1].starts, segment.codes[-1].lengths, strict=True)
    ]
    assert_exact(result, queries, rows, 5)


def test_recall_counts_documents_that_are_as_good() -> None:
    queries, items = random_data(32, [5] * 100)
    assert recall(snapshot(items, "int8"), queries, 10, 30) == 1
    low = snapshot(items, "int1")
    true = [set(ids) for ids in topk(low, queries, 10)[1]]
    found = [set(ids) for ids in topk(low, queries, 10, candidates=30)[1]]
    share = sum(len(a & b) for a, b in zip(true, found, strict=True)) / 30
    assert 0.2 < share < 0.9
    assert recall(low, queries, 10, 30) == pytest.approx(share)
    # All documents are the same, so every document is one of the best.
    same = snapshot([items[0]] * 40, "int1")
    same.segments[0].codes = codes_of([items[0] * (1 + 1e-3 * i) for i in range(40)], "int1")
    assert not set(topk(same, queries, 3, candidates=3)[1][0]) & {"d0", "d1", "d2"}
    assert recall(same, queries, 3, 3) == 1


def test_recall_of_few_documents_and_of_none() -> None:
    queries, items = random_data(8, [3, 3])
    assert recall(snapshot(items, "int1"), queries, 10, 10) == 1
    assert recall(snapshot(items, "int1", gone=[0, 1]), queries, 10, 10) == 1
    with pytest.raises(ValueError, match="at least one query"):
        recall(snapshot(items, "int1"), [], 10, 10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be 1 or more; got 0"),
        ({"k": 2.5}, TypeError, "k must be an int"),
        ({"candidates": 4}, ValueError, "candidates must be k or more; got candidates=4 and k=5"),
        ({"candidates": "all"}, TypeError, "candidates must be an int"),
        ({"queries": torch.ones(1, 2, 9)}, ValueError, r"the same dim; got queries \[\*, 9\] and documents \[\*, 8\]"),
        ({"queries": torch.tensor([[1.0] * 8, [torch.nan] * 8])}, ValueError, "query 0 has a NaN"),
        ({"queries": [torch.ones(2, 8), torch.full((1, 8), torch.inf)]}, ValueError, "query 1 has a NaN or an inf"),
        ({"queries": torch.full((1, 8), 1e300, dtype=torch.float64)}, ValueError, "must be finite in float32"),
        ({"queries": PackedTokens.from_padded(torch.ones(1, 2, 8)).quantize()}, TypeError, "must be floating point"),
        ({"queries": torch.ones(2, 8, device="meta")}, ValueError, "queries must have memory"),
        ({"queries": "text"}, TypeError, "queries must be"),
        ({"backend": "abacus"}, ValueError, "no backend is called 'abacus'"),
        ({"device": "abacus"}, ValueError, "device must be one that torch can use here; got abacus"),
    ],
)
@pytest.mark.parametrize("call", [topk, recall], ids=["topk", "recall"])
def test_bad_arguments_are_refused(call: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    queries, items = random_data(8)
    given = {"queries": queries, "k": 5, "candidates": 9, **arguments}
    with pytest.raises(error, match=message):
        call(snapshot(items, "int8"), **given)


@pytest.mark.parametrize("codes", CERTIFIED)
def test_codes_that_are_streamed_to_a_device_find_the_same(codes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, items = near_ties(16)
    source = snapshot(items, codes, cuts=[30], gone=[3, 44])
    monkeypatch.setattr(search, "_device", torch.device)  # else the CPU is no device to stream to
    monkeypatch.setattr(streaming, "_SLOT_BYTES", 500)
    assert_exact(topk(source, queries, 10, device="cpu", backend="torch"), queries, items, 10, gone=[3, 44])
    assert recall(source, queries, 10, 58, device="cpu") == 1


@pytest.mark.cuda
@pytest.mark.parametrize("codes", CODES)
def test_a_gpu_finds_the_same(codes: str) -> None:
    queries, items = near_ties(128)
    result = topk(snapshot(items, codes, cuts=[30], gone=[3, 44]), queries, 10, device="cuda")
    assert_exact(result, queries, items, 10, gone=[3, 44])


@pytest.mark.cuda
def test_a_backend_of_another_device_is_refused() -> None:
    queries, items = random_data(8)
    with pytest.raises(NotImplementedError, match="triton: takes tensors on cuda only"):
        topk(snapshot(items, "int8"), queries, 5, backend="triton")
    with pytest.raises(NotImplementedError, match="takes tensors on cpu only"):
        topk(snapshot(items, "int8"), queries, 5, backend="cpu", device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_refused() -> None:
    queries, items = random_data(8)
    with pytest.raises(ValueError, match="device must be one that torch can use here; got cuda: "):
        topk(snapshot(items, "int8"), queries, 5, device="cuda")
    with pytest.raises(ValueError, match="device must have memory; got 'meta'"):
        topk(snapshot(items, "int8"), queries, 5, device="meta")


def test_a_result_is_a_tuple_and_says_how_it_was_found() -> None:
    queries, items = random_data(8)
    result = topk(snapshot(items, "int8"), queries, 2)
    scores, ids = result
    assert result == (scores, ids)
    assert (result.scores, result.ids) == (scores, ids)
    assert result.read.dtype == torch.int64
    lines = repr(result).splitlines()
    assert lines[0].startswith("SearchResult(3 queries, 2 columns, certified, ")
    assert lines[1] == f"  query 0: '{ids[0][0]}' {scores[0][0]:.4f}, '{ids[0][1]}' {scores[0][1]:.4f}"
    assert "approximate" in repr(topk(snapshot(items, "int8"), queries, 2, candidates=2))
    assert "no document" in repr(topk(Snapshot([]), queries, 2))
    again = pickle.loads(pickle.dumps(result))
    assert torch.equal(again.scores, scores)
    assert (again.ids, again.certified, again.read.tolist()) == (ids, True, result.read.tolist())
