"""colpali-engine's scoring functions, with its names, arguments and padding.

`from colbert_fast.integrations import colpali`; the functions need no colpali-engine. colpali-engine pads the pages of
a batch with rows of zeros. Such a row has the similarity 0 and may win with it, so that the score of a page depends on
the pages around it. That is so here too, unless ``padding="skip"`` is given.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from colbert_fast._extras import need
from colbert_fast._integers import positive_int
from colbert_fast._maxsim import maxsim, maxsim_pairwise
from colbert_fast.integrations._padding import in_pairs, matrices, padded, with_row_of_zeros
from colbert_fast.integrations._patching import Patch, unless_named

__all__ = ["maxsim_inbatch", "maxsim_kd", "patched", "score_multi_vector"]


def score_multi_vector(
    qs: Tensor | Sequence[Any],
    ps: Tensor | Sequence[Any],
    batch_size: int = 128,
    device: torch.device | str | None = None,
    *,
    padding: Literal["batch", "skip"] = "batch",
) -> Tensor:
    """Score every query against every page, as ``processor.score_multi_vector`` of colpali-engine.

    Parameters
    ----------
    qs
        Queries: a list of ``[length, dim]`` tensors or arrays, or a padded ``[Q, length, dim]``.
    ps
        Pages, likewise.
    batch_size
        How many pages colpali-engine pads together.
    device
        The device to score on. Default: the current CUDA device if there is one, else where the pages are.
    padding
        ``"batch"``: a page that is shorter than the longest page of its batch scores at least 0 for each query token,
        as in colpali-engine, where zeros are appended to it. So its score depends on ``batch_size`` and on the
        order of the pages. A row of zeros in a padded tensor is a token. ``"skip"``: padding never scores, neither rows
        that would be appended nor rows of zeros in a padded tensor, and the score of a page depends on that page alone.

    Returns
    -------
    torch.Tensor
        ``[Q, P]`` float32 on the CPU. Differentiable.

    Raises
    ------
    TypeError
        As ``cf.maxsim``.
    ValueError
        No queries, or no pages; as ``cf.maxsim``; also for an unknown ``padding``.

    Notes
    -----
    With ``padding="batch"`` the rows that enter each maximum are exactly those of colpali-engine, but this package's
    kernels add the products in another order. So float32 scores agree within 1e-5, and to the last bit where no sum
    is rounded. Half-precision embeddings are scored in float32; colpali-engine rounds every similarity and every sum
    to half precision first.
    """
    if padding not in ("batch", "skip"):
        msg = f'padding must be "batch" or "skip"; got {padding!r}'
        raise ValueError(msg)
    batch_size = positive_int(batch_size, "batch_size")
    queries, pages = _side(qs, "qs"), _side(ps, "ps")
    if len(queries) == 0:
        msg = "No queries provided"
        raise ValueError(msg)
    if len(pages) == 0:
        msg = "No passages provided"
        raise ValueError(msg)
    if device is None and torch.cuda.is_available():
        device = "cuda"
    if padding == "skip" or isinstance(pages, Tensor):
        pad: Literal["skip", "zero"] = "skip" if padding == "skip" else "zero"
        return maxsim(queries, pages, device=device, pad=pad).to("cpu", torch.float32)
    batches = (pages[i : i + batch_size] for i in range(0, len(pages), batch_size))
    scores = [maxsim(queries, with_row_of_zeros(batch), device=device).cpu() for batch in batches]
    return torch.cat(scores, dim=1).to(torch.float32)


def _side(value: Tensor | Sequence[Any], name: str) -> Tensor | list[Tensor]:
    return matrices(value, name) if isinstance(value, (list, tuple)) else padded(value, name, 3)


def maxsim_inbatch(query: Tensor, doc: Tensor) -> Tensor:
    """Score every query against every document, as ``colpali_engine.utils.maxsim.maxsim_inbatch``.

    Parameters
    ----------
    query
        ``[A, length, dim]``.
    doc
        ``[B, length, dim]``. Each row is a token, also a row of zeros.

    Returns
    -------
    torch.Tensor
        ``[A, B]`` on the device of ``doc``: float32, or float64 if either side is. Differentiable. Where
        maxima are equal, the first gets the gradient; colpali-engine divides the gradient among them.

    Raises
    ------
    TypeError, ValueError
        As ``cf.maxsim``.
    """
    return maxsim(padded(query, "query", 3), padded(doc, "doc", 3), pad="zero")


def maxsim_kd(query: Tensor, doc: Tensor) -> Tensor:
    """Score each query against its own candidates, as ``colpali_engine.utils.maxsim.maxsim_kd``.

    Parameters
    ----------
    query
        ``[A, length, dim]``.
    doc
        ``[A, n, length, dim]``: the n candidates of each query. Each row is a token, also a row of zeros. One side may
        hold a single item, which then goes with every item of the other side.

    Returns
    -------
    torch.Tensor
        ``[A, n]``, otherwise as :func:`maxsim_inbatch`.

    Raises
    ------
    TypeError, ValueError
        As ``cf.maxsim``; also ValueError unless there are candidates for each query.
    """
    query, doc = in_pairs(padded(query, "query", 3), padded(doc, "doc", 4))
    return maxsim_pairwise(query, doc, pad="zero")


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Let colpali-engine score with this package inside of a `with` block, or in a function with ``@patched()`` above.

    ``score_multi_vector`` of all its processors, and the functions ``maxsim_inbatch`` and ``maxsim_kd`` that its losses
    call, become the functions of this module, with ``padding="batch"``. Scores of single vectors and the smooth maximum
    of the losses stay as they are. Where the environment variable ``COLPALI_SCORES_BACKEND`` names a backend,
    colpali-engine's own function runs as before: ``auto`` alone means this package.

    Blocks may nest. The end of the outermost block, also by an exception, puts everything back. The patch holds for
    the whole process, so other threads see it too. To enter and to leave takes some tenths of a second: put the block
    around a program's main part, not around every call.

    Raises
    ------
    ImportError
        colpali-engine is not installed, or is older than 0.3.18.
    """
    need("colbert_fast.integrations.colpali.patched()", None, {"colpali-engine": "0.3.18"})
    with _PATCH.active():
        yield


def _replacements() -> dict[Callable[..., Any], Callable[..., Any]]:
    scoring = importlib.import_module("colpali_engine.utils.maxsim")
    processing = importlib.import_module("colpali_engine.utils.processing_utils")
    ours: dict[Callable[..., Any], Callable[..., Any]] = {
        scoring.maxsim_inbatch: maxsim_inbatch,
        scoring.maxsim_kd: maxsim_kd,
        processing.BaseVisualRetrieverProcessor.score_multi_vector: score_multi_vector,
    }
    return {theirs: unless_named(theirs, our, "COLPALI_SCORES_BACKEND") for theirs, our in ours.items()}


_PATCH = Patch(_replacements)
