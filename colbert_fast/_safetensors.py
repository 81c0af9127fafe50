"""Safetensors files: written in pieces, and read as tensors over one memory map after the header was checked.

The format is 8 bytes with the length of the header, the header as JSON, and the bytes of the tensors one after the
other: https://github.com/huggingface/safetensors. What is written here begins every tensor at a multiple of 64 bytes,
because vector instructions read such rows fastest. The format allows no gap, so that tensors called ``padding.0`` and
so on fill it. Every field of a header is checked before a tensor is made of it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import platform
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, NoReturn, TypeAlias

import torch
from torch import Tensor

from colbert_fast._arrays import aligned

DTYPES = {
    **{"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32},
    **{"I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    **{"U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64},
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 64
_PADDING = "padding."
# The header of a batch has a few hundred bytes, and that of the largest models a megabyte.
_LONGEST_HEADER = 2**24
_MOST_DIMENSIONS = 16
# A tensor is copied from its device, and written, in pieces of so many bytes.
_PIECE = 2**26
# Without this flag Linux refuses a private map of a file that is larger than the memory. Python 3.13 names it.
_NO_RESERVE = getattr(
    mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64") else 0
)


class Pieces(NamedTuple):
    """A tensor that is written piece by piece, so that it never lies in memory as a whole."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    # Whose elements, one piece after the other, are the elements of the tensor. On any device.
    pieces: Iterable[Tensor]


class Field(NamedTuple):
    """A tensor in a file: its bytes are those from ``start`` to ``stop`` of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """What a file says about its content. The fields are without the padding between them."""

    fields: dict[str, Field]
    metadata: dict[str, str]


Path: TypeAlias = "str | os.PathLike[str]"


def write(file: BinaryIO, tensors: Mapping[str, Tensor | Pieces], metadata: Mapping[str, str]) -> None:
    """Write tensors, in their order, and words about them to an empty file. Copies none of them as a whole."""
    for piece in encoded(tensors, metadata):
        file.write(piece)


def encoded(tensors: Mapping[str, Tensor | Pieces], metadata: Mapping[str, str]) -> Iterator[memoryview]:
    """Yield the bytes of a file, piece by piece."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts: list[Tensor | Pieces] = []
    end = 0
    for name, tensor in tensors.items():
        if gap := -end % _ALIGNMENT:
            header[f"{_PADDING}{len(parts)}"] = described(torch.uint8, (gap,), end)
            parts.append(torch.zeros(gap, dtype=torch.uint8, device="cpu"))
            end += gap
        header[name] = described(tensor.dtype, tuple(tensor.shape), end)
        parts.append(tensor)
        end = header[name]["data_offsets"][1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for part, field in zip(parts, list(header.values())[1:], strict=True):
        start, stop = field["data_offsets"]
        for piece in _split(part):
            yield piece
            start += len(piece)
        if start != stop:
            msg = f"the pieces of a tensor {field['shape']} must have {stop} bytes in all; got {start}"
            raise ValueError(msg)


def described(dtype: torch.dtype, shape: tuple[int, ...], start: int) -> dict[str, Any]:
    """Return what a header says of a tensor whose data begin at ``start``."""
    size = math.prod(shape) * dtype.itemsize
    return {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, start + size]}


def _split(tensor: Tensor | Pieces) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in CPU memory."""
    for part in [tensor] if isinstance(tensor, Tensor) else tensor.pieces:
        # A tensor of one element may have any stride, and its bytes can only be viewed if the stride is 1.
        flat = part.detach().resolve_neg().contiguous().as_strided((part.numel(),), (1,))
        for piece in flat.split(max(1, _PIECE // part.element_size())):
            if piece.numel():
                yield memoryview(piece.cpu().view(torch.uint8).numpy())


def read_header(path: Path) -> Header:
    """Read and check the header of a file.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no whole safetensors file. The message names the file and the field.
    """
    descriptor = _opened(path)
    try:
        return _header(descriptor, os.fspath(path))
    finally:
        os.close(descriptor)


class MappedFile:
    """A safetensors file, mapped into memory: its tensors share its pages and are read when they are needed.

    The tensors hold the map: it lives as long as one of them. Whoever writes to them writes to memory of this process
    and never to the file. The file must not be truncated; to replace it by another file is safe.
    """

    def __init__(self, path: Path) -> None:
        """Open, check and map a file. Raises as `read_header`."""
        self.path = os.fspath(path)
        descriptor = _opened(path)
        try:
            self.fields, self.metadata = _header(descriptor, self.path)
            size = max((field.stop for field in self.fields.values()), default=0)
            self._map = _mapped(descriptor, size) if size else None
        finally:
            os.close(descriptor)

    def tensor(self, name: str, dtypes: torch.dtype | Sequence[torch.dtype], shape: Sequence[int | None]) -> Tensor:
        """Return the tensor of a name, without copying it. None in ``shape`` is any size.

        Raises
        ------
        ValueError
            The file has no such tensor, or one of another dtype or shape. The message names the file and the field.
        """
        if name not in self.fields:
            self.refuse(name, f"is missing; the file has {', '.join(self.fields) or 'no tensors'}")
        field = self.fields[name]
        allowed = [dtypes] if isinstance(dtypes, torch.dtype) else dtypes
        if field.dtype not in allowed:
            self.refuse(name, f"must be {' or '.join(map(str, allowed))}; it is {field.dtype}")
        fits = len(shape) == len(field.shape)
        if not fits or any(size not in (None, found) for size, found in zip(shape, field.shape, strict=True)):
            wanted = ", ".join("*" if size is None else str(size) for size in shape)
            self.refuse(name, f"must have the shape [{wanted}]; it has {list(field.shape)}")
        if field.start == field.stop:
            return torch.empty(field.shape, dtype=field.dtype, device="cpu")
        assert self._map is not None
        count = (field.stop - field.start) // field.dtype.itemsize
        flat = torch.frombuffer(self._map, dtype=field.dtype, count=count, offset=field.start)
        return aligned(flat).view(field.shape)

    def refuse(self, name: str, problem: str) -> NoReturn:
        """Raise ValueError for a field that cannot be used."""
        msg = f"{self.path}: {name} {problem}"
        raise ValueError(msg)


def _opened(path: Path) -> int:
    # A pipe without a writer would wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        msg = f"{os.fspath(path)} must be an ordinary file"
        raise ValueError(msg)
    return descriptor


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    # A private map: writing to it never reaches the file, and does not end the process as a read-only map would.
    if sys.platform == "win32":
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    flags, prot = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    if sys.version_info >= (3, 13):  # else Python keeps the file open, one descriptor for each map
        return mmap.mmap(descriptor, size, flags=flags, prot=prot, trackfd=False)
    return mmap.mmap(descriptor, size, flags=flags, prot=prot)


def _header(descriptor: int, path: str) -> Header:
    size = os.fstat(descriptor).st_size
    with open(descriptor, "rb", closefd=False) as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            msg = f"{path} is no whole safetensors file: {size} bytes cannot have a header of {length} bytes"
            raise ValueError(msg)
        text = file.read(length)
    if len(text) != length:
        msg = f"{path} has been cut while it was read"
        raise ValueError(msg)
    try:
        if text[:1] != b"{":
            msg = f"its first byte is {text[:1]!r}"
            raise ValueError(msg)
        content = json.loads(text.decode(), object_pairs_hook=_once)
        metadata = _checked_metadata(content.pop("__metadata__", {}))
        fields = {name: _checked_field(name, entry) for name, entry in content.items()}
        _check_places(fields, size - 8 - length)
    except (ValueError, RecursionError) as error:
        msg = f"{path} has no valid safetensors header: {str(error)[:500]}"
        raise ValueError(msg) from None
    begin = 8 + length
    placed = {
        name: field._replace(start=begin + field.start, stop=begin + field.stop)
        for name, field in fields.items()
        if not name.startswith(_PADDING)
    }
    return Header(placed, metadata)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        msg = f"{twice!r} comes twice"
        raise ValueError(msg)
    return content


def _checked_metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        msg = f"__metadata__ must hold strings; got {found!r:.200}"
        raise ValueError(msg)
    return found


def _checked_field(name: str, entry: Any) -> Field:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        msg = f"{name!r} must have dtype, shape and data_offsets; got {entry!r:.200}"
        raise ValueError(msg)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        msg = f"{name!r} has the unknown dtype {dtype!r:.200}"
        raise ValueError(msg)
    if not _sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        msg = f"the shape of {name!r} must be a list of sizes; got {shape!r:.200}"
        raise ValueError(msg)
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        msg = f"the data_offsets of {name!r} must be a start and a stop; got {offsets!r:.200}"
        raise ValueError(msg)
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != size:
        msg = f"{name!r} has {offsets[1] - offsets[0]} bytes; {shape} of {dtype} takes {size}"
        raise ValueError(msg)
    return Field(DTYPES[dtype], tuple(shape), *offsets)


def _sizes(found: Any) -> bool:
    if not isinstance(found, list):
        return False
    return all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**63 for size in found)


def _check_places(fields: Mapping[str, Field], size: int) -> None:
    """Raise unless the tensors lie one after the other and fill the file."""
    end = 0
    for name, field in sorted(fields.items(), key=lambda item: (item[1].start, item[1].stop)):
        if field.start != end:
            msg = f"{name!r} must begin at {end}, where the tensor before it ends; it begins at {field.start}"
            raise ValueError(msg)
        end = field.stop
    if end != size:
        msg = f"the tensors take {end} bytes, and the file has {size} for them"
        raise ValueError(msg)
