"""Codes that pass through a device: the same bounds, and no slot that is filled while it is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import embeddings
from test_upper import KINDS, codes_of

import colbert_fast as cf
from colbert_fast import _upper
from colbert_fast._codecs import Codes
from colbert_fast._upper import upper_bounds
from colbert_fast.collection import search, streaming
from colbert_fast.packed import PackedTokens

LENGTHS = [7, 0, 30, 1, 64, 3, 90, 12, 0]
CPU = torch.device("cpu")


@pytest.mark.parametrize("slot_bytes", [1, 2000, 2**25])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds(monkeypatch: pytest.MonkeyPatch, kind: str, slot_bytes: int) -> None:
    """All items, and some in another order; an item that is larger than a slot; a slot for all."""
    monkeypatch.setattr(streaming, "_SLOT_BYTES", slot_bytes)
    queries = PackedTokens.from_list(embeddings([5, 20], 48))
    codes = codes_of(embeddings(LENGTHS, 48), kind)
    for some in (
        codes,
        *(codes.select(torch.tensor(items, dtype=torch.int64)) for items in ([2, 3, 4], [8, 6, 6, 0, 1], [1], [])),
    ):
        expected = upper_bounds(queries, some)
        actual = streaming.upper_bounds(queries, some, CPU)
        assert torch.equal(actual, expected)


def test_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = codes_of(embeddings(LENGTHS, 48), "8")
    monkeypatch.setattr(streaming, "_SLOT_BYTES", 52 * 70)
    assert list(streaming._pieces(codes)) == [(0, 4), (4, 6), (6, 7), (7, 9)]


def test_queries_are_checked() -> None:
    codes = codes_of(embeddings([3], 16), "8")
    with pytest.raises(ValueError, match="query 0 has a NaN or an infinity"):
        streaming.upper_bounds(PackedTokens.from_list([torch.full((2, 16), float("nan"))]), codes, CPU)


class Cuda:
    """Records what is asked of streams and events, in the place of torch.cuda."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.events = 0

    def current_stream(self, _: Any) -> Any:
        return Stream(self, "computing")

    def Stream(self, _: Any) -> Any:
        return Stream(self, "copying")

    def Event(self) -> Any:
        self.events += 1
        # Two events say that pinned memory is copied, and two that the device has used its memory.
        return Event(self, ("copied", "used")[(self.events - 1) // 2] + str((self.events - 1) % 2))

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.calls.append(("begin", stream.name))
        yield
        self.calls.append(("end", stream.name))


class Stream:
    def __init__(self, cuda: Cuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_event(self, event: Any) -> None:
        self.cuda.calls.append((self.name, "waits for", event.name))

    def wait_stream(self, stream: Any) -> None:
        self.cuda.calls.append((self.name, "waits for", stream.name))


class Event:
    def __init__(self, cuda: Cuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def record(self, stream: Any) -> None:
        self.cuda.calls.append((stream.name, "records", self.name))

    def synchronize(self) -> None:
        self.cuda.calls.append(("CPU", "waits for", self.name))


class Device:
    type = "cuda"


def test_no_slot_is_filled_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls for CUDA, recorded: this does not need a GPU, and does not show that one obeys."""
    cuda = Cuda()
    monkeypatch.setattr(streaming, "cuda", cuda)
    monkeypatch.setattr(streaming, "_SLOT_BYTES", 1)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: cuda.calls.append(("keeps memory",)))
    device: Any = Device()
    slots = streaming._Slots(device)
    slots._device = CPU
    codes = codes_of(embeddings([4, 4, 4, 4], 16), "8")
    fill = streaming._fill
    monkeypatch.setattr(streaming, "_fill", lambda *a: (cuda.calls.append(("CPU", "fills")), fill(*a)))
    moved: list[Codes] = []
    for item in range(4):
        moved.append(slots.moved(codes, item, item + 1))
        cuda.calls.append(("computing", "reads"))
        assert torch.equal(moved[-1].levels, codes.levels[4 * item : 4 * item + 4])
        slots.done()
    for item in range(4):
        slot = str(item % 2)
        begin = [i for i, call in enumerate(cuda.calls) if call == ("begin", "copying")][item]
        before, after = cuda.calls[:begin], cuda.calls[begin:]
        assert after[: after.index(("end", "copying"))][-1] == ("copying", "records", f"copied{slot}")
        read = after.index(("computing", "reads"))
        assert ("computing", "waits for", f"copied{slot}") in after[:read]
        assert after[read + 1] == ("computing", "records", f"used{slot}")
        if item > 1:
            filled = len(before) - before[::-1].index(("computing", "records", "used" + "10"[item % 2]))
            assert before[filled] == ("CPU", "waits for", f"copied{slot}")
            assert after[1] == ("copying", "waits for", f"used{slot}")
        else:
            assert ("keeps memory",) in before and ("copying", "waits for", "computing") in before


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_on_a_gpu(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Many small pieces. This was written without a GPU."""
    monkeypatch.setattr(streaming, "_SLOT_BYTES", 20_000)
    queries = PackedTokens.from_list(embeddings([32, 7], 128))
    codes = codes_of(embeddings([30, 0, 180, 64] * 40, 128), kind)
    expected = upper_bounds(queries, codes.to("cuda")).cpu()
    for _ in range(3):
        assert torch.equal(streaming.upper_bounds(queries, codes, torch.device("cuda")), expected)


@pytest.mark.parametrize("codes", ["int8", "int4+4"])
def test_a_search_whose_codes_pass_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, codes: str) -> None:
    """As on a GPU, but through the CPU: the same answer, with deleted documents, and a backend for the scan only."""
    documents = embeddings([20] * 50, 32)
    with cf.Collection(tmp_path / "folder", codes=codes) as col:
        col.add([str(i) for i in range(50)], documents)
        col.delete(["3", "17"])
        queries = [documents[3], documents[8][:4]]
        expected = col.topk(queries, 5)
        monkeypatch.setattr(streaming, "_SLOT_BYTES", 4000)
        monkeypatch.setattr(search, "_device", lambda _: CPU)
        scanned: list[str | None] = []
        bounded = _upper.bounded
        monkeypatch.setattr(_upper, "bounded", lambda q, d, name: (scanned.append(name), bounded(q, d, name))[1])
        actual = col.topk(queries, 5, device="cuda", backend="torch")
        assert scanned.count("torch") >= 5 and set(scanned) <= {"torch", None}
        assert torch.equal(actual.scores, expected.scores) and actual.ids == expected.ids
