"""PackedTokens: what each layout lowers to, without copies where none is needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import assert_scores, embeddings

import colbert_fast as cf
from colbert_fast import PackedTokens
from colbert_fast import packed as packed_module
from colbert_fast._lowering import EqualTokens, lower
from colbert_fast._maxsim import parts_of


def shares_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def test_from_list() -> None:
    items = [torch.randn(3, 4), torch.randn(0, 4), torch.randn(2, 4)]
    packed = PackedTokens.from_list(items)
    assert packed.starts.tolist() == [0, 3, 3]
    assert packed.lengths.tolist() == [3, 0, 2]
    assert packed.max_length == 3
    assert len(packed) == 3
    assert packed.dim == 4
    for actual, item in zip(packed, items, strict=True):
        assert torch.equal(actual, item)


@pytest.mark.parametrize("nothing", [torch.zeros(0, 4), torch.zeros(0), np.zeros((0, 9)), []], ids=repr)
def test_an_empty_item_need_not_have_a_dim(nothing: object) -> None:
    for items in ([nothing, torch.ones(2, 4)], [torch.ones(2, 4), nothing]):
        packed = PackedTokens.from_list(items)
        assert packed.tokens.shape == (2, 4)
        assert sorted(packed.lengths.tolist()) == [0, 2]
    assert PackedTokens.from_list([nothing]).lengths.tolist() == [0]
    assert len(PackedTokens.from_list([])) == 0


def test_from_list_is_differentiable() -> None:
    items = [torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)]
    PackedTokens.from_list(items).tokens.sum().backward()
    assert torch.equal(items[0].grad, torch.ones(3, 4))


def test_padded_is_a_view() -> None:
    tokens = torch.randn(3, 5, 4)
    packed = PackedTokens.from_padded(tokens)
    assert shares_memory(packed.tokens, tokens)
    assert packed.starts.tolist() == [0, 5, 10]
    assert packed.lengths.tolist() == [5, 5, 5]
    columns = torch.randn(3, 5, 9)[:, :, 2:6]
    assert shares_memory(PackedTokens.from_padded(columns).tokens, columns)


@pytest.mark.parametrize(
    ("mask", "starts", "lengths", "copies"),
    [
        ([[1, 1, 0], [1, 0, 0]], [0, 3], [2, 1], False),
        ([[0, 1, 1], [0, 0, 1]], [1, 5], [2, 1], False),
        ([[0, 1, 0], [0, 0, 0]], [1, 3], [1, 0], False),
        ([[1, 0, 1], [1, 1, 1]], [0, 3], [2, 3], True),
    ],
    ids=["right", "left", "empty", "holes"],
)
def test_masks(mask: list[list[int]], starts: list[int], lengths: list[int], copies: bool) -> None:
    tokens, keep = torch.randn(2, 3, 4), torch.tensor(mask).bool()
    packed = PackedTokens.from_padded(tokens, keep)
    assert packed.starts.tolist() == starts
    assert packed.lengths.tolist() == lengths
    assert shares_memory(packed.tokens, tokens) != copies
    for item, rows, kept in zip(packed, tokens, keep, strict=True):
        assert torch.equal(item, rows[kept])


def test_holes_are_closed_differentiably() -> None:
    tokens = torch.randn(1, 3, 4, requires_grad=True)
    packed = PackedTokens.from_padded(tokens, torch.tensor([[True, False, True]]))
    packed[0].sum().backward()
    assert tokens.grad[0, :, 0].tolist() == [1, 0, 1]


def test_nested_is_a_view() -> None:
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged)
    packed = PackedTokens.from_nested(nested)
    assert packed.starts.tolist() == [0, 2]
    assert packed.lengths.tolist() == [2, 3]
    assert shares_memory(packed.tokens, nested.values())


def test_nested_with_gaps() -> None:
    padded = torch.randn(2, 5, 4)
    nested = torch.nested.narrow(padded, 1, torch.tensor([0, 1]), torch.tensor([2, 3]), layout=torch.jagged)
    packed = PackedTokens.from_nested(nested)
    assert torch.equal(packed[0], padded[0, :2])
    assert torch.equal(packed[1], padded[1, 1:4])


def test_slices_share_rows() -> None:
    packed = PackedTokens.from_padded(torch.randn(4, 3, 2))
    some = packed[1:3]
    assert len(some) == 2
    assert some.tokens is packed.tokens
    assert torch.equal(some[0], packed[1])
    assert torch.equal(packed[-1], packed[3])
    assert len(packed[4:]) == 0


@pytest.mark.parametrize("step", [2, 3])
def test_slices_with_a_step_are_scored(backend: str, step: int) -> None:
    queries, documents = embeddings([3, 5], 8), embeddings([4, 9, 1, 7, 2, 6], 8)
    packed = PackedTokens.from_list(documents)
    assert_scores(cf.maxsim(queries, packed[1::step], backend=backend), queries, documents[1::step])
    assert_scores(cf.maxsim(packed[::step], packed[1::step], backend=backend), documents[::step], documents[1::step])


def test_to() -> None:
    packed = PackedTokens.from_padded(torch.randn(4, 3, 2))
    assert packed.to("cpu") is packed
    assert packed.to(dtype=torch.float32) is packed
    half = packed.to(dtype=torch.float16)
    assert half.dtype == torch.float16
    assert torch.equal(half.tokens, packed.tokens.half())
    assert packed.to("meta").starts.device.type == "meta"


def test_with_tokens() -> None:
    packed = PackedTokens.from_padded(torch.randn(4, 3, 2))
    wider = packed.with_tokens(packed.tokens @ torch.randn(2, 7))
    assert wider.dim == 7
    assert wider.starts is packed.starts


def test_repr() -> None:
    packed = PackedTokens.from_padded(torch.randn(4, 3, 2))
    assert repr(packed) == "PackedTokens(4 items, 12 rows, dim 2, torch.float32, cpu)"


def test_any_integer_offsets() -> None:
    packed = PackedTokens(torch.randn(6, 2), torch.tensor([4, 0], dtype=torch.int32), torch.tensor([2, 3]))
    assert packed.starts.dtype == torch.int64
    assert packed.max_length == 3


def test_only_padded_tensors_without_a_mask_have_zero_row_padding() -> None:
    tokens = torch.randn(2, 3, 4)
    mask = torch.ones(2, 3)
    assert lower(tokens, None, "a")[1]
    assert lower(tokens[0], None, "a")[1]
    assert lower(tokens.numpy(), None, "a")[1]
    assert not lower(tokens, mask, "a")[1]
    assert not lower(list(tokens), None, "a")[1]
    assert not lower(PackedTokens.from_padded(tokens), None, "a")[1]


def test_arrays_share_memory() -> None:
    array = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    packed, _ = lower(array, None, "a")
    assert packed.tokens.data_ptr() == array.ctypes.data


@pytest.mark.parametrize("chunk_elements", [1, 20, 50, 10**6])
def test_parts_for_another_device_hold_every_item_once(chunk_elements: int) -> None:
    """Documents move to ``device=`` in pieces: in order, with few rows that belong to no item."""
    packed = PackedTokens.from_list([torch.randn(n, 4) for n in (3, 0, 7, 1, 2, 9)])
    parts = list(parts_of(packed, chunk_elements))
    items = [item for part in parts for item in part]
    assert len(items) == len(packed)
    assert all(torch.equal(item, original) for item, original in zip(items, packed, strict=True))
    for part in parts:
        assert len(part) == 1 or part.tokens.numel() <= chunk_elements
        assert part.max_length == max(part.lengths.tolist())  # torch.ops refuse one that exceeds the rows
    assert sum(part.tokens.shape[0] for part in parts) == packed.tokens.shape[0]


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches on the CPU get an order, as batches on a GPU have it."""
    monkeypatch.setattr(packed_module, "_ORDERED_ON", ("cuda", "cpu"))


@pytest.mark.usefixtures("ordered")
def test_the_order_is_longest_first() -> None:
    items = [torch.randn(n, 4) for n in (2, 0, 5, 2, 5, 1)]
    by_list = PackedTokens.from_list(items)
    by_hand = PackedTokens(by_list.tokens, by_list.starts, by_list.lengths)
    mask = torch.arange(5) < by_list.lengths[:, None]
    by_mask = PackedTokens.from_padded(torch.nn.utils.rnn.pad_sequence(items, batch_first=True), mask)
    other_rows = by_list.with_tokens(torch.randn(len(by_list.tokens), 7))
    for packed in (by_list, by_hand, by_mask, other_rows, by_list.quantize("int8"), by_list.to(dtype=torch.float16)):
        order = packed._order
        assert order is not None and order.dtype == torch.int32
        assert packed.lengths[order].tolist() == [5, 5, 2, 2, 1, 0]
        assert sorted(order.tolist()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.usefixtures("ordered")
def test_nothing_is_sorted_in_vain() -> None:
    """Items of one length have no order, nor has a batch that exists for one call only."""
    same = [torch.randn(3, 4) for _ in range(4)]
    by_list = PackedTokens.from_list(same)
    assert by_list._order is None
    assert PackedTokens(by_list.tokens, by_list.starts, by_list.lengths)._order is None
    padded = torch.randn(3, 5, 4)
    assert PackedTokens.from_padded(padded)._order is None
    assert lower(padded, torch.tensor([[1, 1, 0, 0, 0]]), "b")[0]._order is None
    assert PackedTokens.from_list([*same, torch.randn(1, 4)])[1:]._order is None
    assert PackedTokens.from_list([])._order is None


def test_the_order_is_made_on_the_way_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only there: no kernel of a CPU uses an order."""
    monkeypatch.setattr(packed_module, "_ORDERED_ON", ("meta",))
    ragged = PackedTokens.from_list([torch.randn(n, 4) for n in (2, 5)])
    assert ragged._order is None
    moved = ragged.to("meta")._order
    assert moved is not None and moved.device.type == "meta" and moved.shape == (2,)
    assert PackedTokens.from_list([torch.randn(2, 4)] * 2).to("meta")._order is None
    assert PackedTokens.from_list([]).to("meta")._order is None


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 31])
def test_a_mask_of_runs_costs_no_copy(length: int) -> None:
    """Every run of every length and place, words of eight bytes and their rests alike."""
    ends = torch.combinations(torch.arange(length + 1), 2)
    position = torch.arange(length)
    mask = torch.cat([torch.zeros(1, length, dtype=torch.bool), (position >= ends[:, :1]) & (position < ends[:, 1:])])
    tokens = torch.randn(len(mask), length, 3)
    packed = PackedTokens.from_padded(tokens, mask)
    assert packed.tokens.data_ptr() == tokens.data_ptr()
    assert packed.lengths.tolist() == mask.sum(1).tolist()
    assert all(torch.equal(item, rows[keep]) for item, rows, keep in zip(packed, tokens, mask, strict=True))


@pytest.mark.parametrize("hole", range(1, 17))
def test_a_mask_with_a_hole_is_closed(hole: int) -> None:
    mask = torch.ones(3, 18, dtype=torch.bool)
    mask[1, hole] = False
    tokens = torch.randn(3, 18, 2)
    packed = PackedTokens.from_padded(tokens, mask)
    assert all(torch.equal(item, rows[keep]) for item, rows, keep in zip(packed, tokens, mask, strict=True))


def test_any_byte_but_0_keeps_a_row() -> None:
    mask = torch.tensor([[0, 2, 255, 128, 0, 0, 0, 0, 0, 0]], dtype=torch.uint8).view(torch.bool)
    tokens = torch.randn(1, 10, 2)
    assert torch.equal(PackedTokens.from_padded(tokens, mask)[0], tokens[0, 1:4])


def test_batches_of_one_shape_share_nothing() -> None:
    """A call keeps the offsets of a padded tensor for the next call; no caller gets them."""
    q, d = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    scores = cf.maxsim(q, d)
    packed = PackedTokens.from_padded(d)
    packed.starts.zero_(), packed.lengths.zero_()
    with torch.inference_mode():
        assert torch.equal(cf.maxsim(q, d), scores)
    assert torch.equal(cf.maxsim(q.requires_grad_(), d), scores)
    cf.maxsim(q, d).sum().backward()


@pytest.mark.parametrize("tokens", [torch.ones(4, 3).to_sparse(), torch.ones(4, 3, dtype=torch.int32)])
def test_tokens_of_another_kind_are_refused(tokens: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="tokens must be"):
        cf.PackedTokens(tokens, torch.tensor([0]), torch.tensor([4]))
    with pytest.raises(TypeError, match="tokens must be"):
        cf.PackedTokens(torch.ones(4, 3), torch.tensor([0]), torch.tensor([4])).with_tokens(tokens)


@pytest.mark.parametrize("field", ["tokens", "starts", "lengths", "scales", "max_length"])
def test_fields_are_read_only(field: str) -> None:
    for packed in (PackedTokens.from_list([torch.randn(2, 4)]), PackedTokens.from_padded(torch.randn(1, 2, 4))):
        with pytest.raises(AttributeError):
            setattr(packed, field, getattr(packed, field))


def test_the_offsets_are_copies() -> None:
    starts, lengths = torch.tensor([0, 2]), torch.tensor([2, 3])
    packed = PackedTokens(torch.randn(5, 4), starts, lengths)
    starts.fill_(10**12), lengths.fill_(10**12)
    assert packed.starts.tolist() == [0, 2]
    assert packed.lengths.tolist() == [2, 3]


def test_equal_items_are_numbered_when_asked() -> None:
    """What a padded batch on a GPU becomes for the length of one call."""
    padded = torch.randn(3, 5, 4)
    lazy, eager = EqualTokens(padded), cf.PackedTokens.from_padded(padded)
    assert (len(lazy), lazy.rows, lazy.dim, lazy.max_length) == (3, 15, 4, 5)
    for name in ("tokens", "starts", "lengths"):
        assert torch.equal(getattr(lazy, name), getattr(eager, name))
    assert torch.equal(lazy[-1], padded[2])
    assert torch.equal(lazy[1:].starts, eager.starts[1:])
    assert torch.equal(cf.maxsim(lazy, lazy), cf.maxsim(eager, eager))


def test_to_takes_a_dtype_as_a_tensor_does() -> None:
    packed = cf.PackedTokens.from_list([torch.randn(3, 4)])
    assert torch.equal(packed.to(torch.float16).tokens, packed.tokens.half())
