"""Types of the extension module; csrc/host/bindings.cpp says what the arguments mean."""

from collections.abc import Sequence

import torch
from torch import Tensor

# (dtype, tokens, starts, lengths, scales), or of items that lie apart (dtype, items, dim).
_Side = tuple[int, Tensor, Tensor, Tensor, Tensor | None] | tuple[int, Sequence[Tensor], int]

# (bits, multipliers, slack, norms).
_Fit = tuple[int, Tensor, Tensor, Tensor]

stub: int  # the CRC-32 of this file, when the extension was built

def tiers() -> list[tuple[str, str | None]]: ...
def refused(tier: str, /) -> str | None: ...
def calls() -> dict[str, int]: ...
def chunks_screened() -> dict[str, int]: ...
def left_out() -> dict[str, int]: ...
def pool_size() -> int: ...
def set_main_thread(ident: int, /) -> None: ...
def score(
    tier: str,
    q: _Side,
    d: _Side,
    pairs: Tensor | None,
    max_lq: int,
    skip_zero_q: bool,
    skip_zero_d: bool,
    threads: int,
    scores: Tensor,
    argmax: Tensor | None,
    /,
) -> bool: ...
def ceilings(tier: str, q: _Side, d: _Side, max_lq: int, skip_zero_q: bool, threads: int, most: Tensor, /) -> bool: ...
def best(
    tier: str,
    q: _Side,
    d: _Side,
    max_lq: int,
    skip_zero_q: bool,
    skip_zero_d: bool,
    threads: int,
    k: int,
    scores: Tensor,
    numbers: Tensor,
    /,
) -> bool: ...
def backward(
    tier: str,
    q: _Side,
    d: _Side,
    pairs: Tensor | None,
    max_lq: int,
    threads: int,
    to_queries: bool,
    grad_scores: Tensor,
    argmax: Tensor,
    grad: Tensor,
    /,
) -> None: ...
def upper(
    tier: str,
    q: _Side,
    signs: Tensor,
    codes: tuple[int, int, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor],
    threads: int,
    bounds: Tensor,
    /,
) -> None: ...
def encode(
    dtype: int,
    tokens: Tensor,
    signs: Tensor,
    threads: int,
    levels: Tensor,
    low: Tensor | None,
    fit: _Fit,
    high: _Fit | None,
    /,
) -> int: ...
def row_counts(items: tuple[Tensor, ...], type: type[Tensor], layout: torch.layout, /) -> list[int] | None: ...
def runs_of_mask(mask: Tensor, starts: Tensor, lengths: Tensor, /) -> bool: ...
