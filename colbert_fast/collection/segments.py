"""The files of tokens. A file is written once, whole, and never changed: it is only ever unlinked."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import torch
from torch import Tensor

from colbert_fast._codecs import Codes, decoded
from colbert_fast._safetensors import Field
from colbert_fast.collection.database import NAME
from colbert_fast.collection.layout import CODES, Layout, suffixes
from colbert_fast.packed import PackedTokens

# A file that a writer has finished, or has not.
PATTERN = re.compile(r"[0-9a-f]{32}\.safetensors(\.tmp)?")
# Written data goes to the disk so many bytes at a time, while the next part is encoded.
_SYNC_BYTES = 1 << 26
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Written:
    """A segment that is safe on the disk, and in no database yet."""

    file: str
    documents: int
    tokens: int
    checksums: str


class Segment:
    """The items of one file, mapped into memory. Nothing of an item is read until it is asked for.

    Parameters
    ----------
    folder, file
        The name of the file, and of its folder.
    layout
        What the file must hold.
    first
        The number of the document that is item 0.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is another than the layout says.
    """

    def __init__(self, folder: str, file: str, layout: Layout, first: int) -> None:
        self.path: str = os.path.join(folder, file)
        self.file = file
        self.layout = layout
        self.first = first
        self.documents: int = layout.documents
        layout.check(self.path)
        # Mapped by torch because numpy and mmap keep the file open. The pages are copied when somebody writes to them,
        # so a careless user changes no file and meets no signal.
        try:
            storage: Any = torch.UntypedStorage.from_file(self.path, shared=False, nbytes=layout.size)
        except RuntimeError as error:
            os.stat(self.path)  # raises if another process has just removed the file
            msg = f"{self.path} cannot be mapped: {error}"
            raise OSError(msg) from error
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the file, as a view."""
        entry = self.layout.entries[name]
        return self._bytes[entry.start : entry.stop].view(entry.dtype).view(entry.shape)

    @cached_property
    def _spans(self) -> tuple[Tensor, Tensor]:
        """Where each item lies, checked on the copy that is used."""
        lengths = self.tensor("lengths").clone()
        ends = lengths.cumsum(0)
        tokens = self.layout.tokens
        # Numbers from 0 to `tokens` cannot leave int64 without a sum that is negative.
        if len(lengths) and (int(lengths.min()) < 0 or int(lengths.max()) > tokens or int(ends.min()) < 0):
            msg = f"{self.path}: lengths must be from 0 to {tokens}; got {int(lengths.min())} to {int(lengths.max())}"
            raise ValueError(msg)
        if (int(ends[-1]) if len(ends) else 0) != tokens:
            msg = f"{self.path}: the sum of lengths must be {tokens}, the number of tokens; got {int(ends[-1])}"
            raise ValueError(msg)
        for suffix in suffixes(self.layout.options.codes):
            if not bool((self.tensor("norms" + suffix) >= 0).all()):
                msg = f"{self.path}: norms{suffix} must be 0 or more"
                raise ValueError(msg)
        return ends - lengths, lengths

    @cached_property
    def codes(self) -> list[Codes]:
        """The codes that a search reads, the coarsest first."""
        starts, lengths = self._spans
        return [self._codes(bits, starts, lengths) for bits in CODES[self.layout.options.codes]]

    def _codes(self, bits: int, starts: Tensor, lengths: Tensor) -> Codes:
        options = self.layout.options
        all_bits = CODES[options.codes]
        suffix = suffixes(options.codes)[all_bits.index(bits)]
        return Codes(
            bits=bits,
            dim=self.layout.dim,
            seed=options.seed,
            levels=self.tensor("levels"),
            multipliers=self.tensor("multipliers" + suffix),
            slack=self.tensor("slack" + suffix),
            norms=self.tensor("norms" + suffix),
            starts=starts,
            lengths=lengths,
            low=self.tensor("low") if len(all_bits) == 2 and bits == 8 else None,
        )

    @cached_property
    def exact(self) -> PackedTokens | None:
        """The tokens as they were given, over all items; None if the collection does not keep them."""
        if self.layout.options.exact is None:
            return None
        return PackedTokens(self.tensor("exact"), *self._spans)


def decoded_items(codes: Codes, items: Tensor) -> PackedTokens:
    """Return what the codes of items stand for, float32, one item after the other. ``items``: int64 ``[m]``."""
    some = codes.select(items)
    return PackedTokens(decoded(some), some.lengths.cumsum(0) - some.lengths, some.lengths)


def write(folder: str, layout: Layout, parts: Iterable[Mapping[str, Tensor]]) -> Written:
    """Write a segment, so that it is whole and on the disk when this returns. If it fails, nothing stays.

    Parameters
    ----------
    folder
        Of the collection.
    layout
        What the file holds.
    parts
        The tensors of the layout, some documents at a time. The next part is made while one is written.
    """
    file = f"{uuid.uuid4().hex}.safetensors"
    path = os.path.join(folder, file)
    try:
        with open(path + ".tmp", "xb", buffering=0) as opened, ThreadPoolExecutor(1, "collection") as pool:
            written = _Parts(opened, layout)
            running: Future[None] = pool.submit(written.begin)
            for part in parts:
                running.result()
                running = pool.submit(written.add, part)
            running.result()
            checksums = written.finish()
            os.fsync(opened.fileno())
        os.rename(path + ".tmp", path)
        sync_folder(folder)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = path  # a full disk does not say which file it refused
        for left in (path + ".tmp", path):
            with contextlib.suppress(OSError):
                os.unlink(left)
        raise
    return Written(file, layout.documents, layout.tokens, checksums)


class _Parts:
    """A file whose tensors all grow with each part."""

    def __init__(self, file: BinaryIO, layout: Layout) -> None:
        self._file = file
        self._layout = layout
        self._at = {name: entry.start for name, entry in layout.entries.items()}
        self._sums = dict.fromkeys(layout.entries, 0)
        self._unsynced = 0

    def begin(self) -> None:
        self._write(0, memoryview(self._layout.header()))

    def add(self, part: Mapping[str, Tensor]) -> None:
        for name, tensor in part.items():
            self._add(name, self._layout.entries[name], tensor)
        if self._unsynced >= _SYNC_BYTES:
            os.fsync(self._file.fileno())
            self._unsynced = 0

    def _add(self, name: str, entry: Field, tensor: Tensor) -> None:
        assert tensor.dtype == entry.dtype, (name, tensor.dtype)
        if tensor.numel():
            numbers: Any = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
            data = memoryview(numbers)
            assert self._at[name] + len(data) <= entry.stop, name
            self._write(self._at[name], data)
            self._sums[name] = zlib.crc32(data, self._sums[name])
            self._at[name] += len(data)
            self._unsynced += len(data)

    def finish(self) -> str:
        assert all(self._at[name] == entry.stop for name, entry in self._layout.entries.items()), self._at
        return json.dumps(self._sums)

    def _write(self, at: int, data: memoryview) -> None:
        self._file.seek(at)
        while data:
            data = data[self._file.write(data) :]


def check_none(folder: str) -> None:
    """Raise ValueError if a folder has segments. Its database, which would say what they are, is empty or missing."""
    if any(PATTERN.fullmatch(name) for name in os.listdir(folder)):
        msg = f"{folder} has segments but no {NAME} that says what they are"
        raise ValueError(msg)


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable. Windows does so by itself."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def found_checksums(path: str, layout: Layout) -> dict[str, int]:
    """Read a whole file and return the checksum of each tensor. Raise ValueError for another header."""
    sums = {}
    with open(path, "rb") as file:
        if file.read(layout.data) != layout.header():
            msg = f"{path}: the header has changed since it was written"
            raise ValueError(msg)
        for name, entry in layout.entries.items():
            file.seek(entry.start)
            left, found = entry.stop - entry.start, 0
            while left and (data := file.read(min(left, _READ_BYTES))):
                found, left = zlib.crc32(data, found), left - len(data)
            sums[name] = found
    return sums
