"""Level numbers of 8, 4, 2 or 1 bits as bytes, and the integers that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

# The bits that a level number may have, with (a, b): level number l stands for the integer v = a l - b.
BITS = {8: (1, 128), 4: (2, 15), 2: (2, 3), 1: (2, 1)}


def row_bytes(dim: int, bits: int) -> int:
    """Bytes of a row of ``dim`` level numbers of ``bits`` bits."""
    return -(-dim // (8 // bits))


def packed_levels(levels: Tensor, bits: int) -> Tensor:
    """Pack level numbers, uint8 ``[n, dim]``, into uint8 ``[n, row_bytes(dim, bits)]``.

    A row of P bytes is cut into 8 // bits pieces of P numbers. Byte j holds number j of each piece, the first piece in
    its lowest bits. So one shift and one mask unpack a whole vector of bytes. Numbers beyond dim are 0.
    """
    n, dim = levels.shape
    width = row_bytes(dim, bits)
    padded = torch.nn.functional.pad(levels, (0, width * (8 // bits) - dim)).view(n, 8 // bits, width)
    result = torch.zeros((n, width), dtype=torch.uint8, device=levels.device)
    for i in range(8 // bits):
        result |= padded[:, i] << (bits * i)
    return result


def unpacked_levels(rows: Tensor, bits: int, dim: int) -> Tensor:
    """Return the level numbers, uint8 ``[n, dim]``, of packed rows."""
    pieces = [(rows >> (bits * i)) & (2**bits - 1) for i in range(8 // bits)]
    return torch.cat(pieces, 1)[:, :dim]
