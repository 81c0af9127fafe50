"""PackedTokens joined, padded and indexed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, assert_scores, embeddings
from torch import Tensor

import colbert_fast as cf
from colbert_fast import PackedTokens
from colbert_fast import packed as packed_module
from colbert_fast._lowering import EqualTokens, TokenList, lower


def ragged(lengths: list[int], dim: int = 4, dtype: torch.dtype = torch.float32) -> PackedTokens:
    return PackedTokens.from_list(embeddings(lengths, dim, dtype))


def same_items(some: PackedTokens, expected: Any) -> None:
    assert len(some) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(some, expected, strict=True))


def refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


# cat


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_cat_holds_the_items_in_order(dtype: torch.dtype) -> None:
    a, b = ragged([3, 0, 7], dtype=dtype), ragged([2, 2], dtype=dtype)
    joined = PackedTokens.cat([a, b, a])
    same_items(joined, [*a, *b, *a])
    assert (joined.dtype, joined.max_length, joined.rows) == (dtype, 7, 24)
    same_items(PackedTokens.cat(batch for batch in (b, a)), [*b, *a])


def test_cat_of_int8_keeps_the_scales() -> None:
    a, b = ragged([3, 0, 7]).quantize(), ragged([2, 2]).quantize()
    joined = PackedTokens.cat([a, b])
    assert joined.dtype == torch.int8
    same_items(joined, [*a, *b])
    same_items(PackedTokens.cat([a[1:], PackedTokens.from_list([]), b[:1]]), [a[1], a[2], b[0]])


def test_cat_copies_rows_of_items_only() -> None:
    whole = ragged([5] * 100)
    for some in (whole[3:5], whole[[40, 7]], whole[[7, 7, 7, 7]]):
        joined = PackedTokens.cat([some, some])
        assert joined.rows <= 2 * 10
        same_items(joined, [*some, *some])
    padded = PackedTokens.from_padded(torch.randn(4, 50, 3), torch.arange(50) < torch.tensor([[2], [0], [3], [1]]))
    joined = PackedTokens.cat([padded])
    assert (joined.rows, joined.max_length) == (6, 3)
    same_items(joined, padded)


def test_cat_of_one_is_a_copy() -> None:
    one = ragged([3, 2])
    joined = PackedTokens.cat([one])
    one.tokens.zero_()
    assert joined.tokens.ne(0).all()


def test_cat_of_nothing() -> None:
    assert len(PackedTokens.cat([])) == len(PackedTokens.cat([PackedTokens.from_list([])])) == 0
    some = ragged([2, 3])
    for empty in (PackedTokens.from_list([]), PackedTokens.from_list([[], []]), PackedTokens.from_list([]).to("meta")):
        for batches in ([empty, some], [some, empty]):
            assert PackedTokens.cat(batches).tokens.shape == (5, 4)
            assert len(PackedTokens.cat(batches)) == 2 + len(empty)
    rowless = PackedTokens.cat([PackedTokens.from_list([[]]), ragged([0, 0])])
    assert rowless.tokens.shape == (0, 4) and rowless.lengths.tolist() == [0, 0, 0]
    assert PackedTokens.cat([some[:0], some[1:]]).rows == 3
    assert PackedTokens.cat([some[:0]]).rows == 0


def test_cat_is_differentiable() -> None:
    items = [x.requires_grad_() for x in embeddings([3, 2, 4], 4)]
    whole = PackedTokens.from_list(items)
    joined = PackedTokens.cat([whole[[2, 0]], ragged([1]), whole[2:]])
    (joined.tokens * torch.arange(12.0).unsqueeze(1)).sum().backward()
    for item, expected in zip(items, ([4, 5, 6], None, [8, 10, 12, 14]), strict=True):
        assert item.grad is not None
        assert item.grad[:, 0].tolist() == (expected or [0, 0])


def test_what_cat_refuses() -> None:
    a = ragged([3, 2])
    cat = PackedTokens.cat
    refused(
        lambda: cat([a, PackedTokens.from_list([]), ragged([1], dim=5)]),
        ValueError,
        "all batches need the same dim; got batches[2] [*, 5] beside batches[0] [*, 4]",
    )
    refused(
        lambda: cat([PackedTokens.from_list([[]]), a, ragged([1], dtype=torch.float16)]),
        TypeError,
        "all batches need the same dtype; got batches[2] torch.float16 beside batches[1] torch.float32",
    )
    refused(
        lambda: cat([a, a.quantize()]),
        TypeError,
        "all batches need the same dtype; got batches[1] torch.int8 beside batches[0] torch.float32",
    )
    refused(
        lambda: cat([a, a.to("meta")]),
        ValueError,
        "all batches need the same device; got batches[1] on meta beside batches[0] on cpu",
    )
    refused(lambda: cat([a, a[0]]), TypeError, "batches must hold PackedTokens; batches[1] is Tensor")
    refused(lambda: cat(a), TypeError, "batches must hold PackedTokens; batches[0] is Tensor")


def test_cat_of_another_device_asks_it_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "_ORDERED_ON", ("meta",))
    whole = ragged([3, 70, 5, 1, 9] * 4).to("meta")
    joined = PackedTokens.cat([whole, whole[2:3]])
    assert len(joined) == 21 and joined.rows <= whole.rows + 70
    assert joined._order is not None and joined._order.shape == (21,)
    same = PackedTokens.from_list(embeddings([3, 3], 4)).to("meta")
    assert PackedTokens.cat([same, same])._order is None


# to_padded


def expected_padding(items: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    tokens = torch.stack([torch.nn.functional.pad(item, (0, 0, 0, length - len(item))) for item in items])
    return tokens, torch.stack([torch.arange(length) < len(item) for item in items])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("length", [None, 7, np.int64(9), 30])
def test_to_padded(dtype: torch.dtype, length: int | None) -> None:
    whole = ragged([3, 0, 7, 2], dtype=dtype)
    for some in (whole, whole[::-1]) if length is None else (whole, whole[::-1], whole[:2]):
        tokens, mask = some.to_padded(length)
        expected = expected_padding(list(some), length or 7)
        assert tokens.dtype == dtype and mask.dtype == torch.bool
        assert torch.equal(tokens, expected[0]) and torch.equal(mask, expected[1])


def test_to_padded_is_the_inverse_of_from_padded() -> None:
    rows = torch.randn(4, 6, 3)
    mask = torch.arange(6) < torch.tensor([[2], [0], [5], [1]])
    tokens, kept = PackedTokens.from_padded(rows, mask).to_padded()
    assert torch.equal(kept, mask) and torch.equal(tokens, rows * mask.unsqueeze(2))
    left = mask.flip(1)
    tokens, kept = PackedTokens.from_padded(rows, left).to_padded()
    assert torch.equal(kept, mask) and torch.equal(tokens[2, :5], rows[2, 1:])
    same_items(
        PackedTokens.from_padded(*PackedTokens.from_padded(rows, left).to_padded()),
        [r[m] for r, m in zip(rows, left, strict=True)],
    )


def test_to_padded_of_a_part_is_as_wide_as_its_longest_item() -> None:
    whole = ragged([3, 0, 70, 2])
    assert whole[:2].to_padded()[0].shape == (2, 3, 4)
    assert whole[[3]].to_padded()[0].shape == (1, 2, 4)
    assert whole[1:2].to_padded()[0].shape == (1, 0, 4)
    assert whole[:0].to_padded()[0].shape == (0, 0, 4)
    assert whole[:2].to_padded(3)[1].sum(1).tolist() == [3, 0]
    refused(
        lambda: whole[:2].to_padded(2), ValueError, "length must be 3 or more, the length of the longest item; got 2"
    )


def test_to_padded_of_int8_is_what_it_stands_for() -> None:
    small = ragged([3, 0, 7]).quantize()
    tokens, mask = small.to_padded()
    expected = expected_padding(list(small), 7)
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens, expected[0]) and torch.equal(mask, expected[1])


def test_what_is_no_token_does_not_show() -> None:
    rows = torch.full((6, 2), float("nan"))
    rows[1:3] = 1
    tokens, _ = PackedTokens(rows, torch.tensor([1, 6]), torch.tensor([2, 0])).to_padded(4)
    assert tokens.sum() == 4 and not tokens.isnan().any()


def test_to_padded_of_nothing() -> None:
    tokens, mask = PackedTokens.from_list([]).to_padded()
    assert tokens.shape == (0, 0, 0) and mask.shape == (0, 0)
    tokens, mask = ragged([0, 0]).to_padded(3)
    assert torch.equal(tokens, torch.zeros(2, 3, 4)) and not mask.any()
    tokens, mask = ragged([0, 0]).quantize().to_padded(3)
    assert torch.equal(tokens, torch.zeros(2, 3, 4)) and not mask.any()


def test_to_padded_is_differentiable() -> None:
    items = [x.requires_grad_() for x in embeddings([3, 0, 2], 4)]
    tokens, _ = PackedTokens.from_list(items).to_padded(5)
    (tokens * torch.arange(15.0).view(3, 5, 1)).sum().backward()
    assert [None if x.grad is None else x.grad[:, 0].tolist() for x in items] == [[0, 1, 2], [], [10, 11]]
    empty = torch.zeros(0, 4, requires_grad=True)
    PackedTokens.from_list([empty]).to_padded(2)[0].sum().backward()
    assert empty.grad is not None


def test_what_to_padded_refuses() -> None:
    whole = ragged([3, 0, 7])
    refused(lambda: whole.to_padded(6), ValueError, "length must be 7 or more, the length of the longest item; got 6")
    refused(lambda: whole.to_padded(-1), ValueError, "length must be 0 or more; got -1")
    for bad in (2.0, "7", True, [7]):
        with pytest.raises(TypeError, match="length must be an int; got"):
            whole.to_padded(bad)  # type: ignore[arg-type]


def test_to_padded_of_another_device_asks_it_nothing() -> None:
    whole = ragged([3, 0, 7]).to("meta")
    assert whole.to_padded()[0].shape == (3, 7, 4)
    assert whole[1:].to_padded(9)[1].shape == (2, 9)


# Indexing


WHOLE = [3, 0, 7, 2, 1]


SOME: dict[str, tuple[Any, list[int]]] = {
    "list": ([4, 0, 0, -1, -5], [4, 0, 0, 4, 0]),
    "numpy integers in a list": ([np.int64(1), np.uint8(2)], [1, 2]),
    "tensors in a list": ([torch.tensor(1), torch.tensor(-2)], [1, 3]),
    "range": (range(4, 0, -2), [4, 2]),
    "nothing": ([], []),
    "tensor": (torch.tensor([4, 0, -1]), [4, 0, 4]),
    "int32": (torch.tensor([-5, 3], dtype=torch.int32), [0, 3]),
    "uint8": (torch.tensor([1, 0, 1], dtype=torch.uint8), [1, 0, 1]),
    "strided": (torch.tensor([[4, 1], [0, 1]])[:, 0], [4, 0]),
    "array": (np.array([4, 0, -1]), [4, 0, 4]),
    "read-only array": (np.frombuffer(np.array([4, 1]).tobytes(), np.int64), [4, 1]),
    "reversed array": (np.array([1, 2, 3])[::-1], [3, 2, 1]),
    "big-endian array": (np.array([1, 2], ">i4"), [1, 2]),
    "uint64 array": (np.array([1, 4], np.uint64), [1, 4]),
    "empty tensor": (torch.zeros(0, dtype=torch.int64), []),
    "mask list": ([True, False, False, True, False], [0, 3]),
    "numpy mask list": ([np.bool_(True)] * 2 + [False] * 3, [0, 1]),
    "mask tensor": (torch.tensor([True, False, False, True, False]), [0, 3]),
    "mask array": (np.array([False, False, False, True, True]), [3, 4]),
    "mask of nothing": (torch.zeros(5, dtype=torch.bool), []),
    "slice": (slice(1, 4), [1, 2, 3]),
    "slice with a step": (slice(None, None, 2), [0, 2, 4]),
    "slice backwards": (slice(None, None, -1), [4, 3, 2, 1, 0]),
    "slice backwards in steps": (slice(-2, 0, -2), [3, 1]),
    "slice beyond the end": (slice(3, 99), [3, 4]),
    "slice of numpy integers": (slice(np.int64(1), np.int64(4), np.int64(-1)), []),
}


@pytest.mark.parametrize("kind", ["float32", "int8", "a padded batch", "a list of a call"])
@pytest.mark.parametrize("name", SOME)
def test_some_items(name: str, kind: str) -> None:
    items = embeddings([3] * 5 if kind == "a padded batch" else WHOLE, 4)
    whole = {
        "float32": lambda: PackedTokens.from_list(items),
        "int8": lambda: PackedTokens.from_list(items).quantize(),
        "a padded batch": lambda: EqualTokens(torch.stack(items)),
        "a list of a call": lambda: lower(items, None, "b", join=False)[0],
    }[kind]()
    index, expected = SOME[name]
    some = whole[index]
    assert isinstance(some, PackedTokens)
    same_items(some, [whole[i] for i in expected])
    assert some.starts.is_contiguous() and some.lengths.is_contiguous()
    if not isinstance(some, TokenList):
        assert some.tokens is whole.tokens and some.scales is whole.scales


def test_some_items_are_scored(backend: str) -> None:
    queries, documents = embeddings([3, 5], 8), embeddings([4, 9, 1, 7, 2], 8)
    whole = PackedTokens.from_list(documents)
    for index, numbers in (([4, 0, 0, -1], [4, 0, 0, 4]), (slice(None, None, -2), [4, 2, 0])):
        some = [documents[i] for i in numbers]
        assert_scores(cf.maxsim(queries, whole[index], backend=backend), queries, some)
        assert cf.topk(queries, whole[index], 2, backend=backend)[1].shape == (2, 2)


@pytest.mark.parametrize(
    "index",
    [2, -3, np.int64(2), np.uint8(2), torch.tensor(2), torch.tensor(-3, dtype=torch.int16), np.array(2)],
    ids=repr,
)
def test_one_item(index: Any) -> None:
    whole = ragged(WHOLE)
    assert isinstance(whole[index], Tensor)
    assert torch.equal(whole[index], whole.tokens[3:10])
    assert torch.equal(whole.quantize()[index], whole.quantize().tokens[3:10] * whole.quantize().scales[3:10, None])
    assert torch.equal(lower(list(whole), None, "b", join=False)[0][index], whole.tokens[3:10])


OUTSIDE: dict[str, tuple[Any, str]] = {
    "int": (5, "index 5 is out of range for 5 items"),
    "negative int": (-6, "index -6 is out of range for 5 items"),
    "large int": (2**70, f"index {2**70} is out of range for 5 items"),
    "0-d tensor": (torch.tensor(-6), "index -6 is out of range for 5 items"),
    "list": ([0, 9, 1], "index 9 is out of range for 5 items"),
    "large list": ([0, 2**70], f"index {2**70} is out of range for 5 items"),
    "tensor": (torch.tensor([0, -7, 99]), "index -7 is out of range for 5 items"),
    "int8 tensor": (torch.tensor([-128], dtype=torch.int8), "index -128 is out of range for 5 items"),
    "array": (np.array([5]), "index 5 is out of range for 5 items"),
    "uint64 array": (np.array([2**64 - 1], np.uint64), f"index {2**64 - 1} is out of range for 5 items"),
    "smallest": (torch.tensor([-(2**63)]), f"index {-(2**63)} is out of range for 5 items"),
    "short mask": ([True] * 4, "a mask must have one entry for each of 5 items; got 4"),
    "long mask tensor": (torch.ones(6, dtype=torch.bool), "a mask must have one entry for each of 5 items; got 6"),
    "mask array": (np.ones(0, bool), "a mask must have one entry for each of 5 items; got 0"),
    "2-D tensor": (torch.zeros(2, 2, dtype=torch.int64), "an index must have one dimension; got shape [2, 2]"),
    "2-D mask": (torch.ones(5, 1, dtype=torch.bool), "an index must have one dimension; got shape [5, 1]"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_items_that_are_not_there(name: str) -> None:
    index, message = OUTSIDE[name]
    for whole in (ragged(WHOLE), ragged(WHOLE).quantize()):
        refused(lambda whole=whole: whole[index], IndexError, message)  # type: ignore[misc]


OF_ANOTHER_KIND: dict[str, Any] = {
    "float": 1.0,
    "numpy float": np.float64(1),
    "str": "1",
    "bytes": b"1",
    "tuple": (0, 1),
    "empty tuple": (),
    "None": None,
    "ellipsis": ...,
    "bool": True,
    "numpy bool": np.bool_(False),
    "bool tensor": torch.tensor(True),
    "bool array": np.array(True),
    "float tensor": torch.tensor(1.0),
    "float tensors": torch.tensor([1.0]),
    "float array": np.array([1.0]),
    "complex": 1j,
    "complex tensor": torch.tensor([1j]),
    "list of floats": [0, 1.0],
    "list of bools and ints": [True, 1, 0, 0, 0],
    "list of ints and bools": [0, True],
    "list of lists": [[0], [1]],
    "list of str": ["0"],
    "list of bool tensors and ints": [torch.tensor(True), 1],
    "dict": {0: 1},
    "set": {0},
}


@pytest.mark.parametrize("name", OF_ANOTHER_KIND)
def test_an_index_of_another_kind(name: str) -> None:
    whole = ragged(WHOLE)
    for some in (whole, lower(list(whole), None, "b", join=False)[0]):
        with pytest.raises(TypeError, match=r"an index must be an integer, a slice, a list of integers or of bools"):
            some[OF_ANOTHER_KIND[name]]


def test_gradients_of_some_items() -> None:
    items = [x.requires_grad_() for x in embeddings([3, 2, 4], 4)]
    some = PackedTokens.from_list(items)[[2, 0, 2]]
    cf.maxsim(torch.randn(1, 2, 4), some).sum().backward()
    assert items[1].grad is not None and not items[1].grad.any()
    assert items[2].grad is not None and items[2].grad.any()


def test_some_items_under_compile() -> None:
    torch._dynamo.reset()
    whole = ragged(WHOLE)
    queries = torch.randn(2, 3, 4)

    def score(q: Tensor, numbers: Tensor) -> Tensor:
        return cf.maxsim(q, whole[numbers])

    numbers = torch.tensor([4, -3, 0])
    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(queries, numbers), score(queries, numbers))
