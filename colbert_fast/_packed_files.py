"""A batch of items in a safetensors file: written in the order of its items, and mapped into memory.

The file has ``tokens [total, dim]``, the rows of item 0, then those of item 1 and so on; ``starts [n]`` and ``lengths
[n]``, int64; for int8 tokens ``scales [total]``, float32; and perhaps tensors that belong to the caller, such as ids.
The metadata have the format's name as ``format``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import BinaryIO

import torch
from torch import Tensor

from colbert_fast._arrays import checked_scales
from colbert_fast._files import whole_file
from colbert_fast._safetensors import DTYPES, MappedFile, Pieces, write
from colbert_fast._spans import Rows, in_order

FORMAT = "colbert_fast embeddings 1"
# Items are gathered in pieces of about so many bytes, so that the batch is never copied as a whole.
_PIECE = 2**26


def save(path: str | os.PathLike[str], batch: Rows) -> None:
    """Write a batch, whole or not at all. See ``write_batch``."""
    with whole_file(path) as beside, open(beside, "wb") as file:
        write_batch(file, batch)


def write_batch(
    file: BinaryIO,
    batch: Rows,
    more: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a batch from any device, its items in their order, without the rows that belong to no item.

    Parameters
    ----------
    more, metadata
        Other tensors, and other words, for the file.

    Raises
    ------
    OSError
        The file cannot be written.
    ValueError
        An item lies outside of the rows.
    """
    tokens = batch.tokens.detach()
    # Copies, so that nobody writes to them between the check and the use.
    starts, lengths = (offsets.to("cpu", copy=True) for offsets in (batch.starts, batch.lengths))
    outside = (starts < 0) | (lengths < 0) | (lengths > len(tokens)) | (starts > len(tokens) - lengths)
    if bool(outside.any()):
        msg = "an item lies outside of the rows: somebody wrote to starts or lengths"
        raise ValueError(msg)
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    tensors: dict[str, Tensor | Pieces] = {
        "tokens": Pieces(tokens.dtype, (total, tokens.shape[1]), _gathered(tokens, starts, lengths)),
        "starts": ends - lengths,
        "lengths": lengths,
    }
    if batch.scales is not None:
        tensors["scales"] = Pieces(batch.scales.dtype, (total,), _gathered(batch.scales, starts, lengths))
    write(file, {**tensors, **(more or {})}, {"format": FORMAT, **(metadata or {})})


def _gathered(rows: Tensor, starts: Tensor, lengths: Tensor) -> Iterator[Tensor]:
    """Yield the rows of the items in their order, some items at a time."""
    row_bytes = rows[0].numel() * rows.element_size() if len(rows) else 0
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    cuts = torch.arange(0, total, max(1, _PIECE // max(row_bytes, 1)), device="cpu")
    bounds = [0, *torch.searchsorted(ends, cuts[1:]).tolist(), len(ends)]
    for first, last in pairwise(bounds):
        items = Rows(rows, None, starts[first:last].to(rows.device), lengths[first:last].to(rows.device), 0)
        yield in_order(items).tokens


def load(path: str | os.PathLike[str]) -> Rows:
    """Map a file into memory and check it, without reading the tokens.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is damaged, or no file of this format. The message names the file and the field.
    """
    return rows_of(MappedFile(path))


def rows_of(file: MappedFile) -> Rows:
    """Return the batch in a file that is mapped already. Raises as ``load``."""
    if (found := file.metadata.get("format")) != FORMAT:
        file.refuse("the metadata", f"must have the format {FORMAT!r}; got {found!r:.100}")
    floats = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]
    tokens = file.tensor("tokens", [*floats, torch.int8], (None, None))
    total = len(tokens)
    # Copies: somebody may write to the file after the check.
    lengths = file.tensor("lengths", torch.int64, (None,)).clone()
    starts = file.tensor("starts", torch.int64, lengths.shape).clone()
    shortest, longest = (int(bound) for bound in torch.aminmax(lengths)) if len(lengths) else (0, 0)
    if shortest < 0 or longest > total:
        wrong = shortest if shortest < 0 else longest
        file.refuse("lengths", f"must be from 0 to the {total} rows of tokens; got {wrong}")
    # No length is more than the bytes of the file, so that a sum beyond int64 is negative where it first occurs.
    ends = lengths.cumsum(0)
    if bool((ends < 0).any()) or ends[-1:].sum() != total:
        file.refuse("lengths", f"must be the {total} rows of tokens in all; they are not")
    if not torch.equal(starts, ends - lengths):
        file.refuse("starts", "must be the sums of the lengths before; they are not")
    if tokens.dtype == torch.int8:
        scales = file.tensor("scales", torch.float32, (total,))
        try:
            checked_scales(scales, tokens)
        except ValueError as error:
            msg = f"{file.path}: {error}"
            raise ValueError(msg) from None
        return Rows(tokens, scales, starts, lengths, longest)
    if "scales" in file.fields:
        file.refuse("scales", f"go with int8 tokens only; tokens are {tokens.dtype}")
    return Rows(tokens, None, starts, lengths, longest)


def ids_of(file: MappedFile) -> list[str]:
    """Return the ids of the items, which ``colbert-fast encode`` writes. Raises ValueError if there are none."""
    text = bytes(file.tensor("ids", torch.uint8, (None,)).numpy())
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        file.refuse("ids", f"must be a list of strings as JSON: {error}")
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        file.refuse("ids", f"must be a list of strings as JSON; got {found!r:.100}")
    return found
