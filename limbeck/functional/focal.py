"""Losses and averages of imbalanced, cross-validated classification."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


@full_precision
def focal_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
    weighted_focus: bool = False,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy that turns to the samples which are not yet right.

    .. math:: L = -w_y (1 - p_y)^\gamma \log p_y

    Args:
        logits: ``[..., C]`` raw scores.
        labels: ``[...]`` integer classes.
        gamma: :math:`\gamma \ge 0`; 0 is the weighted cross-entropy.
        class_weights: ``[C]`` weights :math:`w`; 1 for all when None. A mean divides by the number of positions, not by
            the sum of their weights.
        weighted_focus: take :math:`p_y^{w_y}` for the probability in the focus :math:`(1 - p_y)^\gamma`, as KD-OCT's
            code does; the same where all weights are 1.
        mask: ``[...]`` true where a position counts; labels of other positions may be anything, as -100.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Raises:
        ValueError: ``gamma`` is negative, shapes do not fit, or labels are no class indices.

    References:
        Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002.

    Example:
        >>> focal_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor(0.1733)
    """
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}, but should not be negative")
    if labels.is_floating_point():
        raise ValueError("the focal loss needs class indices; soft labels, as mixing makes them, name no class")
    check_same_shape(logits[..., 0], labels, "logits without the class dimension and labels")
    chosen = labels if mask is None else labels.masked_fill(~mask.bool(), 0)
    surprise = -torch.log_softmax(neutralised(logits, mask), dim=-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    weighted = surprise if class_weights is None else class_weights.to(surprise)[chosen] * surprise
    missing = -torch.expm1(-(weighted if weighted_focus else surprise))
    # A power below one has no bound on its slope at zero, where the loss itself is zero.
    wrong = missing > 0
    focus = torch.where(wrong, missing, torch.ones_like(missing)) ** gamma
    values = torch.where(wrong, focus * weighted, torch.zeros_like(weighted) if gamma else weighted)
    return reduce(values, reduction, mask=mask)


def balanced_class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Returns weights by which every class counts alike: samples over classes times samples of the class.

    Args:
        labels: ``[N]`` labels of the training samples.
        num_classes: number of classes.

    Returns:
        ``[num_classes]``; 0 for a class without samples.

    Example:
        >>> balanced_class_weights(torch.tensor([0, 0, 0, 1]), 2)
        tensor([0.6667, 2.0000])
    """
    counts = torch.bincount(labels, minlength=num_classes).float()
    return torch.where(counts > 0, len(labels) / (num_classes * counts.clamp(min=1)), torch.zeros_like(counts))


def average_logits(views: Tensor) -> Tensor:
    """Returns the mean of logits over views of the same samples, ``[V, ..., C]`` to ``[..., C]``."""
    return views.mean(0)


def average_probabilities(members: Tensor) -> Tensor:
    """Returns the mean of the probabilities of several models' logits, ``[M, ..., C]`` to ``[..., C]``."""
    return torch.softmax(members, dim=-1).mean(0)
