"""Losses against labels."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


@full_precision
def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy of class scores against class indices or class probabilities.

    .. math:: L = -\sum_c q_c \log p_c, \qquad q = (1-\epsilon)\,y + \epsilon / C

    Args:
        logits: ``[..., C]`` raw scores, the classes last.
        labels: ``[...]`` integer classes, or ``[..., C]`` probabilities in floating point (soft targets, mixed-up
            labels); no gradient flows to them.
        label_smoothing: :math:`\epsilon` in [0, 1], the part of the mass that is spread evenly over all ``C`` classes.
        mask: ``[...]`` true where a position counts; labels of other positions may be anything, as -100.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        The loss in nats, float32 or better.

    Raises:
        ValueError: shapes do not fit or ``label_smoothing`` is outside [0, 1].

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567, section 7.

    Example:
        >>> cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor(0.6931)
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}, but should be in [0, 1]")
    log_p = torch.log_softmax(neutralised(logits, mask), dim=-1)
    if labels.is_floating_point():
        check_same_shape(logits, labels, "logits and label probabilities")
        mass = neutralised(labels.detach(), mask)
        values = -(mass * torch.where(mass > 0, log_p, log_p.new_zeros(()))).sum(-1)
    else:
        check_same_shape(logits[..., 0], labels, "logits without the class dimension and labels")
        chosen = labels if mask is None else labels.masked_fill(~mask.bool(), 0)
        values = -log_p.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    if label_smoothing > 0:
        values = (1 - label_smoothing) * values - label_smoothing * log_p.mean(-1)
    return reduce(values, reduction, mask=mask)


def class_indices(labels: Tensor) -> Tensor:
    """Returns class indices: labels that are, or the largest class of label probabilities, as mixed-up labels are.

    Args:
        labels: ``[...]`` integer classes, or ``[..., C]`` probabilities in floating point.

    Example:
        >>> class_indices(torch.tensor([[0.3, 0.7]])), class_indices(torch.tensor([4]))
        (tensor([1]), tensor([4]))
    """
    return labels.argmax(-1) if labels.is_floating_point() else labels


@full_precision
def confidence_weights(teacher_logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Weights samples by the teacher's largest probability, normalised to sum to 1 over the batch.

    Args:
        teacher_logits: ``[B, C]``.
        mask: ``[B]`` true where a sample counts.

    Returns:
        ``[B]`` weights without gradient: the confidence-weighted-by-teacher-maximum (CWTM) arm of born-again networks.

    References:
        Furlanello et al., "Born-Again Neural Networks", arXiv 1805.04770, section 3.2.

    Example:
        >>> confidence_weights(torch.tensor([[9.0, 0.0], [9.0, 0.0]]))
        tensor([0.5000, 0.5000])
    """
    confidence = torch.softmax(neutralised(teacher_logits.detach(), mask), dim=-1).amax(-1)
    kept = reduce(confidence, "none", mask=mask)
    return kept / kept.sum().clamp(min=torch.finfo(kept.dtype).tiny)
