"""Squared errors of class probabilities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


@full_precision
def probability_error(
    logits: Tensor, labels: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    r"""Squared distance of the predicted probabilities from the labels, mean over classes.

    .. math:: L = \tfrac1C \sum_c (p_c - q_c)^2

    Args:
        logits: ``[..., C]`` raw scores.
        labels: ``[...]`` integer classes, or ``[..., C]`` probabilities; no gradient flows to them.
        mask: ``[...]`` true where a position counts; labels of other positions may be anything, as -100.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> probability_error(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor(0.2500)
    """
    predicted = torch.softmax(neutralised(logits, mask), dim=-1)
    if labels.is_floating_point():
        check_same_shape(logits, labels, "logits and label probabilities")
        target = neutralised(labels.detach(), mask)
    else:
        check_same_shape(logits[..., 0], labels, "logits without the class dimension and labels")
        chosen = labels if mask is None else labels.masked_fill(~mask.bool(), 0)
        target = one_hot(chosen, logits.shape[-1]).to(predicted)
    return reduce((predicted - target).square().mean(-1), reduction, mask=mask)
