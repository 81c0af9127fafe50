"""int8 documents with one scale per token: what they stand for, their scores, and their errors."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases import DTYPES, SHAPES, TOLERANCE, assert_close, embeddings, planted, score_argmax
from torch import Tensor

import colbert_fast as cf
from colbert_fast import PackedTokens, _int8, reference
from colbert_fast._maxsim import parts_of

INF, NAN = math.inf, math.nan


def values(documents: PackedTokens) -> list[Tensor]:
    """Return what int8 documents stand for, exactly: a product of 8 and 24 bits fits float64."""
    return list(documents.to(dtype=torch.float64))


def made(rows: Sequence[Sequence[int]], scales: Sequence[float], lengths: Sequence[int]) -> PackedTokens:
    """Return int8 documents that were not made by quantize."""
    counts = torch.tensor(lengths)
    return PackedTokens(torch.tensor(rows, dtype=torch.int8), counts.cumsum(0) - counts, counts, torch.tensor(scales))


def assert_int8_scores(actual: Tensor, queries: Sequence[Tensor], documents: PackedTokens) -> None:
    assert actual.dtype == torch.float32
    assert_close(actual, reference.maxsim(queries, values(documents)))


def test_levels_and_scales() -> None:
    rows = torch.tensor([[127.0, -63.5, 0.5, 1.5, -2.5], [0.0] * 5, [-2.54, 1.27, 0.01, 0.0, 0.02]])
    small = PackedTokens.from_list([rows]).quantize("int8")
    assert small.tokens.tolist() == [[127, -64, 0, 2, -2], [0] * 5, [-127, 64, 0, 0, 1]]
    assert small.scales is not None
    assert torch.equal(small.scales, rows.abs().amax(1) / 127)
    assert (small.dtype, small.dim, small.scales.dtype) == (torch.int8, 5, torch.float32)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_values_are_within_half_a_level(dtype: torch.dtype) -> None:
    items = [item * 10.0**i for i, item in enumerate(embeddings([30, 0, 41, 1], 33, dtype))]
    small = PackedTokens.from_list(items).quantize()
    assert small.scales is not None
    error = (small.to(dtype=torch.float64).tokens - torch.cat(items).double()).abs()
    assert (error <= small.scales.double().unsqueeze(1) * (0.5 + 1e-5)).all()
    assert (small.tokens.abs().amax(1) == 127).all()


def test_the_smallest_floats() -> None:
    """A 127th of such a number is 0 or coarse: no level may leave int8."""
    tiny = torch.tensor([[1e-45, -1e-45], [2e-43, -1e-43], [3e-39, -3e-39], [1e-37, -0.5e-37]])
    small = PackedTokens.from_list([tiny]).quantize()
    assert small.tokens[0].tolist() == [0, 0]
    error = (small.to(dtype=torch.float64).tokens - tiny.double()).abs()
    assert small.scales is not None
    assert (error <= small.scales.double().unsqueeze(1) / 2 + 127 * 2.0**-150).all()


def test_quantized_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = PackedTokens.from_list(embeddings([5, 17, 0, 30], 24))
    whole = documents.quantize()
    monkeypatch.setattr(_int8, "_CHUNK_ELEMENTS", 7 * 24)
    pieces = documents.quantize()
    assert torch.equal(pieces.tokens, whole.tokens)
    assert whole.scales is not None and torch.equal(pieces.scales, whole.scales)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("lq", "ld", "dim"), SHAPES)
def test_scores(backend: str, lq: list[int], ld: list[int], dim: int, dtype: torch.dtype) -> None:
    queries = embeddings(lq, dim, dtype)
    documents = PackedTokens.from_list(planted(queries, embeddings(ld, dim, dtype))).quantize()
    assert_int8_scores(cf.maxsim(queries, documents, backend=backend), queries, documents)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 31, 60, 63, 64, 65, 66, 127, 128, 130, 384])
def test_dims(backend: str, dim: int) -> None:
    queries = embeddings([5, 18, 33], dim)
    documents = PackedTokens.from_list(planted(queries, embeddings([14, 3, 70], dim))).quantize()
    assert_int8_scores(cf.maxsim(queries, documents, backend=backend), queries, documents)


@pytest.mark.parametrize("ld", [1, 3, 4, 5, 6, 11, 12, 13, 15, 16, 17, 31, 32, 33, 64, 300, 4096])
def test_the_best_row_is_found_wherever_it_is(backend: str, ld: int) -> None:
    """All rows are small except one, which has the largest level and the largest scale."""
    queries = embeddings([3, 33], 64)
    for row in {0, ld // 2, ld - 2, ld - 1} & set(range(ld)):
        tokens = torch.cat(embeddings([ld], 64)) / 16
        tokens[row] = 2 * queries[1][row % 33]
        documents = PackedTokens.from_list([tokens]).quantize()
        scores, argmax = score_argmax(backend, queries, documents)
        assert_int8_scores(scores, queries, documents)
        assert torch.equal(argmax[1, 0].long(), reference.maxsim_pair(queries[1], values(documents)[0])[1])


def test_the_scale_is_applied_before_the_maximum(backend: str) -> None:
    """The largest level does not win if its scale is small; nor does the largest negative."""
    documents = made([[100, 0], [1, 0], [-100, 0], [-1, 0]], [0.01, 3.0, 0.001, 3.0], [2, 2])
    scores, argmax = score_argmax(backend, [torch.tensor([[1.0, 0.0]])], documents)
    assert_close(scores, torch.tensor([[3.0, -0.1]]))
    assert argmax.flatten().tolist() == [1, 0]


def test_minus_128_and_zero_scales(backend: str) -> None:
    documents = made([[-128, -128, 127], [127, -128, -128], [5, 6, 7]], [0.5, 1e-3, 0.0], [1, 2])
    queries = [torch.tensor([[-3.0, 1.0, 0.25], [-1.0, -1.0, -1.0]]), torch.tensor([[-1.0, 0.0, 0.0]])]
    scores, argmax = score_argmax(backend, queries, documents)
    assert_int8_scores(scores, queries, documents)
    assert argmax[1, 1, 0] == 1  # -0.127 against 0


def test_zero_rows_are_tokens(backend: str) -> None:
    documents = PackedTokens.from_list([-torch.eye(3), torch.cat([-torch.eye(3), torch.zeros(1, 3)])]).quantize()
    scores, argmax = score_argmax(backend, [torch.ones(2, 3)], documents)
    assert_close(scores, torch.tensor([[-2.0, 0.0]]))
    assert argmax[0, 1].tolist() == [3, 3]


@pytest.mark.parametrize("lq", [1, 17, 40])
def test_ties_go_to_the_first(backend: str, lq: int) -> None:
    """Small integers and one scale are exact in every arithmetic."""
    q = torch.randint(-3, 4, (lq, 16)).float()
    for first, second in ((0, 1), (3, 4), (11, 12), (7, 30), (15, 16), (31, 32), (35, 36)):
        rows = torch.randint(-3, 4, (37, 16))
        rows[first] = rows[second] = 40 * q[0].sign()
        documents = made(rows.tolist(), [0.5] * 37, [37])
        argmax = score_argmax(backend, [q], documents)[1]
        assert torch.equal(argmax[0, 0].long(), reference.maxsim_pair(q, values(documents)[0])[1])


def test_empty_documents_and_queries(backend: str) -> None:
    queries = embeddings([3, 0, 5], 8)
    documents = PackedTokens.from_list(embeddings([4, 0, 6], 8)).quantize()
    with pytest.warns(UserWarning, match="without a token"):
        assert_int8_scores(cf.maxsim(queries, documents, backend=backend), queries, documents)
    assert cf.maxsim(queries, documents[:0], backend=backend).shape == (3, 0)
    assert cf.maxsim([], documents, backend=backend).shape == (0, 3)
    nothing = PackedTokens.from_list([torch.zeros(0, 8)] * 2).quantize()
    with pytest.warns(UserWarning, match="without a token"):
        assert cf.maxsim(queries, nothing, backend=backend).eq(-1e9).all()
    assert PackedTokens.from_list([torch.zeros(3, 0)]).quantize().scales.tolist() == [0.0] * 3  # type: ignore[union-attr]


def test_nan_and_infinities_in_queries(backend: str) -> None:
    q, d = embeddings([9, 30], 17)
    poisoned = q.clone()
    poisoned[4, 0] = NAN
    infinite = torch.tensor([[INF] + [1.0] * 16])
    documents = PackedTokens.from_list([d.abs() + 0.1]).quantize()
    scores = cf.maxsim([q, poisoned, infinite], documents, backend=backend)
    assert scores[1].isnan().all() and scores[2].tolist() == [INF]
    assert_close(scores[:1], reference.maxsim([q], values(documents)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pairs_pairwise_and_topk(backend: str, dtype: torch.dtype) -> None:
    queries = embeddings([3, 40, 1, 32], 33, dtype)
    documents = PackedTokens.from_list(planted(queries, embeddings([5, 17, 60, 13], 33, dtype))).quantize()
    expected = reference.maxsim(queries, values(documents))
    pairs = torch.tensor([[3, 3], [0, 0], [3, 2], [1, 2], [0, 3], [3, 3]])
    found = cf.maxsim_pairs(queries, documents, pairs, backend=backend)
    assert_close(found, expected[pairs[:, 0], pairs[:, 1]])
    assert_close(cf.maxsim_pairwise(queries, documents, backend=backend), expected.diagonal())
    scores, numbers = cf.topk(queries, documents, 3, backend=backend)
    assert_close(scores, expected.sort(descending=True).values[:, :3])
    assert_close(expected.gather(1, numbers), scores.double())
    some = cf.topk(queries, documents, 2, candidates=[[1, 2], [0], [3, 2, 1], []], backend=backend)[1]
    assert some[1].tolist() == [0, -1] and some[3].tolist() == [-1, -1]


def test_float64_queries_are_scored_in_float64() -> None:
    queries = [q.double() for q in embeddings([5, 2], 24)]
    documents = PackedTokens.from_list(embeddings([14, 3], 24)).quantize()
    scores = cf.maxsim(queries, documents)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, reference.maxsim(queries, values(documents)), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("chunk_elements", [1, 100, 5000])
def test_chunks_change_nothing(backend: str, chunk_elements: int) -> None:
    queries = embeddings([3, 8, 1], 20)
    documents = PackedTokens.from_list(planted(queries, embeddings([5, 17, 2, 40], 20))).quantize()
    scores = cf.maxsim(queries, documents, chunk_elements=chunk_elements, backend=backend)
    assert_int8_scores(scores, queries, documents)


def test_every_tier_agrees(native: str) -> None:
    queries = embeddings([32, 7], 128)
    documents = PackedTokens.from_list(planted(queries, embeddings([180, 12, 61], 128))).quantize()
    torch.testing.assert_close(
        cf.maxsim(queries, documents, backend=native),
        cf.maxsim(queries, documents, backend="torch"),
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("listed", [False, True], ids=["all", "pairs"])
def test_gradients_to_queries(backend: str, listed: bool, dtype: torch.dtype) -> None:
    """Without ties: the same document token wins in float32 and float64."""
    q = torch.stack(embeddings([7, 7, 7], 24, dtype)).requires_grad_()
    documents = PackedTokens.from_list(embeddings([5, 40, 13], 24)).quantize()
    exact = q.detach().double().requires_grad_()
    pairs = torch.tensor([[2, 1], [0, 0], [2, 2], [2, 1]])
    everything = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    scores = (
        cf.maxsim_pairs(q, documents, pairs, backend=backend) if listed else cf.maxsim(q, documents, backend=backend)
    )
    weights = torch.randn(scores.numel())
    scores.backward(weights.view_as(scores))
    each = zip((pairs if listed else everything).tolist(), weights.double(), strict=True)
    sum(weight * reference.maxsim_pair(exact[i], values(documents)[j])[0] for (i, j), weight in each).backward()  # type: ignore[union-attr]
    assert q.grad is not None and exact.grad is not None
    assert q.grad.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(q.grad.double(), exact.grad, rtol=tolerance, atol=1e-5)


def test_second_derivatives_are_refused(backend: str) -> None:
    q = torch.randn(1, 3, 8, requires_grad=True)
    documents = PackedTokens.from_list(embeddings([4], 8)).quantize()
    (grad,) = torch.autograd.grad(cf.maxsim(q, documents, backend=backend).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        grad.sum().backward()


def test_documents_carry_no_gradient() -> None:
    rows = torch.randn(4, 8, requires_grad=True)
    small = PackedTokens.from_list([rows]).quantize()
    assert small.scales is not None and not small.scales.requires_grad
    assert not cf.maxsim([torch.randn(2, 8)], small).requires_grad


# Before 2.6 torch warned whenever pickle loaded a tensor.
@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")
def test_slices_items_and_copies() -> None:
    items = embeddings([3, 0, 7, 2], 6)
    documents = PackedTokens.from_list(items).quantize()
    whole = values(documents)
    some = documents[1:3]
    assert some.scales is documents.scales and some.tokens is documents.tokens
    assert all(torch.equal(a, b) for a, b in zip(values(some), whole[1:3], strict=True))
    assert documents[2].dtype == torch.float32
    torch.testing.assert_close(documents[-2].double(), whole[2], rtol=2.0**-23, atol=0.0)
    assert [len(item) for item in documents] == [3, 0, 7, 2]
    assert documents.quantize() is documents
    assert repr(documents) == "PackedTokens(4 items, 12 rows, dim 6, torch.int8, cpu)"
    for copy in (pickle.loads(pickle.dumps(documents)), documents.with_tokens(documents.tokens, documents.scales)):
        assert all(torch.equal(a, b) for a, b in zip(values(copy), whole, strict=True))
    assert documents.with_tokens(torch.randn(12, 9)).scales is None
    meta = documents.to("meta")
    assert meta.scales is not None and meta.scales.device.type == "meta" and meta.dtype == torch.int8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_to_another_dtype_is_what_they_stand_for(dtype: torch.dtype) -> None:
    documents = PackedTokens.from_list(embeddings([3, 5], 6)).quantize()
    wide = documents.to(dtype=dtype)
    assert wide.scales is None and wide.dtype == dtype
    assert torch.equal(wide.tokens, documents.to(dtype=torch.float64).tokens.float().to(dtype))
    assert documents.to(dtype=torch.int8) is documents


@pytest.mark.parametrize("chunk_elements", [1, 20, 50, 10**6])
def test_parts_for_another_device(chunk_elements: int) -> None:
    documents = PackedTokens.from_list(embeddings([3, 0, 7, 1, 2, 9], 4)).quantize()
    parts = list(parts_of(documents, chunk_elements))
    items = [item for part in parts for item in part]
    assert all(torch.equal(a, b) for a, b in zip(items, documents, strict=True))
    assert all(part.scales is not None and len(part.scales) == part.rows for part in parts)


def test_strided_rows_and_unaligned_scales(native: str) -> None:
    documents = PackedTokens.from_list(embeddings([13, 27], 24)).quantize()
    assert documents.scales is not None
    wide = torch.full((40, 31), 99, dtype=torch.int8)
    wide[:, 3:27] = documents.tokens
    raw = bytearray(b"\x7e" + documents.scales.numpy().tobytes())
    scales = torch.frombuffer(raw, dtype=torch.float32, offset=1)
    queries = embeddings([33, 2], 24)
    expected = cf.maxsim(queries, documents, backend=native)
    for tokens in (wide[:, 3:27], documents.tokens.T.contiguous().T):
        odd = PackedTokens(tokens, documents.starts, documents.lengths, scales)
        assert torch.equal(cf.maxsim(queries, odd, backend=native), expected)


def test_threads_agree_bit_for_bit(native: str, threads: Callable[[int], None]) -> None:
    q = PackedTokens.from_list(embeddings([32] * 8, 64))
    documents = PackedTokens.from_list(embeddings([(37 * i) % 71 + 1 for i in range(60)], 64)).quantize()
    threads(1)
    expected = cf.maxsim(q, documents, backend=native)
    for n in (2, 3, 4):
        threads(n)
        assert torch.equal(cf.maxsim(q, documents, backend=native), expected)


@pytest.mark.parametrize("pairs", [None, torch.tensor([[0, 1], [1, 1], [0, 0]])], ids=["all", "pairs"])
def test_opcheck(backend: str, pairs: Tensor | None) -> None:
    q = PackedTokens.from_list(embeddings([3, 5], 8))
    d = PackedTokens.from_list(embeddings([4, 7], 8)).quantize()
    sides = (q.tokens, q.starts, q.lengths, d.tokens, d.scales, d.starts, d.lengths, pairs)
    args = (*sides, q.max_length, d.max_length, False, False, 2**24)
    ops = torch.ops.colbert_fast
    torch.library.opcheck(ops.score.default, (*args, backend))
    torch.library.opcheck(ops.score_argmax.default, (*args, backend))
    scores, argmax = ops.score_argmax(*args, backend)
    grad = torch.randn(scores.numel())
    torch.library.opcheck(ops.backward.default, (*args, grad, argmax, True, False, backend))
    with pytest.raises(ValueError, match="int8 d_tokens have no gradient"):
        ops.backward(*args, grad, argmax, True, True, backend)


# torch itself makes an instance of an autograd.Function while it traces it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compile_forward_and_backward(backend: str) -> None:
    torch._dynamo.reset()
    documents = PackedTokens.from_list(embeddings([4, 7, 3], 8)).quantize()

    def loss(q: Tensor) -> Tensor:
        return cf.maxsim(q, documents, backend=backend).square().sum()

    q = torch.randn(3, 6, 8, requires_grad=True)
    expected = loss(q)
    actual = torch.compile(loss, fullgraph=True, backend="aot_eager")(q)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, q), torch.autograd.grad(expected, q))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_int8_cannot_hold(bad: float) -> None:
    items = embeddings([3, 5, 2], 6)
    items[1][4, 2] = bad
    with pytest.raises(ValueError, match=r"int8 cannot hold a NaN or an infinity.*item 1 has one"):
        PackedTokens.from_list(items).quantize()
    with pytest.raises(ValueError, match="item 0 has one"):
        PackedTokens.from_list([torch.full((1, 2), 1e300, dtype=torch.float64)]).quantize()
    padded = torch.stack([items[1], items[1]])
    mask = torch.tensor([[True, True, True, True, False]] * 2)
    small = PackedTokens.from_padded(padded, mask).quantize()
    for item in small:
        assert torch.equal(item, PackedTokens.from_list([items[1][:4]]).quantize()[0])


def refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_refusals() -> None:
    rows, starts, lengths = torch.ones(3, 4, dtype=torch.int8), torch.tensor([0]), torch.tensor([3])
    scales, queries = torch.ones(3), torch.ones(1, 2, 4)
    documents = PackedTokens(rows, starts, lengths, scales)

    def build(*arguments: Any) -> Callable[[], PackedTokens]:
        return lambda: PackedTokens(*arguments)

    refused(build(rows, starts, lengths), TypeError, "int8 tokens need scales, one float32 for each row")
    refused(
        build(rows.float(), starts, lengths, scales), ValueError, "scales go with int8 tokens only; got torch.float32"
    )
    refused(build(rows, starts, lengths, [1.0] * 3), TypeError, "scales must be a float32 tensor; got list")
    refused(
        build(rows, starts, lengths, scales.double()),
        TypeError,
        "scales must be a float32 tensor; got torch.float64",
    )
    refused(build(rows, starts, lengths, scales[:2]), ValueError, "scales must be [3], one for each row of tokens")
    refused(build(rows, starts, lengths, scales.unsqueeze(1)), ValueError, "got shape [3, 1]")
    for bad in (NAN, INF, -1.0):
        refused(build(rows, starts, lengths, scales * bad), ValueError, "scales must be finite and 0 or more")
    refused(lambda: documents.with_tokens(rows), TypeError, "int8 tokens need scales")
    refused(lambda: documents.quantize("int4"), ValueError, "dtype must be \"int8\"; got 'int4'")  # type: ignore[arg-type]
    refused(lambda: documents.to(dtype=torch.int16), TypeError, "dtype must be floating point; got torch.int16")
    refused(
        lambda: documents.to(dtype=torch.float32).to(dtype=torch.int8),
        TypeError,
        'dtype must be floating point; got torch.int8; quantize("int8") makes int8',
    )
    refused(lambda: cf.maxsim(documents, queries), TypeError, "a must be floating point: only documents can be int8")
    refused(lambda: cf.maxsim(documents, documents), TypeError, "only documents can be int8")
    refused(lambda: cf.maxsim(torch.ones(1, 2, 5), documents), ValueError, "a and b need the same dim")
    refused(
        lambda: cf.maxsim(queries.double(), documents, backend="cpu"),
        NotImplementedError,
        "backend 'cpu' cannot score torch.float64 queries and int8 documents on cpu",
    )
    refused(
        lambda: cf.maxsim(queries, documents, None, torch.ones(1, 3)),
        ValueError,
        "b_mask cannot go with a PackedTokens",
    )


@pytest.mark.parametrize(
    "scales", [None, torch.ones(2), torch.ones(3).double(), torch.ones(3, 1), torch.ones(1).expand(3)]
)
def test_the_op_wants_a_scale_for_each_row(backend: str, scales: Tensor | None) -> None:
    q, rows, zero = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.int8), torch.tensor([0])
    three = torch.tensor([3])
    with pytest.raises(ValueError, match=r"d_scales( must be contiguous torch.float32 .3. on cpu; got torch.float|$)"):
        torch.ops.colbert_fast.score(q, zero, three, rows, scales, zero, three, None, 3, 3, False, False, 64, backend)
