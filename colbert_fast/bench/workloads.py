"""Named workloads and their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import colbert_fast as cf


@dataclass(frozen=True)
class Workload:
    """Some queries against some documents. ``source`` says who asks for it."""

    name: str
    nq: int
    lq: int
    nd: int
    ld: int
    """Tokens of a document; of the longest, where the lengths are lognormal."""
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
    """The documents are held in 8 bits, with one scale a token."""

    @property
    def shape(self) -> str:
        """Sizes in one line: queries x documents, query tokens x document tokens."""
        tokens = f"{self.lq} x {'lognormal, at most ' if self.lognormal else ''}{self.ld}"
        dtype = str(self.dtype).removeprefix("torch.")
        also = ", documents in 8 bits" if self.quantized else ""
        also += ", forward + backward" if self.backward else ""
        return f"{self.nq} x {self.nd}, {tokens}, dim {self.dim}, {dtype}{also}"

    def inputs(self, seed: int = 0) -> Inputs:
        """Draw unit vectors in clusters, as token embeddings are: the tokens of one topic resemble each other.

        Those for a CUDA device are drawn on it, which gives other numbers than the CPU does, and the same lengths.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.lognormal:  # mean 73, as of passages
            drawn = torch.empty(self.nd).log_normal_(4.16, 0.5, generator=generator)
            lengths = drawn.round().clamp(4, self.ld).to(torch.int64)
        else:
            lengths = torch.full((self.nd,), self.ld)
        device = torch.device(self.device)
        if device.type != "cpu":
            generator = torch.Generator(device).manual_seed(seed)
        topics = torch.randn(256, self.dim, generator=generator, device=device)

        def tokens(n: int) -> Tensor:
            topic = topics[torch.randint(256, (n,), generator=generator, device=device)]
            noise = torch.randn(n, self.dim, generator=generator, device=device)
            return torch.nn.functional.normalize(topic + noise, dim=-1).to(self.dtype)

        queries = tokens(self.nq * self.lq).view(self.nq, self.lq, self.dim)
        return Inputs(self, queries, tokens(int(lengths.sum())), lengths)


class Inputs:
    """The embeddings of a workload, in every layout a contender may want."""

    def __init__(self, workload: Workload, queries: Tensor, rows: Tensor, lengths: Tensor) -> None:
        self.workload = workload
        self.queries = queries
        """``[nq, lq, dim]``"""
        self.rows = rows
        """``[total, dim]``: the documents' tokens, one document after the other."""
        self.lengths = lengths
        """``[nd]`` int64, on the CPU."""
        self.packed_queries = cf.PackedTokens.from_padded(queries)
        starts = lengths.cumsum(0) - lengths
        self.packed = cf.PackedTokens(rows, starts, lengths)

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
    def items(self) -> list[Tensor]:
        """The documents as a list of ``[length, dim]``."""
        return list(self.rows.split(self.lengths.tolist()))

    @cached_property
    def quantized(self) -> cf.PackedTokens:
        """The documents in 8 bits."""
        return self.packed.quantize("int8")

    @property
    def bytes(self) -> int:
        """Bytes that must be read at least once; of documents in 8 bits without their scales."""
        documents = self.rows.numel() if self.workload.quantized else self.rows.nbytes
        return documents + self.queries.nbytes

    @property
    def flops(self) -> float:
        """Multiplications and additions of the similarities; a backward pass adds next to nothing to them."""
        return 2.0 * self.queries.shape[0] * self.queries.shape[1] * self.rows.shape[0] * self.workload.dim

    def reference(self) -> Tensor:
        """The definition in float64 on the inputs as given, document by document: ``[nq, nd]`` on the CPU."""
        queries = self.queries.double().flatten(0, 1)
        columns = []
        for d in self.items:
            best = (queries @ d.double().T).amax(1)
            columns.append(best.view(len(self.queries), -1).sum(1))
        return torch.stack(columns, dim=1).cpu()

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients of the sum of all scores in float64: of the queries ``[nq * lq, dim]``, of ``rows``."""
        queries = self.queries.double().flatten(0, 1)
        for_queries = torch.zeros_like(queries)
        for_documents = []
        for d in self.items:
            document = d.double()
            best = (queries @ document.T).argmax(1)
            for_queries += document[best]
            for_documents.append(torch.zeros_like(document).index_add_(0, best, queries))
        return for_queries, torch.cat(for_documents)


_LATE = "ColBERT reranking: 32 query tokens, passages of 300 tokens, the size maxsim-cpu and NumKong quote"
_PAGES = "ColPali: 1024 patches a page, here page against page"
_INT8 = "the same with compressed documents, packed once"
WORKLOADS = (
    Workload("rerank-text-float32", 1, 32, 1000, 300, torch.float32, _LATE),
    Workload("rerank-text-bfloat16", 1, 32, 1000, 300, torch.bfloat16, _LATE),
    Workload("rerank-text-float16", 1, 32, 1000, 300, torch.float16, _LATE),
    Workload(
        "rerank-text-int8",
        1,
        32,
        1000,
        300,
        torch.float32,
        _INT8,
        layout="packed",
        quantized=True,
    ),
    Workload("rerank-long-float32", 1, 32, 1000, 1024, torch.float32, "maxsim-cpu's own benchmark"),
    Workload(
        "ragged-list-float32",
        1,
        32,
        1000,
        300,
        torch.float32,
        "passages as a Python list",
        layout="list",
        lognormal=True,
    ),
    Workload(
        "ragged-packed-float32",
        1,
        32,
        1000,
        300,
        torch.float32,
        "passages, packed once",
        layout="packed",
        lognormal=True,
    ),
    Workload("latency-float32", 1, 32, 100, 180, torch.float32, "one small rerank, documents in the cache"),
    Workload("latency-cold-float32", 1, 32, 100, 180, torch.float32, "one small rerank, from memory", flush=True),
    Workload("pages-bfloat16", 1, 1024, 100, 1024, torch.bfloat16, _PAGES),
    Workload("pages-float32", 1, 1024, 100, 1024, torch.float32, _PAGES),
    Workload("batch-bfloat16", 64, 32, 1000, 300, torch.bfloat16, "evaluation: many queries, all documents"),
    Workload("batch-float32", 64, 32, 1000, 300, torch.float32, "evaluation: many queries, all documents"),
    Workload("train-inbatch-float32", 32, 32, 32, 300, torch.float32, "in-batch negatives", backward=True),
)
# Small enough for a minute in all, and for every tier.
SHORT = (
    "rerank-text-float32",
    "rerank-text-bfloat16",
    "ragged-packed-float32",
    "latency-float32",
    "train-inbatch-float32",
)
