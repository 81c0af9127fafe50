"""Named workloads and their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import colbert_fast as cf

SEED = 0


@dataclass(frozen=True)
class Workload:
    """Some queries against some documents. ``source`` says who asks for it."""

    name: str
    nq: int
    lq: int
    nd: int
    ld: int
    """Tokens of a document; where the lengths are lognormal, tokens of the longest document at most."""
    dtype: torch.dtype
    source: str
    dim: int = 128
    layout: str = "padded"
    """How the caller holds the documents: "padded", "list" or "packed"."""
    lognormal: bool = False
    backward: bool = False
    flush: bool = False
    """The documents are pushed out of the caches before every round."""
    device: str = "cpu"
    quantized: bool = False
    """The documents are held in 8 bits, with one scale for each token."""

    @property
    def shape(self) -> str:
        """Sizes in one line: queries x documents, query tokens x document tokens."""
        tokens = f"{self.lq} x {'lognormal, at most ' if self.lognormal else ''}{self.ld}"
        dtype = str(self.dtype).removeprefix("torch.")
        also = ", documents in 8 bits" if self.quantized else ""
        also += ", forward + backward" if self.backward else ""
        return f"{self.nq} x {self.nd}, {tokens}, dim {self.dim}, {dtype}{also}"

    def inputs(self) -> Inputs:
        """Draw unit vectors in clusters, as token embeddings are: the tokens of one topic resemble each other.

        Tokens for a CUDA device are drawn on the device: other numbers than the CPU draws, with the same lengths.
        """
        generator = torch.Generator().manual_seed(SEED)
        if self.lognormal:  # mean 73, as of passages
            drawn = torch.empty(self.nd).log_normal_(4.16, 0.5, generator=generator)
            lengths = drawn.round().clamp(4, self.ld).to(torch.int64)
        else:
            lengths = torch.full((self.nd,), self.ld)
        device = torch.device(self.device)
        if device.type != "cpu":
            generator = torch.Generator(device).manual_seed(SEED)
        topics = torch.randn(256, self.dim, generator=generator, device=device)

        def tokens(n: int) -> Tensor:
            topic = topics[torch.randint(256, (n,), generator=generator, device=device)]
            noise = torch.randn(n, self.dim, generator=generator, device=device)
            return torch.nn.functional.normalize(topic + noise, dim=-1).to(self.dtype)

        queries = tokens(self.nq * self.lq).view(self.nq, self.lq, self.dim)
        return Inputs(self, queries, tokens(int(lengths.sum())), lengths)


@dataclass
class Inputs:
    """The embeddings of a workload, in every layout a contender may want."""

    workload: Workload
    queries: Tensor
    """``[nq, lq, dim]``"""
    rows: Tensor
    """``[total, dim]``: the documents' tokens, one document after the other."""
    lengths: Tensor
    """``[nd]`` int64, on the CPU."""

    def __post_init__(self) -> None:
        self.packed: cf.PackedTokens = cf.PackedTokens(self.rows, self.lengths.cumsum(0) - self.lengths, self.lengths)

    @property
    def documents(self) -> Any:
        """The documents in the workload's own layout."""
        if self.workload.layout == "list":
            return self.items
        return self.packed if self.workload.layout == "packed" else self.padded

    @property
    def padded(self) -> Tensor:
        """``[nd, ld, dim]``; a view, where all documents are equally long."""
        if not self.workload.lognormal:
            return self.rows.view(len(self.lengths), -1, self.workload.dim)
        return torch.nn.utils.rnn.pad_sequence(self.items, batch_first=True)

    @property
    def padding(self) -> Tensor | None:
        """``[nd, ld]``: True where a row of ``padded`` is no token; None where all documents are equally long."""
        if not self.workload.lognormal:
            return None
        return torch.arange(int(self.lengths.max())) >= self.lengths[:, None]

    @property
    def items(self) -> list[Tensor]:
        """The documents as a list of ``[length, dim]``."""
        return list(self.rows.split(self.lengths.tolist()))

    @property
    def bytes(self) -> int:
        """Bytes that must be read at least once; the scales of documents in 8 bits are not counted."""
        documents = self.rows.numel() if self.workload.quantized else self.rows.nbytes
        return documents + self.queries.nbytes

    @property
    def flops(self) -> float:
        """Multiplications and additions of the similarities; a backward pass adds very few to them."""
        return 2.0 * self.queries.shape[0] * self.queries.shape[1] * self.rows.shape[0] * self.workload.dim

    def reference(self) -> Tensor:
        """The definition in float64 on the inputs as given, document by document: ``[nq, nd]`` on the CPU."""
        queries = self.queries.double().flatten(0, 1)
        columns = []
        for d in self.items:
            best = (queries @ d.double().T).amax(1)
            columns.append(best.view(len(self.queries), -1).sum(1))
        return torch.stack(columns, dim=1).cpu()


def last_level_cache() -> int | None:
    """Bytes of the largest cache of the first core, or None where the system does not say."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    texts = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(text[:-1]) * units[text[-1]] for text in texts), default=None)


def flush_caches() -> None:
    """Read so much else that no document stays in a cache."""
    _other_memory().sum()


@cache
def _other_memory() -> Tensor:
    return torch.ones(4 * (last_level_cache() or 2**26) // 4)


_LATE = "ColBERT reranking: 32 query tokens, passages of 300 tokens, the size maxsim-cpu and NumKong quote"
_COMPRESSED = "the same with compressed documents, packed once"
_PAGES = "ColPali: 1024 patches a page, here page against page"
_ALL = "evaluation: many queries, all documents"
_FLOAT, _BFLOAT = torch.float32, torch.bfloat16
_text = partial(Workload, nq=1, lq=32, nd=1000, ld=300)
_small = partial(_text, nd=100, ld=180)
_pages = partial(Workload, nq=1, lq=1024, nd=100, ld=1024, source=_PAGES)
WORKLOADS = (
    _text("rerank-text-float32", dtype=_FLOAT, source=_LATE),
    _text("rerank-text-bfloat16", dtype=_BFLOAT, source=_LATE),
    _text("rerank-text-float16", dtype=torch.float16, source=_LATE),
    _text("rerank-text-int8", dtype=_FLOAT, source=_COMPRESSED, layout="packed", quantized=True),
    _text("rerank-long-float32", ld=1024, dtype=_FLOAT, source="maxsim-cpu's own benchmark"),
    _text("ragged-list-float32", dtype=_FLOAT, source="passages as a Python list", layout="list", lognormal=True),
    _text("ragged-packed-float32", dtype=_FLOAT, source="passages, packed once", layout="packed", lognormal=True),
    _small("latency-float32", dtype=_FLOAT, source="one small rerank, documents in the cache"),
    _small("latency-cold-float32", dtype=_FLOAT, source="one small rerank, from memory", flush=True),
    _pages("pages-bfloat16", dtype=_BFLOAT),
    _pages("pages-float32", dtype=_FLOAT),
    _text("batch-bfloat16", nq=64, dtype=_BFLOAT, source=_ALL),
    _text("batch-float32", nq=64, dtype=_FLOAT, source=_ALL),
    _text("train-inbatch-float32", nq=32, nd=32, dtype=_FLOAT, source="in-batch negatives", backward=True),
)
# What `colbert-fast bench` measures where no workload is named: small enough for every tier, the portable one too.
SHORT = (
    "rerank-text-float32",
    "rerank-text-bfloat16",
    "ragged-packed-float32",
    "latency-float32",
    "train-inbatch-float32",
)
