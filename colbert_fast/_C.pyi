"""Types of the extension module; csrc/bindings.cpp says what the arguments mean."""

_Side = tuple[int, int, int, int, int, int, int, int, int]

def tiers() -> list[tuple[str, str | None]]: ...
def refused(tier: str, /) -> str | None: ...
def calls() -> dict[str, int]: ...
def chunks_screened() -> dict[str, int]: ...
def pool_size() -> int: ...
def score(
    tier: str,
    q: _Side,
    d: _Side,
    dim: int,
    pairs: int,
    num_pairs: int,
    max_lq: int,
    skip_zero_q: bool,
    skip_zero_d: bool,
    threads: int,
    scores: int,
    argmax: int,
    /,
) -> bool: ...
def backward(
    tier: str,
    q: _Side,
    d: _Side,
    dim: int,
    pairs: int,
    num_pairs: int,
    max_lq: int,
    threads: int,
    to_queries: bool,
    grad_scores: int,
    argmax: int,
    grad: int,
    /,
) -> None: ...
def runs_of_mask(mask: int, n: int, length: int, starts: int, lengths: int, /) -> bool: ...
def products(tier: str, /) -> list[str]: ...
def measure_flops(tier: str, dtype: str, threads: int, seconds: float, /) -> float: ...
def measure_read(tier: str, threads: int, data: int, bytes: int, /) -> float: ...
