"""The safetensors files that we write and map: what is in them, and what is refused."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colbert_fast import _safetensors
from colbert_fast._safetensors import DTYPES, MappedFile, Pieces, read_header, write


def sample(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return numbers with all kinds of bytes."""
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape[:-1], shape[-1] * dtype.itemsize))
    return bits.to(torch.uint8).view(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


TENSORS = {
    "odd": sample(torch.int8, 3, 7),
    "empty": torch.empty(0, 5),
    **{name.lower(): sample(dtype, 5, 3) for name, dtype in DTYPES.items()},
    "wide": sample(torch.float32, 70),
}


def saved(path: Path, tensors: dict[str, Any], **metadata: str) -> Path:
    with open(path, "wb") as file:
        write(file, tensors, metadata)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", TENSORS, format="a", more="é\ud83d")
    file = MappedFile(path)
    assert file.metadata == {"format": "a", "more": "é\ud83d"} and list(file.fields) == list(TENSORS)
    assert read_header(path) == (file.fields, file.metadata)
    for name, tensor in TENSORS.items():
        found = file.tensor(name, tensor.dtype, (None, *tensor.shape[1:]))
        assert same(found, tensor)
        assert found.data_ptr() % 64 == 0
    assert MappedFile(saved(tmp_path / "x", {})).fields == {}


@pytest.mark.needs("models")  # they bring safetensors
def test_the_library_reads_the_file(tmp_path: Path) -> None:
    import safetensors.torch as library

    found = library.load_file(saved(tmp_path / "x", TENSORS, format="pt"))
    assert all(same(found[name], tensor) for name, tensor in TENSORS.items())
    assert all(name.startswith("padding.") for name in found.keys() - TENSORS)
    library.save_file(TENSORS, tmp_path / "x", {"format": "pt"})
    file = MappedFile(tmp_path / "x")
    assert all(same(file.tensor(name, t.dtype, t.shape), t) for name, t in TENSORS.items())


def test_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_safetensors, "_PIECE", 8)
    wide = TENSORS["wide"].view(7, 10)
    pieces = Pieces(wide.dtype, (10, 7), (row.unsqueeze(1) for row in wide.T))
    file = MappedFile(saved(tmp_path / "x", {"a": pieces, "b": wide.T}))
    assert same(file.tensor("a", torch.float32, (10, 7)), wide.T.contiguous())
    assert same(file.tensor("b", torch.float32, (10, 7)), wide.T.contiguous())
    with pytest.raises(ValueError, match=r"a tensor \[11, 7\] must have 308 bytes in all; got 280"):
        write(io.BytesIO(), {"a": Pieces(wide.dtype, (11, 7), [wide])}, {})


def test_writing_to_a_tensor_leaves_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", {"a": torch.zeros(4)})
    found = MappedFile(path).tensor("a", torch.float32, (4,))
    found += 1
    assert found.tolist() == [1, 1, 1, 1] and MappedFile(path).tensor("a", torch.float32, (4,)).tolist() == [0] * 4


def test_a_file_that_is_replaced_is_still_read(tmp_path: Path) -> None:
    found = MappedFile(saved(tmp_path / "x", {"a": torch.ones(10**6)})).tensor("a", torch.float32, (None,))
    os.replace(saved(tmp_path / "y", {"a": torch.zeros(3)}), tmp_path / "x")
    assert found.sum().item() == 10**6


def test_fields(tmp_path: Path) -> None:
    file = MappedFile(saved(tmp_path / "x", {"a": torch.ones(4, 2), "b": torch.ones(1)}))
    for arguments, said in (
        (("c", torch.float32, (4,)), "c is missing; the file has a, b"),
        (("a", torch.int8, (4, 2)), "a must be torch.int8; it is torch.float32"),
        (("a", (torch.int8, torch.float16), (4, 2)), "a must be torch.int8 or torch.float16; it is torch.float32"),
        (("a", torch.float32, (4,)), r"a must have the shape \[4\]; it has \[4, 2\]"),
        (("a", torch.float32, (None, 3)), r"a must have the shape \[\*, 3\]; it has \[4, 2\]"),
    ):
        with pytest.raises(ValueError, match=f"{tmp_path / 'x'}: {said}"):
            file.tensor(*arguments)


def lying(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a file with one tensor of 16 bytes after the header was changed."""
    header: dict[str, Any] = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16)


def whole(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


WRONG = {
    "nothing": (b"", "0 bytes cannot have a header of 0 bytes"),
    "short": (b"\x02\0\0\0\0\0\0", "7 bytes cannot have a header of 2 bytes"),
    "a huge header": (whole(b"{}", 2**63), f"cannot have a header of {2**63} bytes"),
    "a header beyond the end": (whole(b"{}", 3), "10 bytes cannot have a header of 3 bytes"),
    "no header": (whole(b""), "cannot have a header of 0 bytes"),
    "a pickle": (whole(b"\x80\x04K\x01."), r"its first byte is b'\x80'"),
    "a list": (whole(b"[]"), "its first byte is b'['"),
    "half": (whole(b'{"a": '), "Expecting value"),
    "no UTF-8": (whole(b'{"\xff": 1}'), "can't decode byte 0xff"),
    "deep": (whole(b'{"a":' * 100000), ""),
    "twice": (whole(b'{"a": 1, "b": 2, "b": 3}'), "'b' comes twice"),
    "metadata": (whole(b'{"__metadata__": {"a": 1}}'), "__metadata__ must hold strings; got {'a': 1}"),
    "metadata of another kind": (whole(b'{"__metadata__": []}'), "__metadata__ must hold strings; got []"),
    "no entry": (whole(b'{"a": 1}'), "'a' must have dtype, shape and data_offsets; got 1"),
    "no dtype": (lying(lambda h: h["a"].pop("dtype")), "'a' must have dtype, shape and data_offsets"),
    "unknown dtype": (lying(lambda h: h["a"].update(dtype="F4")), "'a' has the unknown dtype 'F4'"),
    "odd dtype": (lying(lambda h: h["a"].update(dtype=["F32"])), "'a' has the unknown dtype ['F32']"),
    "negative": (lying(lambda h: h["a"].update(shape=[-4])), "the shape of 'a' must be a list of sizes; got [-4]"),
    "bool": (lying(lambda h: h["a"].update(shape=[True, 4])), "the shape of 'a' must be a list of sizes"),
    "a float": (lying(lambda h: h["a"].update(shape=[4.0])), "the shape of 'a' must be a list of sizes"),
    "huge": (lying(lambda h: h["a"].update(shape=[2**62, 4])), f"'a' has 16 bytes; [{2**62}, 4] of F32 takes {2**66}"),
    "many sizes": (lying(lambda h: h["a"].update(shape=[1] * 17)), "the shape of 'a' must be a list of sizes"),
    "three offsets": (lying(lambda h: h["a"].update(data_offsets=[0, 8, 16])), "data_offsets of 'a' must be a start"),
    "backwards": (lying(lambda h: h["a"].update(data_offsets=[16, 0])), "data_offsets of 'a' must be a start"),
    "beyond": (
        lying(lambda h: h["a"].update(shape=[8], data_offsets=[0, 32])),
        "the tensors take 32 bytes, and the file has 16 for them",
    ),
    "a rest": (lying(lambda h: h["a"].update(shape=[1], data_offsets=[0, 4])), "the tensors take 4 bytes, and the"),
    "a gap": (lying(lambda h: h["a"].update(shape=[3], data_offsets=[4, 16])), "'a' must begin at 0, where"),
    "an overlap": (
        lying(lambda h: h.update(b={"dtype": "U8", "shape": [16], "data_offsets": [0, 16]})),
        "'b' must begin at 16, where the tensor before it ends; it begins at 0",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_none(kind: str, tmp_path: Path) -> None:
    content, said = WRONG[kind]
    path = tmp_path / "x"
    path.write_bytes(content)
    for reading in (read_header, MappedFile):
        with pytest.raises(ValueError) as found:
            reading(path)
        assert str(path) in str(found.value) and said in str(found.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MappedFile(tmp_path / "x")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", tmp_path, os.devnull):
            with pytest.raises(ValueError, match=f"{path} must be an ordinary file"):
                MappedFile(path)


def test_an_unaligned_tensor_is_copied(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}'
    (tmp_path / "x").write_bytes(whole(header + b" " * (len(header) % 2 + 1)) + bytes([7, *[0] * 7]))
    found = MappedFile(tmp_path / "x").tensor("a", torch.int64, (1,))
    assert found.item() == 7 and found.data_ptr() % 8 == 0


@functools.cache
def whole_file() -> bytes:
    target = io.BytesIO()
    write(target, TENSORS, {"format": "a"})
    return target.getvalue()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever happens to the bytes: a ValueError that names the file, or tensors that can be read to their ends."""
    content = bytearray(whole_file())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, header - 1) | st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789{}[]",:-'))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    path = tmp_path / "x"
    path.write_bytes(content)
    try:
        file = MappedFile(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    for name, field in file.fields.items():
        assert 8 <= field.start <= field.stop <= len(content)
        file.tensor(name, field.dtype, field.shape).clone()
