"""What is timed: ours and every peer, each as one small adapter, and the check that comes before its first timing.

What a caller does once, such as packing, happens in an adapter's ``build`` and is reported apart. Where a workload
holds its documents as a list, joining or padding them is part of every call, for everyone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import colbert_fast as cf
from colbert_fast import bench
from colbert_fast.bench import Inputs, Workload

# Beyond this error a peer computes something else, and never sets the bar.
WRONG = 1e-2
# Similarities that the chunked einsum holds at a time: 16 MiB in float32.
CHUNK = 2**22


class Check(NamedTuple):
    """How far scores are from the float64 definition."""

    max_relative_error: float
    kendall_tau: float
    """Of the rankings, mean over the queries."""
    wrong: bool


class Prepared(NamedTuple):
    """A call to be timed."""

    score: Callable[[], Tensor]
    leaves: tuple[Tensor, ...] = ()
    """Their gradients are to be cleared before every call."""
    packing: float | None = None
    """Seconds of the work that a caller does once for a set of documents, or None where there is none."""


@dataclass(frozen=True)
class Contender:
    """One library, or one formulation in it."""

    name: str
    kind: str
    """"ours", "torch" or "peer"."""
    build: Callable[[Inputs], Prepared]
    package: str = "torch"
    """The distribution whose version is reported, and without which it cannot run."""
    refusals: tuple[Callable[[Workload], str | None], ...] = ()
    backend: str | None = None
    main: bool = True
    """Timed in the quick profile too."""

    @property
    def version(self) -> str | None:
        """Of the package, or None where it is not installed."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def why_not(self, workload: Workload) -> str | None:
        """Return the reason why it cannot run here or for this workload, or None."""
        if workload.device == "cuda" and not torch.cuda.is_available():
            return "this machine has no CUDA device"
        reasons = (refusal(workload) for refusal in self.refusals)
        return next(filter(None, reasons), None) or _missing(self.package)

    def prepare(self, inputs: Inputs) -> Prepared:
        """Lay the inputs out as this contender wants them."""
        prepared = self.build(inputs)
        if inputs.workload.device == "cuda":
            return prepared._replace(score=functools.partial(_synchronised, prepared.score))
        return prepared

    def backend_of(self, workload: Workload) -> str | None:
        """Return the name of our backend that scores this workload, None for others."""
        if self.kind != "ours" or self.backend is not None:
            return self.backend
        return next(b.name for b in cf.backends() if _forced(b)(workload) is None)


def check(contender: Contender, scores: Tensor, reference: Tensor) -> Check:
    """Compare scores with the definition.

    Raises
    ------
    ValueError
        Ours is further from it than the contract allows.
    """
    from scipy.stats import kendalltau

    scores = scores.detach().cpu().double().reshape(reference.shape)
    error = bench.relative_error(scores, reference)
    taus = [kendalltau(a, b).statistic for a, b in zip(scores.numpy(), reference.numpy(), strict=True)]
    # NaN compares false with everything; written this way round it is refused.
    if contender.kind == "ours" and not error <= bench.MAX_RELATIVE_ERROR:
        msg = (
            f"{contender.name} must be within {bench.MAX_RELATIVE_ERROR:.0e} of float64; got relative error {error:.1e}"
        )
        raise ValueError(msg)
    return Check(error, float(np.mean(taus)), not error <= WRONG)


def _synchronised(score: Callable[[], Tensor]) -> Tensor:
    scores = score()
    torch.cuda.synchronize()
    return scores


@functools.cache
def _missing(package: str) -> str | None:
    try:
        importlib.import_module(package.replace("-", "_"))
    except ModuleNotFoundError as error:
        if error.name == package.replace("-", "_"):
            return f"{package} is not installed"
        return f"{package} cannot be imported: {error}"
    except ImportError as error:
        return f"{package} cannot be imported: {error}"
    return None


def _no_gradients(workload: Workload) -> str | None:
    return "has no gradients" if workload.backward else None


def _float32_only(workload: Workload) -> str | None:
    return None if workload.dtype == torch.float32 else "takes float32 only"


def _half_only(workload: Workload) -> str | None:
    return "the inputs are float32 already" if workload.dtype == torch.float32 else None


def _cpu_only(workload: Workload) -> str | None:
    return None if workload.device == "cpu" else "runs on the CPU only"


def _cuda_only(workload: Workload) -> str | None:
    return None if workload.device == "cuda" else "its kernels run on CUDA only"


def _equal_lengths_only(workload: Workload) -> str | None:
    return "needs documents of one length" if workload.lognormal else None


def _ragged_only(workload: Workload) -> str | None:
    return None if workload.lognormal else "meant for documents of different lengths"


def _maxsim_cpu_query(workload: Workload) -> str | None:
    # libxsmm compiles kernels up to 64 x 64 x 64 and asks a BLAS for larger ones; documents come 64 tokens at a time.
    if workload.lq * workload.dim <= 64 * 64:
        return None
    return f"its wheel has no BLAS, which it needs beyond {64 * 64 // workload.dim} query tokens: it crashes"


def _compiler(workload: Workload) -> str | None:
    compiler = os.environ.get("CXX") or ("triton" if workload.device == "cuda" else "g++")
    found = _missing("triton") is None if compiler == "triton" else shutil.which(compiler) is not None
    return None if found else f"torch.compile needs {compiler}, which is not installed"


def _forced(backend: Any) -> Callable[[Workload], str | None]:
    def reason(workload: Workload) -> str | None:
        if backend.unsupported is not None:
            return str(backend.unsupported)
        if backend.device not in (None, workload.device):
            return f"takes tensors on {backend.device} only"
        return None if workload.dtype in backend.dtypes else f"has no {workload.dtype} kernel"

    return reason


def _prepared(
    score: Callable[[Tensor, Any], Tensor], inputs: Inputs, documents: Any, packing: float | None = None
) -> Prepared:
    """Bind the inputs to a scoring function; with the backward pass where the workload has one."""
    queries = inputs.queries
    if not inputs.workload.backward:
        return Prepared(lambda: score(queries, documents), (), packing)
    q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()

    def step() -> Tensor:
        scores = score(q, d)
        scores.sum().backward()
        return scores.detach()

    return Prepared(step, (q, d), packing)


def _ours(backend: str | None, inputs: Inputs) -> Prepared:
    return _prepared(lambda q, d: cf.maxsim(q, d, backend=backend), inputs, inputs.documents)


def _padded(items: list[Tensor], lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return documents ``[nd, ld, dim]``, and ``[nd, ld]``: True where a row is padding."""
    padded = pad_sequence(items, batch_first=True)
    return padded, (torch.arange(padded.shape[1]) >= lengths[:, None]).to(padded.device)


def _on_padded(score: Callable[[Tensor, Tensor, Tensor | None], Tensor], inputs: Inputs) -> Prepared:
    """Bind a function of queries, padded documents and their padding."""
    if not inputs.workload.lognormal:
        return _prepared(lambda q, d: score(q, d, None), inputs, inputs.padded)
    items, lengths = inputs.items, inputs.lengths
    if inputs.workload.layout == "list":
        return _prepared(lambda q, d: score(q, *_padded(d, lengths)), inputs, items)
    start = time.perf_counter()
    documents, padding = _padded(items, lengths)
    return _prepared(lambda q, d: score(q, d, padding), inputs, documents, time.perf_counter() - start)


def einsum(q: Tensor, d: Tensor, padding: Tensor | None) -> Tensor:
    """Score as the papers' code does: all similarities at once."""
    similarity = torch.einsum("qid,njd->qnij", q, d)
    if padding is not None:
        similarity = similarity.masked_fill(padding[:, None, :], float("-inf"))
    return similarity.amax(-1).float().sum(-1)


def _einsum_cast(q: Tensor, d: Tensor, padding: Tensor | None) -> Tensor:
    return einsum(q.float(), d.float(), padding)


def _einsum_chunked(q: Tensor, d: Tensor, padding: Tensor | None) -> Tensor:
    size = max(1, CHUNK // (q.shape[0] * q.shape[1] * d.shape[1]))
    parts = [
        einsum(q, d[start : start + size], None if padding is None else padding[start : start + size])
        for start in range(0, len(d), size)
    ]
    return torch.cat(parts, dim=1)


def _compiled(inputs: Inputs) -> Prepared:
    torch.compiler.reset()
    return _on_padded(torch.compile(einsum, dynamic=False), inputs)


def _gemm(q: Tensor, d: Tensor, _: Tensor | None) -> Tensor:
    """One matrix product with the queries first: the tokens of a document end side by side."""
    similarity = q.flatten(0, 1) @ d.flatten(0, 1).T
    return similarity.view(len(q), -1, *d.shape[:2]).amax(-1).float().sum(1)


def _gemm_cast(q: Tensor, d: Tensor, padding: Tensor | None) -> Tensor:
    return _gemm(q.float(), d.float(), padding)


def _gemm_documents_first(q: Tensor, d: Tensor, _: Tensor | None) -> Tensor:
    similarity = d.flatten(0, 1) @ q.flatten(0, 1).T
    return similarity.view(*d.shape[:2], len(q), -1).amax(1).float().sum(-1).T


def _on_rows(reduce: Callable[[Tensor, Tensor], Tensor], index: Callable[[Tensor], Tensor], inputs: Inputs) -> Prepared:
    """Bind one product over all rows and a maximum by document; ``index`` says which rows are whose."""

    def score(q: Tensor, rows: Tensor, which: Tensor) -> Tensor:
        best = reduce(rows @ q.flatten(0, 1).T, which)
        return best.view(len(best), len(q), -1).float().sum(-1).T

    lengths = inputs.lengths
    if inputs.workload.layout == "list":
        return _prepared(lambda q, d: score(q, torch.cat(d), index(lengths).to(q.device)), inputs, inputs.items)
    start = time.perf_counter()
    which = index(lengths).to(inputs.rows.device)
    return _prepared(lambda q, d: score(q, d, which), inputs, inputs.rows, time.perf_counter() - start)


def _segment_reduce(similarity: Tensor, lengths: Tensor) -> Tensor:
    # Without unsafe, lengths are checked in every call.
    return torch.segment_reduce(similarity, "max", lengths=lengths, axis=0, unsafe=True)


def _scatter_reduce(similarity: Tensor, owner: Tensor) -> Tensor:
    best = similarity.new_full((int(owner[-1]) + 1, similarity.shape[1]), float("-inf"))
    return best.scatter_reduce_(0, owner[:, None].expand_as(similarity), similarity, "amax")


def _owner(lengths: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def _sentence_transformers(inputs: Inputs) -> Prepared:
    from sentence_transformers.util import maxsim

    return _prepared(maxsim, inputs, inputs.items if inputs.workload.lognormal else inputs.padded)


def _numpy(inputs: Inputs) -> Prepared:
    workload = inputs.workload
    queries = inputs.queries.flatten(0, 1).numpy()
    rows = inputs.rows.numpy()
    items = [item.numpy() for item in inputs.items] if workload.layout == "list" else None
    starts = inputs.packed.starts.numpy()

    def score() -> Tensor:
        similarity = queries @ (rows if items is None else np.concatenate(items)).T
        if workload.lognormal:
            best = np.maximum.reduceat(similarity, starts, axis=1)
        else:
            best = similarity.reshape(len(queries), workload.nd, -1).max(2)
        return torch.from_numpy(best.reshape(workload.nq, -1, workload.nd).sum(1))

    return Prepared(score)


def _maxsim_cpu(inputs: Inputs) -> Prepared:
    import maxsim_cpu

    queries = [query.numpy() for query in inputs.queries]
    ragged = inputs.workload.lognormal
    function = maxsim_cpu.maxsim_scores_variable if ragged else maxsim_cpu.maxsim_scores
    documents: Any = [item.numpy() for item in inputs.items] if ragged else inputs.padded.numpy()
    return Prepared(lambda: torch.from_numpy(np.stack([function(query, documents) for query in queries])))


def _numkong(inputs: Inputs) -> Prepared:
    import numkong

    start = time.perf_counter()
    documents = [numkong.maxsim_pack(numkong.from_dlpack(item)) for item in inputs.items]
    packing = time.perf_counter() - start
    queries = inputs.queries
    lq = queries.shape[1]

    def score() -> Tensor:
        # It returns a sum of angular distances, 1 - cosine.
        packed = [numkong.maxsim_pack(numkong.from_dlpack(query)) for query in queries]
        return torch.tensor([[lq - float(numkong.maxsim_packed(q, d)) for d in documents] for q in packed])

    return Prepared(score, (), packing)


# The two CUDA libraries are written from their documentation and untested: no machine with both has run this yet.
def _late_interaction_kernels(inputs: Inputs) -> Prepared:
    from late_interaction_kernels import maxsim

    return _on_padded(lambda q, d, padding: maxsim(q, d, None, None if padding is None else ~padding), inputs)


def _flash_maxsim(inputs: Inputs) -> Prepared:
    import flash_maxsim

    training = inputs.workload.backward
    function = flash_maxsim.flash_maxsim_batched_train if training else flash_maxsim.flash_maxsim_batched
    lengths = inputs.lengths.to(inputs.rows.device, torch.int32) if inputs.workload.lognormal else None
    return _on_padded(lambda q, d, _: function(q, d, shared_docs=True, doc_lengths=lengths), inputs)


def _torch(name: str, build: Callable[[Inputs], Prepared], *refusals: Any, main: bool = True) -> Contender:
    return Contender(name, "torch", build, refusals=refusals, main=main)


def _contenders() -> tuple[Contender, ...]:
    auto = Contender("colbert_fast", "ours", functools.partial(_ours, None), "colbert-fast")
    forced = [
        replace(
            auto,
            name=f"colbert_fast {b.name}",
            build=functools.partial(_ours, b.name),
            refusals=(_forced(b),),
            backend=b.name,
        )
        for b in cf.backends()
    ]
    on_padded = functools.partial(functools.partial, _on_padded)
    segments = functools.partial(_on_rows, _segment_reduce, lambda lengths: lengths)
    scattered = functools.partial(_on_rows, _scatter_reduce, _owner)
    cpu = (_cpu_only, _no_gradients)
    return (
        auto,
        *forced,
        _torch("torch einsum", on_padded(einsum)),
        _torch("torch einsum, chunked", on_padded(_einsum_chunked)),
        _torch("torch einsum, cast to float32", on_padded(_einsum_cast), _half_only, main=False),
        _torch("torch einsum, compiled", _compiled, _compiler, main=False),
        _torch("torch GEMM", on_padded(_gemm), _equal_lengths_only),
        _torch("torch GEMM, documents first", on_padded(_gemm_documents_first), _equal_lengths_only),
        _torch("torch GEMM, cast to float32", on_padded(_gemm_cast), _half_only, _equal_lengths_only, main=False),
        _torch("torch GEMM + segment_reduce", segments, _ragged_only),
        _torch("torch GEMM + scatter_reduce", scattered, _ragged_only),
        Contender("sentence-transformers maxsim", "peer", _sentence_transformers, "sentence-transformers"),
        Contender("numpy", "peer", _numpy, "numpy", (*cpu, _float32_only)),
        Contender("maxsim-cpu", "peer", _maxsim_cpu, "maxsim-cpu", (*cpu, _float32_only, _maxsim_cpu_query)),
        Contender("numkong", "peer", _numkong, "numkong", cpu),
        Contender(
            "late-interaction-kernels", "peer", _late_interaction_kernels, "late-interaction-kernels", (_cuda_only,)
        ),
        Contender("flash-maxsim", "peer", _flash_maxsim, "flash-maxsim", (_cuda_only,)),
    )


CONTENDERS = _contenders()
