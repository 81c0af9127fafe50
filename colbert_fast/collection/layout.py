"""What a segment file holds: the tensors of some documents, in the format of safetensors, and how it says so."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import torch

from colbert_fast import _codecs, _safetensors
from colbert_fast._safetensors import Field

# The bits of the codes that a search reads, the coarsest codes first. "int4+4" keeps codes of 8 bits in two planes. The
# first plane alone has codes of 4 bits.
CODES: dict[str, tuple[int, ...]] = {"int8": (8,), "int4+4": (4, 8), "int4": (4,), "int2": (2,), "int1": (1,)}
EXACT: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# The data begins at a multiple of this, for the kernels read whole cache lines.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Options:
    """What all segments of a collection have in common."""

    codes: str
    exact: str | None
    seed: int


class Layout:
    """Where everything lies in a segment of so many documents and tokens.

    Parameters
    ----------
    options
        Of the collection.
    dim
        Of the tokens.
    documents, tokens
        How many.
    """

    def __init__(self, options: Options, dim: int, documents: int, tokens: int) -> None:
        self.options = options
        self.dim = dim
        self.documents = documents
        self.tokens = tokens
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in self._tensors().items()}
        # A tensor whose size has more factors of two comes first, so each one begins at a multiple of its element size.
        order = sorted(sizes, key=lambda name: (-(sizes[name] & -sizes[name]) if sizes[name] else 0, name))
        spans, at = {}, 0
        for name in order:
            spans[name] = (at, at := at + sizes[name])
        self._spans = spans
        self._text = self._header()
        self.data: int = 8 + len(self._text)
        self.size: int = self.data + at
        self.entries: dict[str, Field] = {
            name: Field(dtype, shape, self.data + spans[name][0], self.data + spans[name][1])
            for name, (dtype, shape) in self._tensors().items()
        }

    def _tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        bits = CODES[self.options.codes]
        row = _codecs.row_bytes(self.dim, bits[0])
        tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "lengths": (torch.int64, (self.documents,)),
            "levels": (torch.uint8, (self.tokens, row)),
        }
        if len(bits) == 2:
            tensors["low"] = (torch.uint8, (self.tokens, row))
        for suffix in suffixes(self.options.codes):
            tensors["multipliers" + suffix] = (torch.bfloat16, (self.tokens,))
            tensors["slack" + suffix] = (torch.bfloat16, (self.tokens,))
            tensors["norms" + suffix] = (torch.float32, (self.documents,))
        if self.options.exact is not None:
            tensors["exact"] = (EXACT[self.options.exact], (self.tokens, self.dim))
        return tensors

    def _header(self) -> bytes:
        described: dict[str, Any] = {"__metadata__": self._metadata()}
        for name, (dtype, shape) in self._tensors().items():
            described[name] = _safetensors.described(dtype, shape, self._spans[name][0])
        text = json.dumps(described, separators=(",", ":")).encode()
        return text + b" " * (-(8 + len(text)) % _ALIGNMENT)

    def _metadata(self) -> dict[str, str]:
        options = {"codes": self.options.codes, "exact": str(self.options.exact), "seed": str(self.options.seed)}
        return {"format": "colbert_fast.collection", "version": "1", "dim": str(self.dim), **options}

    def header(self) -> bytes:
        """Return the bytes of the file before the data."""
        return len(self._text).to_bytes(8, "little") + self._text

    def check(self, path: str) -> None:
        """Raise ValueError, with the file and the field, unless a file has this header and its size."""
        fields, metadata = _safetensors.read_header(path)
        for name, value in self._metadata().items():
            if metadata.get(name) != value:
                msg = f"{path}: {name} must be {value!r}; the header says {str(metadata.get(name))[:200]!r}"
                raise ValueError(msg)
        for name in {**self.entries, **fields}:
            if fields.get(name) != self.entries.get(name):
                msg = f"{path}: {name} must be {self.entries.get(name)}; the header says {fields.get(name)}"
                raise ValueError(msg)


def suffixes(codes: str) -> tuple[str, ...]:
    """Return the ends of the names of tensors that coarse and fine codes do not share, the coarsest codes first."""
    return ("_high", "") if len(CODES[codes]) == 2 else ("",)
