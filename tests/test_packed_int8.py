"""int8 tokens that callers hand in stay int8 in PackedTokens, and are scored as before where they are handed in."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import assert_close
from torch import Tensor

import colbert_fast as cf
from colbert_fast import PackedTokens, reference
from colbert_fast._lowering import lower


def codes(*lengths: int, dim: int = 8) -> list[Tensor]:
    return [torch.randint(-127, 128, (n, dim), dtype=torch.int8) for n in lengths]


def stand_for(packed: PackedTokens, expected: list[Tensor]) -> None:
    """The batch is int8 and stands for these."""
    assert packed.dtype == torch.int8 and packed.scales is not None
    assert packed.scales.shape == (packed.rows,) and packed.scales.dtype == torch.float32
    assert len(packed) == len(expected)
    assert all(torch.equal(item, rows.float()) for item, rows in zip(packed, expected, strict=True))


ITEMS: dict[str, Callable[[list[Tensor]], Any]] = {
    "tensors": lambda items: items,
    "tuple": tuple,
    "arrays": lambda items: [item.numpy() for item in items],
    "both": lambda items: [items[0].numpy(), *items[1:]],
    "strided": lambda items: [item.T.contiguous().T for item in items],
    "read-only": lambda items: [np.frombuffer(item.numpy().tobytes(), np.int8).reshape(item.shape) for item in items],
    "empty list": lambda items: [[] if not len(item) else item for item in items],
    "empty floats": lambda items: [torch.zeros(0) if not len(item) else item for item in items],
}


@pytest.mark.parametrize("form", ITEMS)
def test_a_list_of_int8_stays_int8(form: str) -> None:
    items = codes(3, 0, 5)
    stand_for(PackedTokens.from_list(ITEMS[form](items)), items)
    scales = [torch.tensor([0.5, 0.0, 2.0]), torch.zeros(0), torch.rand(5)]
    expected = [item * scale.unsqueeze(1) for item, scale in zip(items, scales, strict=True)]
    stand_for(PackedTokens.from_list(ITEMS[form](items), scales), expected)
    stand_for(PackedTokens.from_list(ITEMS[form](items), scales=[scale.numpy() for scale in scales]), expected)
    stand_for(PackedTokens.from_list(ITEMS[form](items), scales=tuple(scale.tolist() for scale in scales)), expected)


@pytest.mark.parametrize(
    "items",
    [
        [torch.ones(2, 4, dtype=torch.int8), torch.ones(1, 4)],
        [torch.ones(2, 4, dtype=torch.int8), torch.ones(1, 4, dtype=torch.int64)],
        [torch.ones(2, 4, dtype=torch.int8), [[1, 2, 3, 4]]],
        [torch.ones(2, 4, dtype=torch.int16)],
        [np.ones((2, 4), np.uint8)],
        [[[1, 2, 3, 4]]],
        [torch.ones(2, 4, dtype=torch.bool)],
        [[]],
    ],
    ids=["float32", "int64", "list", "int16", "uint8", "numbers", "bool", "nothing"],
)
def test_other_integers_become_float32(items: list[Any]) -> None:
    packed = PackedTokens.from_list(items)
    assert packed.dtype == torch.float32 and packed.scales is None
    assert [item.tolist() for item in packed] == [torch.as_tensor(item).float().tolist() for item in items]
    with pytest.raises(ValueError, match="scales go with int8 tokens only; got torch"):
        PackedTokens.from_list(items, [torch.ones(len(item)) for item in items])


def test_items_without_rows_are_int8_if_all_are() -> None:
    assert PackedTokens.from_list(codes(0, 0)).dtype == torch.int8
    assert PackedTokens.from_list([codes(0)[0], torch.zeros(0, 8)]).dtype == torch.int8
    assert PackedTokens.from_list([torch.zeros(0, 8), codes(0)[0]]).dtype == torch.int8
    assert PackedTokens.from_list([]).dtype == torch.float32


@pytest.mark.parametrize("array", [False, True], ids=["tensor", "array"])
@pytest.mark.parametrize(
    "mask",
    [None, [[1, 1, 0], [0, 0, 0]], [[0, 1, 1], [0, 0, 1]], [[1, 0, 1], [1, 1, 1]]],
    ids=["none", "right", "left", "holes"],
)
def test_padded_int8_stays_int8(mask: Any, array: bool) -> None:
    tokens = torch.stack(codes(3, 3))
    keep = torch.ones(2, 3, dtype=torch.bool) if mask is None else torch.tensor(mask).bool()
    given = tokens.numpy() if array else tokens
    packed = PackedTokens.from_padded(given, mask)
    stand_for(packed, [rows[kept] for rows, kept in zip(tokens, keep, strict=True)])
    scales = torch.rand(2, 3)
    expected = [(rows * scale.unsqueeze(1))[kept] for rows, scale, kept in zip(tokens, scales, keep, strict=True)]
    for some in (scales, scales.numpy(), scales.T.contiguous().T, torch.where(keep, scales, float("nan"))):
        stand_for(PackedTokens.from_padded(given, mask, some), expected)
        stand_for(PackedTokens.from_padded(given, mask=mask, scales=some), expected)


def test_padded_int8_is_a_view() -> None:
    tokens = torch.stack(codes(3, 3))
    assert PackedTokens.from_padded(tokens).tokens.data_ptr() == tokens.data_ptr()
    assert PackedTokens.from_padded(tokens, torch.ones(2, 3)).tokens.data_ptr() == tokens.data_ptr()


def test_nested_int8_stays_int8() -> None:
    items = codes(3, 5)
    nested = torch.nested.nested_tensor(items, layout=torch.jagged)
    stand_for(PackedTokens.from_nested(nested), items)
    scales = [torch.rand(3), torch.rand(5)]
    expected = [item * scale.unsqueeze(1) for item, scale in zip(items, scales, strict=True)]
    stand_for(PackedTokens.from_nested(nested, torch.cat(scales)), expected)
    stand_for(PackedTokens.from_nested(nested, torch.nested.nested_tensor(scales, layout=torch.jagged)), expected)


def test_other_nested_integers_become_float32() -> None:
    items = [item.to(torch.int32) for item in codes(3, 5)]
    packed = PackedTokens.from_nested(torch.nested.nested_tensor(items, layout=torch.jagged))
    assert packed.dtype == torch.float32
    assert all(torch.equal(item, rows.float()) for item, rows in zip(packed, items, strict=True))
    floats = torch.nested.nested_tensor([item.float() for item in items], layout=torch.jagged)
    with pytest.raises(ValueError, match="scales go with int8 tokens only; got torch"):
        PackedTokens.from_nested(floats, torch.ones(8))


def test_given_int8_takes_the_memory_of_int8() -> None:
    items = codes(30, 50, dim=128)
    packed = PackedTokens.from_list(items)
    assert packed.tokens.nbytes + packed.scales.nbytes == 80 * (128 + 4)  # type: ignore[union-attr]


def test_given_int8_is_scored_as_documents(backend: str) -> None:
    queries = [torch.randn(n, 8) for n in (4, 7)]
    items = codes(3, 9, 5)
    scales = [torch.rand(len(item)) for item in items]
    for packed, rows in (
        (PackedTokens.from_list(items), [item.float() for item in items]),
        (PackedTokens.from_list(items, scales), [i * s[:, None] for i, s in zip(items, scales, strict=True)]),
    ):
        assert_close(cf.maxsim(queries, packed, backend=backend), reference.maxsim(queries, rows))
        assert cf.maxsim([q.double() for q in queries], packed).dtype == torch.float64


def refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_what_scales_are_refused() -> None:
    items, ones = codes(3, 5), [torch.ones(3), torch.ones(5)]
    build, padded = PackedTokens.from_list, PackedTokens.from_padded
    refused(lambda: build(items, ones[:1]), ValueError, "the scales of each of the 2 items; got 1")
    refused(lambda: build(items, torch.ones(8)), TypeError, "a list with the scales of each item; got Tensor")
    refused(
        lambda: build(items, ones[::-1]), ValueError, "scales[0] must be [3], one for each row of tokens; got shape [5]"
    )
    refused(
        lambda: build(items, [1.0, 1.0]), TypeError, "scales[0] must be a tensor, a numpy array or a list; got float"
    )
    refused(
        lambda: build(items, [ones[0], ones[1].double()]), TypeError, "scales[1] must be float32; got torch.float64"
    )
    refused(lambda: build(items, [ones[0], ones[1][:, None]]), ValueError, "got shape [5, 1]")
    for bad in (float("nan"), float("inf"), -1.0):
        refused(
            lambda bad=bad: build(items, [ones[0], ones[1] * bad]), ValueError, "scales must be finite and 0 or more"
        )  # type: ignore[misc]
        refused(lambda bad=bad: padded(items[0][None], None, ones[0][None] * bad), ValueError, "scales must be finite")  # type: ignore[misc]
    refused(
        lambda: padded(items[0][None], None, ones[0]), ValueError, "scales must be [1, 3], one for each row of tokens"
    )
    refused(lambda: padded(items[0][None].float(), None, ones[0][None]), ValueError, "scales go with int8 tokens only")
    nested = torch.nested.nested_tensor(items, layout=torch.jagged)
    refused(lambda: PackedTokens.from_nested(nested, torch.ones(3)), ValueError, "scales must be [8]")
    refused(lambda: build([items[0], items[0][:, :3]]), ValueError, "all items need the same dim; got items[1] [*, 3]")
    refused(lambda: build([items[0], items[0][0]]), ValueError, "items[1] must be [length, dim]; got shape [8]")
    refused(lambda: build([items[0].to_sparse()]), TypeError, "items[0] must be a dense tensor")


# Handed to a function that scores, int8 is what it always was: numbers that become float32.


def forms(items: list[Tensor]) -> dict[str, Any]:
    return {
        "list": items,
        "arrays": [item.numpy() for item in items],
        "padded": torch.stack(items),
        "padded array": torch.stack(items).numpy(),
        "nested": torch.nested.nested_tensor(items, layout=torch.jagged),
    }


@pytest.mark.parametrize("form", forms(codes(1)))
def test_int8_on_either_side_of_a_call(backend: str, form: str) -> None:
    queries, documents = codes(4, 4), codes(6, 6)
    q, d = forms(queries)[form], forms(documents)[form]
    floats = [[item.float() for item in side] for side in (queries, documents)]
    expected = reference.maxsim(*floats)
    assert_close(cf.maxsim(q, d, backend=backend), expected)
    assert_close(cf.maxsim(q, floats[1], backend=backend), expected)
    assert_close(cf.maxsim(floats[0], d, backend=backend), expected)
    assert_close(cf.maxsim_pairwise(q, d, backend=backend), expected.diagonal())
    assert_close(cf.topk(q, d, 2, backend=backend)[0], expected.sort(descending=True).values)
    assert lower(q, None, "a")[0].dtype == lower(d, None, "b", join=False)[0].dtype == torch.float32


def test_int8_padding_keeps_its_meaning(backend: str) -> None:
    queries, documents = torch.stack(codes(4, 4)), -torch.stack(codes(6, 6)).abs()
    queries = queries.abs() | 1
    queries[0, 3:], documents[1, 2:] = 0, 0
    mask = documents.ne(0).any(2)
    expected = reference.maxsim(
        [queries[0, :3].float(), queries[1].float()], [documents[0].float(), documents[1, :2].float()]
    )
    assert_close(cf.maxsim(queries, documents, backend=backend), expected)
    assert_close(cf.maxsim(queries, documents, None, mask, backend=backend), expected)
    assert_close(cf.maxsim(list(queries), list(documents), None, mask, backend=backend), expected)
    assert_close(cf.maxsim(queries, documents.numpy(), b_mask=mask.numpy(), backend=backend), expected)
