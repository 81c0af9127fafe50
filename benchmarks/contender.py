"""What a contender is: a library or a formulation, when it cannot run, and the check before its first timing."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import colbert_fast as cf
from colbert_fast import bench
from colbert_fast.bench import Inputs, Workload

# Beyond this error a peer computes something else, and never sets the bar.
WRONG = 1e-2


class Check(NamedTuple):
    """How far scores are from the float64 definition."""

    max_relative_error: float
    kendall_tau: float | None
    """Of the rankings, mean over the queries; None without scipy."""
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
        Whether ours must keep the contract's bound, which documents that were rounded to 8 bits cannot.

    Raises
    ------
    ValueError
        Ours is further from it than the contract allows.
    """
    scores = scores.detach().cpu().double().reshape(reference.shape)
    error = bench.relative_error(scores, reference)
    # NaN compares false with everything; written this way round it is refused.
    if contender.kind == "ours" and exact and not error <= bench.MAX_RELATIVE_ERROR:
        msg = (
            f"{contender.name} must be within {bench.MAX_RELATIVE_ERROR:.0e} of float64; got relative error {error:.1e}"
        )
        raise ValueError(msg)
    return Check(error, _kendall_tau(scores, reference), not error <= WRONG)


def _kendall_tau(scores: Tensor, reference: Tensor) -> float | None:
    try:
        from scipy.stats import kendalltau
    except ImportError:
        return None
    taus = [kendalltau(a, b).statistic for a, b in zip(scores.numpy(), reference.numpy(), strict=True)]
    return float(np.mean(taus))


@functools.cache
def missing(package: str) -> str | None:
    """Say why a package cannot be imported, or None."""
    try:
        importlib.import_module(package.replace("-", "_"))
    except ModuleNotFoundError as error:
        if error.name == package.replace("-", "_"):
            return f"{package} is not installed"
        return f"{package} cannot be imported: {error}"
    except ImportError as error:
        return f"{package} cannot be imported: {error}"
    return None


def no_gradients(workload: Workload) -> str | None:
    """Refuse a backward pass."""
    return "has no gradients" if workload.backward else None


def exact_only(workload: Workload) -> str | None:
    """Refuse documents that are held in 8 bits."""
    return "scores tokens as they are" if workload.quantized else None


def quantized_only(workload: Workload) -> str | None:
    """Refuse documents that are not held in 8 bits."""
    return None if workload.quantized else "meant for documents in 8 bits"


def float32_only(workload: Workload) -> str | None:
    """Refuse half precision."""
    return None if workload.dtype == torch.float32 else "takes float32 only"


def half_only(workload: Workload) -> str | None:
    """Refuse float32."""
    return "the inputs are float32 already" if workload.dtype == torch.float32 else None


def equal_lengths_only(workload: Workload) -> str | None:
    """Refuse ragged documents."""
    return "needs documents of one length" if workload.lognormal else None


def ragged_only(workload: Workload) -> str | None:
    """Refuse documents of one length."""
    return None if workload.lognormal else "meant for documents of different lengths"


def forced(backend: Any) -> Callable[[Workload], str | None]:
    """Refuse what a backend of ours cannot run or take."""

    def reason(workload: Workload) -> str | None:
        if backend.unsupported is not None:
            return str(backend.unsupported)
        if backend.device not in (None, workload.device):
            return f"takes tensors on {backend.device} only"
        return None if workload.dtype in backend.dtypes else f"has no {workload.dtype} kernel"

    return reason
