"""What a contender is: a library or a formulation, when it cannot run, and the check before its first timing."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

import colbert_fast as cf
from benchmarks import machine
from colbert_fast import bench
from colbert_fast.bench import Inputs, Workload

T = TypeVar("T")
# Beyond this error a peer computes something else, and never sets the bar.
WRONG = 1e-2


class Check(NamedTuple):
    """How far scores are from the float64 definition."""

    max_relative_error: float
    kendall_tau: float | None
    """Of the rankings, the mean over the queries; None without scipy."""
    wrong: bool


class Prepared(NamedTuple):
    """A call to be timed."""

    score: Callable[[], Tensor]
    leaves: tuple[Tensor, ...] = ()
    """Their gradients are to be cleared before every call."""
    packing: float | None = None
    """Seconds of the work that a caller does once for a set of documents, or None where there is none."""

    def clear(self) -> None:
        """Let go of the gradients of the call before."""
        for leaf in self.leaves:
            leaf.grad = None


@dataclass(frozen=True)
class Contender:
    """One library, or one formulation in it."""

    name: str
    kind: str
    """"ours", "torch" or "peer"."""
    build: Callable[[Inputs], Prepared]
    package: str = "torch"
    """The distribution whose version is reported, and without which it cannot run."""
    refusals: tuple[Refusal, ...] = ()
    backend: str | None = None
    main: bool = True
    """Timed in the quick profile too."""

    @property
    def version(self) -> str | None:
        """Of the package, or None where it is not installed."""
        return machine.version(self.package)

    def why_not(self, workload: Workload) -> str | None:
        """Return the reason why it cannot run here or for this workload, or None."""
        if workload.device == "cuda" and not torch.cuda.is_available():
            return "this machine has no CUDA device"
        reasons = (refusal(workload) for refusal in self.refusals)
        return next(filter(None, reasons), None) or missing(self.package)

    def prepare(self, inputs: Inputs) -> Prepared:
        """Lay the inputs out as this contender wants them."""
        return self.build(inputs)

    def backend_of(self, workload: Workload) -> str | None:
        """Return the name of our backend that scores this workload, None for others."""
        if self.kind != "ours" or self.backend is not None:
            return self.backend
        return next(b.name for b in cf.backends() if forced(b)(workload) is None)


def check(contender: Contender, scores: Tensor, reference: Tensor, exact: bool = True) -> Check:
    """Compare scores with the definition.

    Parameters
    ----------
    exact
        Whether our scores must keep the bound of 1e-5. Documents that were rounded to 8 bits cannot keep it.

    Raises
    ------
    ValueError
        Our scores are further from the definition than that.
    """
    scores = scores.detach().cpu().double().reshape(reference.shape)
    error = bench.relative_error(scores, reference)
    # NaN compares false with everything; written this way round it is refused.
    if contender.kind == "ours" and exact and not error <= bench.MAX_RELATIVE_ERROR:
        msg = (
            f"{contender.name} must be within {bench.MAX_RELATIVE_ERROR:.0e} of float64; got relative error {error:.1e}"
        )
        raise ValueError(msg)
    return Check(error, kendall_tau(scores, reference), not error <= WRONG)


def kendall_tau(scores: Tensor, reference: Tensor) -> float | None:
    """Return tau-b of the rankings, the mean over the queries; None without scipy."""
    try:
        from scipy.stats import kendalltau
    except ImportError:
        return None
    taus = [kendalltau(a, b).statistic for a, b in zip(scores.numpy(), reference.numpy(), strict=True)]
    return float(np.mean(taus))


def right_gradients(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return gradients of the sum of all scores in float64: of the queries ``[nq * lq, dim]``, and of ``rows``."""
    queries = inputs.queries.double().flatten(0, 1)
    for_queries = torch.zeros_like(queries)
    for_documents = []
    for d in inputs.items:
        document = d.double()
        best = (queries @ document.T).argmax(1)
        for_queries += document[best]
        for_documents.append(torch.zeros_like(document).index_add_(0, best, queries))
    return for_queries, torch.cat(for_documents)


def turn_by_turn(items: Sequence[T], turns: int) -> Iterator[tuple[int, T]]:
    """Give every item once in each turn; every turn begins with another item."""
    for turn in range(turns):
        first = turn % len(items)
        yield from ((turn, item) for item in (*items[first:], *items[:first]))


@functools.cache
def missing(package: str) -> str | None:
    """Say why a package cannot be imported, or None."""
    module = package.replace("-", "_")
    try:
        importlib.import_module(module)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == module
        return f"{package} is not installed" if absent else f"{package} cannot be imported: {error}"
    return None


Refusal = Callable[[Workload], "str | None"]


def _unless(reason: str, fits: Callable[[Workload], bool]) -> Refusal:
    """Refuse the workloads that do not fit."""
    return lambda workload: None if fits(workload) else reason


no_gradients = _unless("has no gradients", lambda workload: not workload.backward)
exact_only = _unless("scores tokens as they are", lambda workload: not workload.quantized)
quantized_only = _unless("meant for documents in 8 bits", lambda workload: workload.quantized)
float32_only = _unless("takes float32 only", lambda workload: workload.dtype == torch.float32)
half_only = _unless("the inputs are float32 already", lambda workload: workload.dtype != torch.float32)
equal_lengths_only = _unless("needs documents of one length", lambda workload: not workload.lognormal)
ragged_only = _unless("meant for documents of different lengths", lambda workload: workload.lognormal)


def forced(backend: Any) -> Refusal:
    """Refuse what a backend of ours cannot run or take."""

    def reason(workload: Workload) -> str | None:
        if backend.unsupported is not None:
            return str(backend.unsupported)
        if backend.device not in (None, workload.device):
            return f"takes tensors on {backend.device} only"
        return None if workload.dtype in backend.dtypes else f"has no {workload.dtype} kernel"

    return reason
