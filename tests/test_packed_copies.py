"""PackedTokens saved, copied, sent and converted: a part takes its own rows along, and a file is checked."""

from __future__ import annotations

import copy
import io
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, embeddings
from torch import Tensor

import colbert_fast as cf
from colbert_fast import PackedTokens
from colbert_fast import packed as packed_module
from colbert_fast._lowering import EqualTokens, TokenList
from colbert_fast._maxsim import parts_of

# Before 2.6 torch warned whenever pickle loaded a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")

LENGTHS = [5, 0, 9, 5, 1] * 20
DIM = 64


def batches() -> dict[str, PackedTokens]:
    whole = PackedTokens.from_list(embeddings(LENGTHS, DIM))
    return {
        "slice": whole[3:7],
        "steps": whole[10:40:9],
        "reversed": whole[7:3:-1],
        "list": whole[[90, 4, 2, 2]],
        "mask": whole[[i % 50 == 2 for i in range(100)]],
        "tensor": whole[torch.tensor([-1, 0])],
        "nothing": whole[:0],
        "rowless": whole[[1, 6]],
        "slice of a slice": whole[50:][3:6],
        "int8": whole.quantize()[40:44],
        "other rows": whole.with_tokens(torch.randn(whole.rows, 3 * DIM))[8:11],
        "other rows of a part": whole[8:11].with_tokens(torch.randn(whole.rows, 3 * DIM)),
        "shared rows": PackedTokens(torch.randn(500, DIM), torch.arange(100), torch.full((100,), 9))[20:30],
        "bfloat16": whole.to(dtype=torch.bfloat16)[2:9],
        "gradient": whole.with_tokens(torch.randn(whole.rows, DIM, requires_grad=True))[4:6],
    }


def by_torch_save(value: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True, **options)


def converted(batch: PackedTokens) -> PackedTokens:
    return copy.copy(batch) if batch.scales is not None else batch.to(dtype=torch.float64).to(dtype=batch.dtype)


COPIES: dict[str, Callable[[PackedTokens], PackedTokens]] = {
    "pickle": lambda batch: pickle.loads(pickle.dumps(batch)),
    "old pickle": lambda batch: pickle.loads(pickle.dumps(batch, protocol=2)),
    "torch.save": by_torch_save,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "to": converted,
    "cat": lambda batch: PackedTokens.cat([batch]),
}


def same_items(some: PackedTokens, expected: PackedTokens) -> None:
    assert len(some) == len(expected) and some.dtype == expected.dtype
    assert all(torch.equal(a, b) for a, b in zip(some, expected, strict=True))


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("part", batches())
def test_a_copy_of_a_part_has_its_own_rows_only(name: str, part: str) -> None:
    batch = batches()[part]
    made = COPIES[name](batch)
    same_items(made, batch)
    total = int(batch.lengths.sum())
    span = int((batch.starts + batch.lengths).max() - batch.starts.min()) if total else 0
    assert made.rows <= min(total, span) < batch.rows
    assert (made.scales is None) == (batch.scales is None)
    assert made.scales is None or len(made.scales) == made.rows
    assert made.max_length == max(batch.lengths.tolist(), default=0)
    assert torch.equal(made.lengths, batch.lengths)
    real = [i for i, length in enumerate(batch.lengths.tolist()) if length]
    query = torch.randn(1, 3, batch.dim, dtype=torch.float32 if batch.scales is not None else batch.dtype)
    assert torch.equal(cf.maxsim(query, made[real]), cf.maxsim(query, batch[real]))


@pytest.mark.parametrize("name", ["pickle", "old pickle", "torch.save", "deepcopy"])
@pytest.mark.parametrize("part", batches())
def test_the_memory_of_a_copy_is_its_own(name: str, part: str) -> None:
    batch = batches()[part]
    made = COPIES[name](batch)
    for field in ("tokens", "starts", "lengths", "scales"):
        mine, given = getattr(made, field), getattr(batch, field)
        if mine is not None:
            assert mine.untyped_storage().nbytes() == mine.nbytes
            assert mine.numel() == 0 or mine.untyped_storage().data_ptr() != given.untyped_storage().data_ptr()


def size(batch: PackedTokens) -> int:
    file = io.BytesIO()
    torch.save(batch, file)
    assert len(pickle.dumps(batch)) < file.tell() + 2000
    return file.tell()


@pytest.mark.parametrize("part", batches())
def test_a_file_is_as_large_as_the_rows_of_the_items(part: str) -> None:
    batch = batches()[part]
    rows = int(batch.lengths.sum())
    assert size(batch) < rows * batch.dim * batch.dtype.itemsize + 16 * len(batch) + 4 * rows + 5000


def test_views_of_larger_tensors_are_saved_alone() -> None:
    large = torch.randn(1000, 5, DIM)
    for batch in (PackedTokens.from_padded(large[3:5]), PackedTokens.from_padded(large[3:5, :, 7:9])):
        assert size(batch) < 10_000
        for made in (by_torch_save(batch), copy.deepcopy(batch)):
            same_items(made, batch)
            assert made.tokens.untyped_storage().nbytes() == batch.tokens.nbytes


def test_whole_batches_keep_their_rows() -> None:
    mask = torch.arange(6) < torch.tensor([[2], [0], [5], [1]])
    whole = PackedTokens.from_padded(torch.randn(4, 6, DIM), mask)
    for name in ("pickle", "torch.save", "copy", "deepcopy", "to"):
        made = COPIES[name](whole)
        assert made.rows == 24
        assert made.with_tokens(torch.randn(24, 3)).dim == 3
    assert whole.quantize().rows == 24
    assert whole[1:].rows == 24 and whole[1:].with_tokens(torch.randn(24, 3)).rows == 24
    assert copy.copy(whole).tokens is whole.tokens


@pytest.mark.parametrize("part", [name for name in batches() if name not in ("int8", "bfloat16")])
def test_a_part_is_quantised_alone(part: str) -> None:
    batch = batches()[part]
    small = batch.quantize()
    total = int(batch.lengths.sum())
    assert small.rows <= total
    if total:
        whole = PackedTokens(batch.tokens, batch.starts, batch.lengths).quantize()
        same_items(small, whole)


def test_rows_of_others_do_not_matter() -> None:
    rows = torch.randn(10, 4)
    rows[7] = float("nan")
    whole = PackedTokens(rows, torch.tensor([0, 5]), torch.tensor([5, 5]))
    assert not whole[:1].quantize()[0].isnan().any()
    with pytest.raises(ValueError, match="item 0 has one"):
        whole[1:].quantize()


def test_an_item_of_a_part_that_does_not_fit_is_not_read() -> None:
    """Somebody wrote to the offsets, which is not allowed."""
    for starts, lengths in ((10**12, 5), (-(10**12), 5), (0, 10**12), (0, -(10**12)), (-3, 5)):
        whole = PackedTokens.from_list(embeddings([5, 5, 5], 4))
        part = whole[[1, 0, 2]]
        part.starts[1], part.lengths[1] = starts, lengths
        for act in (lambda part: part.to(dtype=torch.float16), PackedTokens.quantize, pickle.dumps, copy.deepcopy):
            with pytest.raises(ValueError, match="an item lies outside of the rows"):
                act(part)


def sent(batch: PackedTokens) -> PackedTokens:
    """Through the pickler of torch.multiprocessing, in this process."""
    from multiprocessing.reduction import ForkingPickler

    import torch.multiprocessing  # noqa: F401  registers how tensors are shared

    return pickle.loads(ForkingPickler.dumps(batch))


@pytest.mark.parametrize("part", batches())
def test_a_part_is_shared_alone(part: str) -> None:
    batch = batches()[part]
    made = sent(batch)
    same_items(made, batch)
    assert made.tokens.untyped_storage().nbytes() <= max(1, int(batch.lengths.sum())) * batch.dim * batch.dtype.itemsize
    assert not batch.tokens.is_shared()


def _serve(inbox: Any, outbox: Any) -> None:
    batch = inbox.get(timeout=60)
    outbox.put((batch.rows, cf.maxsim(torch.ones(1, 2, DIM), batch).tolist()))


def test_another_process_gets_a_part() -> None:
    context = torch.multiprocessing.get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    process = context.Process(target=_serve, args=(inbox, outbox), daemon=True)
    process.start()
    part = batches()["slice"]
    inbox.put(part)
    try:
        rows, scores = outbox.get(timeout=120)
    except queue.Empty:
        pytest.fail("the other process did not answer")
    process.join(60)
    with pytest.warns(UserWarning, match="without a token"):
        assert scores == cf.maxsim(torch.ones(1, 2, DIM), part).tolist()
    assert rows == int(part.lengths.sum())


# What a file says


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("gradient", [False, True])
def test_a_saved_batch_comes_back(dtype: torch.dtype, gradient: bool) -> None:
    whole = PackedTokens.from_list(embeddings([3, 0, 7], 6, dtype))
    whole = whole.with_tokens(whole.tokens.requires_grad_(gradient))
    for batch in (whole, whole[1:], whole[[2, 2]], whole[:0], PackedTokens.from_list([])):
        for made in (by_torch_save(batch), by_torch_save({"a": [batch]})["a"][0], pickle.loads(pickle.dumps(batch))):
            assert type(made) is PackedTokens
            same_items(made, batch)
            assert made.max_length == max(batch.lengths.tolist(), default=0)
            assert made.tokens.requires_grad == batch.tokens.requires_grad and made.tokens.is_leaf


def test_a_saved_int8_batch_comes_back() -> None:
    whole = PackedTokens.from_list(embeddings([3, 0, 7], 6)).quantize()
    for batch in (whole, whole[1:], whole[[2, 2, 0]], whole[:0]):
        made = by_torch_save(batch)
        same_items(made, batch)
        assert made.scales is not None and made.dtype == torch.int8


def test_a_batch_without_memory_comes_back() -> None:
    for batch in (PackedTokens.from_list(embeddings([3, 4], 6)), PackedTokens.from_list(embeddings([3], 6)).quantize()):
        assert by_torch_save(batch, map_location="meta").tokens.is_meta
        for copied in (copy.deepcopy, lambda batch: pickle.loads(pickle.dumps(batch))):
            made = copied(batch.to("meta"))
            assert made.tokens.is_meta and made.tokens.shape == batch.tokens.shape
            assert made.max_length >= batch.max_length and made.dtype == batch.dtype


def test_what_a_call_lowers_to_is_saved_as_what_it_stands_for() -> None:
    items = embeddings([3, 7], 6)
    in_place = TokenList(items, torch.tensor([3, 7]), 7, items[0][:0])
    for lowered in (in_place, EqualTokens(torch.stack([items[0]] * 2))):
        for copied in (by_torch_save, copy.copy, copy.deepcopy):
            assert type(copied(lowered)) is PackedTokens
            same_items(copied(lowered), lowered)


def test_the_order_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "_ORDERED_ON", ("cuda", "cpu"))
    whole = PackedTokens.from_list(embeddings([3, 0, 7, 7], 6))
    for batch, expected in ((whole, [7, 7, 3, 0]), (whole[1:3], [7, 0])):
        for copied in (by_torch_save, copy.deepcopy, copy.copy, lambda batch: batch.to(dtype=torch.float16)):
            made = copied(batch)
            assert made._order is not None
            assert made.lengths[made._order].tolist() == expected


class Forged:
    """Pickles as whatever it is given."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


ROWS = torch.ones(6, 4)
BAD: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "start": ((ROWS, torch.tensor([10**15]), torch.tensor([3])), ValueError, "item 0 has start 1000000000000000"),
    "negative start": ((ROWS, torch.tensor([-1]), torch.tensor([3])), ValueError, "item 0 has start -1"),
    "length": ((ROWS, torch.tensor([0, 2]), torch.tensor([3, 5])), ValueError, "item 1 has start 2 and length 5"),
    "negative length": ((ROWS, torch.tensor([3]), torch.tensor([-2])), ValueError, "item 0 has start 3 and length -2"),
    "overflow": ((ROWS, torch.tensor([2**63 - 1]), torch.tensor([2])), ValueError, "item 0 has start"),
    "other sizes": ((ROWS, torch.tensor([0, 1]), torch.tensor([2])), ValueError, "must be [n] both"),
    "floats": ((ROWS, torch.tensor([0.0]), torch.tensor([2])), TypeError, "starts must be integer"),
    "numbers": ((ROWS, [0], [2]), TypeError, "starts must be a tensor; got list"),
    "flat": ((ROWS[0], torch.tensor([0]), torch.tensor([2])), ValueError, "tokens must be [total, dim]"),
    "integers": ((ROWS.long(), torch.tensor([0]), torch.tensor([2])), TypeError, "or int8 with scales"),
    "no scales": ((ROWS.to(torch.int8), torch.tensor([0]), torch.tensor([2])), TypeError, "int8 tokens need scales"),
    "nan scales": (
        (ROWS.to(torch.int8), torch.tensor([0]), torch.tensor([2]), torch.full((6,), float("nan"))),
        ValueError,
        "scales must be finite and 0 or more",
    ),
    "few scales": (
        (ROWS.to(torch.int8), torch.tensor([0]), torch.tensor([2]), torch.ones(2)),
        ValueError,
        "scales must be [6]",
    ),
    "trusted": ((ROWS, torch.tensor([9]), torch.tensor([9]), None, (9, None)), TypeError, "positional arguments"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_file_is_refused(name: str) -> None:
    arguments, error, message = BAD[name]
    for load in (by_torch_save, lambda forged: pickle.loads(pickle.dumps(forged))):
        with pytest.raises((error, pickle.UnpicklingError)) as raised:
            load(Forged(PackedTokens, arguments))
        assert message in str(raised.value)


def test_fields_that_a_file_sets_are_checked() -> None:
    """A pickle may make an object and set its fields without calling a function of this package."""
    good = PackedTokens.from_list([ROWS])
    state = {"_tokens": ROWS, "_starts": torch.tensor([10**12]), "_lengths": torch.tensor([3]), "_scales": None}
    rest = {"_max_length": 3, "_order": None}
    for made in ((PackedTokens, good._fields()), (PackedTokens.__new__, (PackedTokens,))):
        with pytest.raises((ValueError, pickle.UnpicklingError), match="item 0 has start 1000000000000"):
            pickle.loads(pickle.dumps(Forged(*made, {**state, **rest})))
    with pytest.raises((ValueError, pickle.UnpicklingError), match="item 0 has start 1000000000000"):
        by_torch_save(Forged(PackedTokens, good._fields(), {**state, **rest}))
    right = {**state, **rest, "_starts": torch.tensor([2])}
    made_right = pickle.loads(pickle.dumps(Forged(PackedTokens.__new__, (PackedTokens,), right)))
    assert torch.equal(made_right[0], ROWS[2:5]) and made_right.max_length == 3


def test_a_new_import_is_what_torch_loads() -> None:
    """Notebooks import a package again. Runs in its own process, because the ops of torch call the newest import."""
    code = """
import io, sys, torch, colbert_fast as before
file = io.BytesIO()
torch.save(before.PackedTokens.from_list([torch.randn(3, 4)]), file)
for name in [name for name in sys.modules if name.partition(".")[0] == "colbert_fast"]:
    del sys.modules[name]
import colbert_fast as anew
file.seek(0)
assert anew.PackedTokens is not before.PackedTokens
assert type(torch.load(file, weights_only=True)) is anew.PackedTokens
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Gradients


def test_a_deep_copy_of_a_leaf_is_a_leaf() -> None:
    tokens = torch.randn(10, 4, requires_grad=True)
    whole = PackedTokens(tokens, torch.tensor([0, 5]), torch.tensor([5, 5]))
    for batch, rows in ((whole, 10), (whole[1:], 5), (whole[[1, 0]], 10), (whole[:], 10)):
        made = copy.deepcopy(batch)
        assert made.tokens.is_leaf and made.tokens.requires_grad and made.tokens.shape == (rows, 4)
        made.tokens.sum().backward()
        assert tokens.grad is None
    with torch.no_grad():
        assert copy.deepcopy(whole[1:]).tokens.requires_grad


def test_torch_refuses_a_deep_copy_inside_of_a_graph() -> None:
    whole = PackedTokens.from_list([torch.randn(5, 4, requires_grad=True)] * 2)
    for batch in (whole, whole[1:]):
        with pytest.raises(RuntimeError, match="deepcopy"):
            copy.deepcopy(batch)
        assert pickle.loads(pickle.dumps(batch)).tokens.requires_grad
        with pytest.raises(RuntimeError, match="non-leaf"):
            sent(batch)


def test_gradients_flow_to_the_whole_from_a_converted_part() -> None:
    items = [x.requires_grad_() for x in embeddings([3, 2, 4], 4)]
    whole = PackedTokens.from_list(items)
    for part in (whole[1:], whole[[2, 1]], copy.copy(whole[[2, 1]])):
        for item in items:
            item.grad = None
        part.to(dtype=torch.float64).tokens.sum().backward(retain_graph=True)
        assert items[1].grad is not None and items[1].grad.sum() == 8
        assert items[0].grad is None or not items[0].grad.any()


# Other devices


@pytest.mark.parametrize("part", batches())
def test_documents_travel_in_pieces_with_their_own_rows(part: str) -> None:
    """Documents in any order, of a larger batch, are moved to ``device=`` without the rows between them."""
    batch = batches()[part]
    pieces = list(parts_of(batch, 15 * batch.dim))
    assert [len(item) for piece in pieces for item in piece] == batch.lengths.tolist()
    same_items(PackedTokens.cat(pieces), batch)
    assert all(piece.rows <= 15 for piece in pieces)


def test_nothing_is_asked_of_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item takes as many rows as it may have: the real number is not known without waiting."""
    whole = PackedTokens.from_list(embeddings([3, 70, 5, 1, 9] * 20, 4)).to("meta")
    for part, most in ((whole[3:5], 140), (whole[[1, 1, 2]], 210), (whole[whole.lengths.new_tensor([2])], 70)):
        for made in (part.to(dtype=torch.float16), copy.copy(part)):
            assert len(made) == len(part) and made.rows == most
            assert made.max_length == 70
        assert part[:0].to(dtype=torch.float16).rows == 0
    assert whole[:90].to(dtype=torch.float16).rows == whole.rows


def test_items_with_as_many_rows_as_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values of what parts on another device become."""
    monkeypatch.setattr(PackedTokens, "_askable", lambda self: False)
    floats = PackedTokens.from_list(embeddings(LENGTHS, 4))
    for whole in (floats, floats.quantize()):
        for part in (whole[3:7], whole[[99, 1, 2]], whole[-1:]):
            made = copy.copy(part)
            assert made.rows == 9 * len(part) < whole.rows
            same_items(made, part)
            wide, expected = made.to(dtype=torch.float64), part.to(dtype=torch.float64)
            same_items(wide, expected)
            assert made.to(dtype=torch.float64).rows == made.rows


def test_numpy_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    rows.flags.writeable = False
    whole = PackedTokens.from_list([rows[:3], rows[3:]])
    same_items(by_torch_save(whole[1:]), whole[1:])


def shares(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def test_a_shallow_copy_shares_what_it_can() -> None:
    whole = PackedTokens.from_list(embeddings([3, 2, 4], 4))
    assert shares(copy.copy(whole[1:]).tokens, whole.tokens)
    assert copy.copy(whole[[2, 0]]).rows == 7
