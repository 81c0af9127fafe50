"""Codes of tokens in 8, 4, 2 or 1 bits a number, with which the score of a document is bounded from above.

:mod:`colbert_fast._codecs.encoding` says what the codes are and proves their bound.
"""

from colbert_fast._codecs.codes import Codes, decoded, integers
from colbert_fast._codecs.encoding import encode, encode_planes
from colbert_fast._codecs.packing import BITS, packed_levels, row_bytes, unpacked_levels
from colbert_fast._codecs.rotation import MOST_DIM, rotate, rotate_back, rotation_error, signs

__all__ = [
    "BITS",
    "MOST_DIM",
    "Codes",
    "decoded",
    "encode",
    "encode_planes",
    "integers",
    "packed_levels",
    "rotate",
    "rotate_back",
    "rotation_error",
    "row_bytes",
    "signs",
    "unpacked_levels",
]
