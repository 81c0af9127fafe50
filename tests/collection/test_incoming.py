"""What Collection.add takes: every form gives the same documents, and what does not fit is refused."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from six_documents import DIM, IDS, check, ragged, same_length
from torch import Tensor

import colbert_fast as cf
from colbert_fast.collection import changes, incoming


def padded(items: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(items, batch_first=True)


def reordered(items: list[Tensor]) -> cf.PackedTokens:
    """Return items that do not follow one another, as `encode_packed` does."""
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    return cf.PackedTokens.from_list([items[i] for i in order])[order.argsort()]


FORMS: dict[str, Callable[[list[Tensor]], Any]] = {
    "a list": lambda items: items,
    "a tuple": tuple,
    "arrays": lambda items: [item.numpy() for item in items],
    "numbers": lambda items: [item.tolist() for item in items],
    "packed": cf.PackedTokens.from_list,
    "packed in another order": reordered,
    "padded": padded,
    "a padded array": lambda items: padded(items).numpy(),
    "float64": lambda items: [item.double() for item in items],
    "nested": lambda items: torch.nested.nested_tensor(items, layout=torch.jagged),
    "read-only": lambda items: [np.frombuffer(item.numpy().tobytes(), np.float32).reshape(-1, DIM) for item in items],
    "an iterator": iter,
    "batches": lambda items: iter([items[:1], cf.PackedTokens.from_list(items[1:3]), padded(items[3:5]), items[5]]),
    "a list of batches": lambda items: [cf.PackedTokens.from_list(items[:4]), [item.tolist() for item in items[4:]]],
    "a map": lambda items: map(torch.clone, items),
}


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str, few: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if few:
        monkeypatch.setattr(incoming, "_NUMBERS", 3 * DIM)
        monkeypatch.setattr(incoming, "_ITEMS", 2)
        monkeypatch.setattr(changes, "SEGMENT_BYTES", 4 * 4 * DIM)
    described = [{"place": i} if i % 2 else None for i in range(6)]
    for items in (ragged(), same_length()):
        with cf.Collection(tmp_path / str(len(items[0]))) as collection:
            assert collection.add(IDS, FORMS[form](items), described) == 6
            check(collection, items)
            assert [collection.metadata(name) for name in IDS] == described
            collection.add(iter(f"{name}+" for name in IDS), FORMS[form](items), iter(described))
            assert collection.ids("place = 3") == ["d3", "d3+"]


def test_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "_NUMBERS", 3 * DIM)
    packed = cf.PackedTokens.from_list(ragged()).quantize()
    with cf.Collection(tmp_path / "c", exact="float32") as collection:
        collection.add(IDS, packed)
        check(collection, [packed[i] for i in range(6)])
        integers = torch.randint(-9, 9, (2, 3, DIM), dtype=torch.int8)
        collection.add(["a", "b"], integers)
        assert torch.equal(collection["b"], integers[1].float())


@pytest.mark.cuda
@pytest.mark.parametrize("form", ["a list", "packed", "padded", "packed in another order"])
def test_from_a_gpu(form: str, tmp_path: Path) -> None:
    on_gpu = FORMS[form]([item.cuda() for item in ragged()])
    with cf.Collection(tmp_path / "c") as collection:
        collection.add(IDS, on_gpu)
        check(collection, ragged())


def test_one_matrix_is_one_document(tmp_path: Path) -> None:
    with cf.Collection(tmp_path / "c") as collection:
        collection.add(["d"], ragged()[1])
        assert torch.equal(collection["d"].float(), ragged()[1])


def test_arrays_with_lengths(tmp_path: Path) -> None:
    items = ragged()
    np.save(tmp_path / "tokens.npy", torch.cat(items).numpy())
    np.savez(tmp_path / "all.npz", tokens=torch.cat(items).numpy(), lengths=[len(item) for item in items])
    lengths = [len(item) for item in items]
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    whole = np.load(tmp_path / "all.npz")
    for i, (tokens, counts) in enumerate([(mapped, lengths), (whole["tokens"], whole["lengths"].astype(np.int32))]):
        with cf.Collection(tmp_path / str(i)) as collection:
            collection.add(IDS, tokens, lengths=counts)
            check(collection, items)
            for wrong, said in (
                ({"lengths": [15, 0, 0, 0, 0, 1]}, "must add up to the 15 rows of embeddings; they add up to 16"),
                ({"lengths": [16, -1, 0, 0, 0, 0]}, "item 0 has start 0 and length 16; tokens has 15 rows"),
                ({"lengths": [15.0]}, r"lengths must be \[n\] integers; got torch.float32 of shape \[1\]"),
                ({"lengths": torch.tensor(lengths, device="meta")}, "lengths must have memory"),
                ({"lengths": []}, "must add up to the 15 rows of embeddings; they add up to 0"),
                ({"lengths": 15}, "lengths must be a tensor, a numpy array or a list; got int"),
            ):
                with pytest.raises((ValueError, TypeError), match=said):
                    collection.add(IDS, tokens, **wrong)
    with cf.Collection(tmp_path / "0") as collection:
        with pytest.raises(ValueError, match=r"must be \[total, dim\]"):
            collection.add(["x"], np.zeros((1, 3, DIM)), lengths=[3])
        with pytest.raises(ValueError, match="embeddings must have memory"):
            collection.add(["x"], torch.ones(3, DIM, device="meta"), lengths=[3])
        assert collection.add([], np.zeros((0, DIM)), lengths=[]) == 0
        with pytest.raises(ValueError, match=r"are one document, and there are 6 ids.* give lengths"):
            collection.add(IDS, mapped)
        with pytest.raises(ValueError, match=r"give numpy.load\(path, mmap_mode='r'\), and lengths"):
            collection.add(IDS, tmp_path / "tokens.npy", lengths=lengths)


def test_documents_without_tokens_may_have_any_dim(tmp_path: Path) -> None:
    """As in a list beside other documents."""
    first = [[], [torch.ones(2, DIM)], cf.PackedTokens.from_list([torch.empty(0, 9)])]
    for i, batches in enumerate([first, iter(first)]):
        with cf.Collection(tmp_path / str(i)) as collection:
            collection.add(["a", "b", "c"], batches)
            assert [collection[name].shape for name in "abc"] == [(0, DIM), (2, DIM), (0, DIM)]
    with cf.Collection(tmp_path / "c") as collection:
        collection.add(IDS, ragged())
        collection.add(["a", "b"], [[], torch.empty(0)])
        collection.add(["c", "d"], iter([torch.empty(0, 9), np.empty((0, 0))]))
        assert [collection[name].shape for name in "abcd"] == [(0, DIM)] * 4
        collection.verify()


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    packed = reordered(ragged())
    packed.save(path)
    with cf.Collection(tmp_path / "c") as collection:
        collection.add(IDS, path)
        check(collection, ragged())
        with pytest.raises(ValueError, match=f"{path}: ids is missing"):
            collection.add(None, path)
        with pytest.raises(FileNotFoundError):
            collection.add(IDS, str(tmp_path / "absent"))
        with pytest.raises(TypeError, match="ids can be None only for a file that holds ids"):
            collection.add(None, packed)


def test_rows_of_zeros_in_padded_tensors_are_padding(tmp_path: Path) -> None:
    """As in every score: a collection finds what maxsim finds."""
    tokens = torch.randn(3, 4, DIM)
    tokens[0, 2:] = 0
    tokens[1, 1] = 0
    tokens[2] = 0
    with cf.Collection(tmp_path / "c", exact="float32") as collection:
        collection.add(IDS[:3], tokens)
        assert [len(collection[name]) for name in IDS[:3]] == [2, 3, 0]
        assert torch.equal(collection["d1"], tokens[1, [0, 2, 3]])
        collection.add(["list"], [tokens[0]])  # in a list every row is a token
        assert len(collection["list"]) == 4


def items_until(stop: int, error: BaseException) -> Iterator[Tensor]:
    yield from ragged()[:stop]
    raise error


WRONG: dict[str, tuple[tuple[Any, ...], str]] = {
    "an id too few": ((IDS[:5], ragged()), "ids must have one entry for each of 6 documents; got 5"),
    "an id too many": (([*IDS, "x"], ragged()), "ids must have one entry for each of 6 documents; got 7"),
    "an iterator that ends": ((iter(IDS[:5]), ragged()), "ids must have one entry for each document; got 5, and there"),
    "an iterator that goes on": ((iter([*IDS, "x"]), ragged()), "ids must have one entry for each of 6 documents; the"),
    "metadata too few": ((IDS, ragged(), [{}]), "metadata must have one entry for each of 6 documents; got 1"),
    "metadata that end": ((IDS, ragged(), iter([{}])), "metadata must have one entry for each document; got 1, and"),
    "metadata that go on": ((IDS, ragged(), iter([{}] * 7)), "metadata must have one entry for each of 6 documents;"),
    "one string": (
        ("abcdef", ragged()),
        "ids must be a list or an iterator, with one entry for each document; got one str",
    ),
    "one dict": ((IDS, ragged(), {}), "metadata must be a list or an iterator, with one entry for each document; got"),
    "numbers": ((range(6), ragged()), r"ids must be str; ids\[0\] is int"),
    "an empty id": ((["a", "b", "", "d", "e", "f"], ragged()), r"ids must not be empty; ids\[2\] is"),
    "twice": ((["a", "b", "c", "d", "e", "a"], ragged()), "ids must differ; 'a' comes twice"),
    "no JSON": ((IDS, ragged(), [{"a": {1}}] * 6), r"metadata\[0\] must be what JSON can say"),
    "no dict": ((IDS, ragged(), [None] * 5 + [3]), r"metadata\[5\] must be a dict"),
    "text": ((IDS, ["a"] * 6), r"embeddings\[0\] must be"),
    "a number": ((IDS, 3), "embeddings must be PackedTokens, a tensor, an array, a list or an iterator; got int"),
    "a dict of documents": ((IDS, {"a": ragged()}), "embeddings must be PackedTokens, .* got dict"),
    "a vector": ((IDS[:1], torch.ones(3)), "embeddings must be a list of"),
    "a vector in a list": ((IDS[:1], [torch.ones(3)]), r"embeddings\[0\] must be \[length, dim\]; got shape \[3\]"),
    "another dim": ((IDS[:2], [torch.ones(1, 4), torch.ones(1, 5)]), "all items need the same dim"),
    "on meta": ((IDS[:1], [torch.ones(1, 4, device="meta")]), "embeddings must have memory; they are on .* 'meta'"),
    "a padded batch on meta": ((IDS, torch.ones(6, 2, 4, device="meta")), "embeddings must have memory"),
    "not finite": ((IDS[:2], [torch.ones(1, 4), torch.full((2, 4), torch.nan)]), "token 0 of document 'd1' is not"),
    "an error": ((IDS, items_until(5, OSError("the net"))), "the net"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_nothing_is_added_of_what_does_not_fit(kind: str, tmp_path: Path) -> None:
    arguments, said = WRONG[kind]
    with cf.Collection(tmp_path / "c") as collection:
        with pytest.raises((TypeError, ValueError, OSError), match=said):
            collection.add(*arguments)
        assert len(collection) == 0 and len(list((tmp_path / "c").glob("*.safetensors*"))) == 0


def test_an_error_of_a_database_of_the_user_stays_what_it_is(tmp_path: Path) -> None:
    locked = sqlite3.OperationalError("database is locked")

    def ids() -> Iterator[str]:
        yield from IDS[:4]
        raise locked

    with cf.Collection(tmp_path / "c") as collection:
        for embeddings in (ragged(), iter(ragged())):
            with pytest.raises(sqlite3.OperationalError, match="database is locked") as raised:
                collection.add(ids(), embeddings)
            assert raised.value is locked
        assert len(collection) == 0


def test_the_place_in_a_long_iterator_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "_ITEMS", 2)
    with_a_number: Any = ["a", "b", "c", 3, "e", "f"]
    with cf.Collection(tmp_path / "c") as collection:
        with pytest.raises(ValueError, match=r"embeddings\[4:\]\[1\] must be \[length, dim\]"):
            collection.add(IDS, [*same_length()[:5], torch.ones(3)])
        with pytest.raises(TypeError, match=r"ids\[2:\]\[1\] is int"):
            collection.add(with_a_number, same_length())
        with pytest.raises(ValueError, match=r"ids\[3\] is"):
            collection.add(["a", "b", "c", "", "e", "f"], same_length())


def test_an_error_leaves_the_segments_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "SEGMENT_BYTES", 6 * 4 * DIM)
    monkeypatch.setattr(incoming, "_ITEMS", 1)
    with cf.Collection(tmp_path / "c") as collection:
        with pytest.raises(OSError, match="the net"):
            collection.add(IDS, items_until(5, OSError("the net")))
        assert collection.ids() == IDS[:4]
        collection.verify()


def test_an_iterator_holds_one_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "SEGMENT_BYTES", 4 * DIM * 10)
    grouped = changes.grouped
    before: list[weakref.ref[Any]] = []

    def watched(batches: Any) -> Iterator[Any]:
        for group in grouped(batches):
            assert all(ref() is None for ref in before)
            before[:] = [weakref.ref(batch) for batch in group]
            yield group

    monkeypatch.setattr(changes, "grouped", watched)
    monkeypatch.setattr(incoming, "_ITEMS", 1)
    with cf.Collection(tmp_path) as collection:
        collection.add(iter(map(str, range(20))), (torch.ones(5, DIM) for _ in range(20)))
        assert len(collection._current().files) == 10


def test_tokens_with_a_minus_that_torch_has_only_noted(tmp_path: Path) -> None:
    packed = cf.PackedTokens.from_list(ragged())
    with cf.Collection(tmp_path / "c", exact="float32") as collection:
        collection.add(IDS, packed.with_tokens(torch._neg_view(-packed.tokens)))
        check(collection, ragged())
