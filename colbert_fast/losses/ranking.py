"""The cross-entropy between the positive document of a query and its negative documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn


class Ranking(nn.Module):
    """Cross-entropy that teaches an encoder to score the positive document above the negative ones.

    `loss = mean over i of -log(exp(p_i) / (exp(p_i) + sum over j of exp(n_ij)))` with the scores `p_i` of the positive
    documents and `n_ij` of the negative documents (SPLADE, Formal et al., 2021, equation 5). neural-cherche's
    `losses.Ranking` takes the same arguments and gives the same numbers.

    Examples
    --------
    >>> import torch
    >>> Ranking()(positive_scores=torch.tensor([3.0]), negative_scores=torch.tensor([3.0]))
    tensor(0.6931)
    """

    def __init__(self) -> None:
        super().__init__()
        self.cross_entropy: nn.CrossEntropyLoss = nn.CrossEntropyLoss()

    def forward(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        """Compute the loss.

        Parameters
        ----------
        positive_scores
            [n], floating point, n at least 1: the score of the positive document of each query.
        negative_scores
            [n] or [n, m], floating point, m at least 1, on the same device: the scores of the negative documents of
            each query.

        Returns
        -------
        torch.Tensor
            A tensor without dimensions, in the wider of the two dtypes. Differentiable.

        Raises
        ------
        TypeError
            An argument is not a floating-point tensor.
        ValueError
            A shape that does not fit, no query at all, or no negative document.
        """
        _check_scores("positive_scores", positive_scores, 1)
        _check_scores("negative_scores", negative_scores, 1, 2)
        if len(positive_scores) != len(negative_scores):
            msg = (
                "positive_scores and negative_scores must have a row for each query; "
                f"got {len(positive_scores)} and {len(negative_scores)} rows"
            )
            raise ValueError(msg)
        scores = torch.cat([positive_scores.unsqueeze(1), negative_scores.view(len(negative_scores), -1)], dim=1)
        first = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        loss: Tensor = self.cross_entropy(scores, first)
        return loss

    if TYPE_CHECKING:  # what torch's Module takes and returns is Any

        def __call__(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor: ...


def _check_scores(name: str, scores: Any, *dims: int) -> None:
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        msg = f"{name} must be a floating-point tensor; got {got}"
        raise TypeError(msg)
    if scores.ndim not in dims or not scores.numel():
        shapes = "[n], with n" if dims == (1,) else "[n] or [n, m], with n and m"
        msg = f"{name} must be {shapes} at least 1; got {list(scores.shape)}"
        raise ValueError(msg)
