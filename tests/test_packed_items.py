"""PackedTokens joined, padded and indexed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, embeddings
from torch import Tensor

from colbert_fast import PackedTokens
from colbert_fast import packed as packed_module


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
    refused(lambda: whole.to_padded(-1), ValueError, "length must be an integer, 0 or more, or None; got -1")
    for bad, name in ((2.0, "float"), ("7", "str"), (True, "bool"), ([7], "list")):
        refused(
            lambda bad=bad: whole.to_padded(bad),
            TypeError,
            f"length must be an integer, 0 or more, or None; got {name}",
        )  # type: ignore[misc]


def test_to_padded_of_another_device_asks_it_nothing() -> None:
    whole = ragged([3, 0, 7]).to("meta")
    assert whole.to_padded()[0].shape == (3, 7, 4)
    assert whole[1:].to_padded(9)[1].shape == (2, 9)
