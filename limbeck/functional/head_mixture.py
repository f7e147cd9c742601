"""Predictions mixed of two classifiers on the same features: one that learnt labels, one that learnt a teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.functional.divergences import tempered_log_softmax
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import check_same_shape

ALPHAS = tuple(0.05 * step for step in range(21))
"""Shares of the label classifier that a search tries."""
BETAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)
"""Temperatures of the teacher classifier that a search tries."""


@full_precision
def mixed_log_probabilities(label_logits: Tensor, teacher_logits: Tensor, *, alpha: float, beta: float) -> Tensor:
    r"""Returns the logarithms of mixed probabilities.

    .. math:: p = \alpha\,\mathrm{softmax}(z^{label}) + (1 - \alpha)\,\mathrm{softmax}(z^{teacher} / \beta)

    Args:
        label_logits: ``[..., C]`` of the classifier that learnt labels.
        teacher_logits: ``[..., C]`` of the classifier that learnt the teacher.
        alpha: share of the first, in [0, 1].
        beta: temperature of the second, positive; below 1 it is sharpened.

    Returns:
        ``[..., C]``, float32 or better; a softmax of them gives the mixture.

    Raises:
        ValueError: shapes differ, or a share or a temperature is out of range.

    References:
        Kang et al., "Simple yet Effective Semi-supervised Knowledge Distillation from Vision-Language Models via
        Dual-Head Optimization", arXiv 2505.07675.

    Example:
        >>> mixed_log_probabilities(torch.zeros(1, 2), torch.tensor([[40.0, 0.0]]), alpha=0.5, beta=1.0).exp()
        tensor([[0.7500, 0.2500]])
    """
    check_same_shape(label_logits, teacher_logits, "logits of the two classifiers")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, but should be in [0, 1]")
    first, second = torch.log_softmax(label_logits, -1), tempered_log_softmax(teacher_logits, beta)
    if alpha in (0, 1):
        return first if alpha else second
    return torch.logaddexp(first + math.log(alpha), second + math.log1p(-alpha))


class Mixture(NamedTuple):
    """A mixture and how many samples it gets right.

    Attributes:
        alpha: share of the label classifier.
        beta: temperature of the teacher classifier.
        accuracy: part of the samples whose largest probability is the label's.
    """

    alpha: float
    beta: float
    accuracy: float


@torch.no_grad()
def search_mixture(
    label_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
    ties: Literal["first", "central"] = "first",
) -> Mixture:
    """Finds the mixture with the best accuracy among all pairs of a share and a temperature.

    With 0, 1 among the shares it is never worse than either classifier alone on the samples given, so give samples
    that are neither trained on nor used for the final judgement.

    Args:
        label_logits: ``[N, C]`` of the classifier that learnt labels.
        teacher_logits: ``[N, C]`` of the classifier that learnt the teacher.
        labels: ``[N]`` integer classes.
        alphas: shares to try.
        betas: temperatures to try.
        ties: which of several equally good pairs to take: the ``first``, temperatures in order and shares in order
            within each; or the ``central`` one, whose share is closest to 1/2 (few samples tie often).

    Raises:
        ValueError: shapes do not fit, or there is nothing to try.

    Example:
        >>> sure, right = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 9.0]])
        >>> search_mixture(sure, right, torch.tensor([1]), alphas=(0.0, 1.0), betas=(1.0,))
        Mixture(alpha=0.0, beta=1.0, accuracy=1.0)
    """
    check_same_shape(label_logits, teacher_logits, "logits of the two classifiers")
    check_same_shape(label_logits[..., 0], labels, "logits without the class dimension and labels")
    wide = torch.promote_types(label_logits.dtype, torch.float32)
    first = torch.softmax(label_logits.to(wide), -1)
    tried = [
        Mixture(alpha, beta, float(((alpha * first + (1 - alpha) * second).argmax(-1) == labels).double().mean()))
        for beta in betas
        for second in (tempered_log_softmax(teacher_logits.to(wide), beta).exp(),)
        for alpha in alphas
    ]
    if not tried:
        raise ValueError("there is no pair of a share and a temperature to try")
    best = max(mixture.accuracy for mixture in tried)
    winners = [mixture for mixture in tried if mixture.accuracy == best]
    return winners[0] if ties == "first" else min(winners, key=lambda mixture: abs(mixture.alpha - 0.5))
