"""Embed many texts in shards. A shard may be kept in a file, so that a later run need not embed its texts again."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import colbert_fast as cf
from colbert_fast._packed_files import write_batch
from colbert_fast.cli.encoders import fingerprint
from colbert_fast.cli.notices import progress
from colbert_fast.cli.output import check_output, make_folder, tell, whole_file

if TYPE_CHECKING:
    from colbert_fast.models import ColBERT

# The number of texts of a shard. When a run is killed, the work on one shard is lost: about a minute of MiniLM on
# two cores. A search holds one shard in memory: 150 MiB of MiniLM's states for texts of 200 tokens.
SHARD = 512
# The progress bar moves after so many texts. The encoder sorts them by length, and a few texts fill one batch.
_PIECE = 128
# The name of a shard's file, or of what a killed process left of one. `output` shortens the second.
_SHARD_FILE = re.compile(r"(queries|documents)-[0-9a-f]{30,32}\.(safetensors|[0-9a-f]{8}\.part)")


class Embedder:
    """An encoder, the dtype of the embeddings, and the folder that keeps shards, if there is one."""

    def __init__(
        self, encoder: ColBERT, *, dtype: torch.dtype | None = None, folder: Path | None = None, name: str = ""
    ) -> None:
        """``dtype``: None is the encoder's own. ``name``: what the progress bar says."""
        self.encoder = encoder
        self._dtype = dtype
        self._folder = folder
        self._name = f"{name}: " if name else ""
        self._fingerprint = f"{fingerprint(encoder)} {dtype}" if folder is not None else ""
        if folder is not None:
            make_folder(folder)

    def shards(
        self, texts: Sequence[str], *, query: bool, used: Sequence[int] | None = None
    ) -> Iterator[tuple[Sequence[int], cf.PackedTokens]]:
        """Yield embeddings, shard by shard, each with the numbers of its texts, in ascending order.

        ``used``: numbers of texts, in ascending order. Then each of these texts is in a shard, and other texts are only
        there where a shard with them is in a file already.
        """
        groups = self._groups(texts, query, used)
        total = sum(map(len, groups))
        with progress(total, f"{self._name}{'queries' if query else 'documents'}") as bar:
            for numbers in groups:
                some = [texts[number] for number in numbers]
                file = self._file_of(some, query)
                found = None if file is None else _load(file, len(some))
                if found is None:
                    found = self._embedded(some, query, bar)
                    if file is not None:
                        save(file, found)
                else:
                    bar.update(len(some))
                yield numbers, found if self._dtype is not None else found.to(self.encoder.device)

    def all(self, texts: Sequence[str], *, query: bool) -> cf.PackedTokens:
        """Return the embeddings of all texts."""
        parts = [found for _, found in self.shards(texts, query=query)]
        return parts[0] if len(parts) == 1 else cf.PackedTokens.cat(parts)  # cat copies

    def _groups(self, texts: Sequence[str], query: bool, used: Sequence[int] | None) -> list[Sequence[int]]:
        """Return the numbers of the texts of each shard."""
        wholes = [range(start, min(start + SHARD, len(texts))) for start in range(0, len(texts), SHARD)]
        if used is None:
            return list(wholes)
        groups: list[Sequence[int]] = []
        rest: list[int] = []
        for whole in wholes:
            some = used[bisect.bisect_left(used, whole.start) : bisect.bisect_left(used, whole.stop)]
            file = self._file_of(texts[whole.start : whole.stop], query) if some else None
            if file is not None and file.exists():
                groups.append(whole)
            else:
                rest.extend(some)
        return groups + [rest[start : start + SHARD] for start in range(0, len(rest), SHARD)]

    def _embedded(self, texts: Sequence[str], query: bool, bar: Any) -> cf.PackedTokens:
        pieces = []
        for start in range(0, len(texts), _PIECE):
            some = texts[start : start + _PIECE]
            found = self.encoder.encode_packed(some, query_mode=query)
            pieces.append(_converted(found, self._dtype))
            bar.update(len(some))
        return cf.PackedTokens.cat(pieces)

    def _file_of(self, texts: Sequence[str], query: bool) -> Path | None:
        """Return the file of a shard. Its name depends on all that its content depends on."""
        if self._folder is None:
            return None
        found = hashlib.blake2b(f"{self._fingerprint} {query} ".encode(), digest_size=16)
        for text in texts:
            raw = text.encode()
            found.update(f"{len(raw)} ".encode())
            found.update(raw)
        return self._folder / f"{'queries' if query else 'documents'}-{found.hexdigest()}.safetensors"


def remove_shards(folder: Path) -> None:
    """Remove the files of shards, and the folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if _SHARD_FILE.fullmatch(path.name):
                path.unlink()
        folder.rmdir()


def save(
    path: Path,
    packed: cf.PackedTokens,
    more: dict[str, torch.Tensor] | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write embeddings to a safetensors file, whole or not at all."""
    check_output(path, ordinary=True)
    with whole_file(path) as beside, open(beside, "wb") as file:
        write_batch(file, packed._rows(), more, metadata)


def _load(path: Path, count: int) -> cf.PackedTokens | None:
    """Read a shard; None if it is not there or cannot be used."""
    if not path.exists():
        return None
    try:
        packed = cf.PackedTokens.load(path)
    except (ValueError, OSError) as error:
        tell(f"warning: {path} is damaged and is written again: {error}")
        return None
    return packed if len(packed) == count else None


def _converted(packed: cf.PackedTokens, dtype: torch.dtype | None) -> cf.PackedTokens:
    if dtype is None:
        return packed
    packed = packed.to("cpu")
    return packed.quantize("int8") if dtype is torch.int8 else packed.to(dtype)
