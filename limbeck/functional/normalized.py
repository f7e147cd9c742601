"""Target and non-target losses with the non-target probabilities renormalised, for teachers and for invented labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional.decoupled import other_classes, targets_of_rows
from limbeck.functional.divergences import tempered_log_softmax
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


class NormalizedKD(NamedTuple):
    """Losses on the target class and on the distribution over the other classes."""

    target: Tensor
    nontarget: Tensor


@full_precision
def normalized_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> NormalizedKD:
    r"""Cross-entropies with the teacher's target probability and with its renormalised non-target probabilities.

    With :math:`p` the softmax at temperature 1 and :math:`\hat p` the softmax at :math:`T` over the classes other than
    the label :math:`y`,

    .. math:: L_{target} = -p^T_y \log p^S_y, \qquad
              L_{nontarget} = -T^2 \sum_{c \ne y} \hat p^T_c \log \hat p^S_c

    Where distillation weighs the non-target classes by :math:`1 - p^T_y`, which vanishes for a sure teacher, their
    weight here is free. The entropy of the teacher is not subtracted, so the minimum of the second loss is that
    entropy and not 0.

    Args:
        student_logits: ``[..., C]`` with at least two classes; with exactly two the non-target loss is 0.
        teacher_logits: ``[..., C]``, a constant: no gradient flows to it.
        labels: ``[...]`` integer classes, or ``[..., C]`` class probabilities, of which the largest names the target.
        temperature: :math:`T > 0`, for the non-target loss only.
        scale_by_t2: whether to multiply the non-target loss by :math:`T^2`.
        mask: ``[...]`` true where a row counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        Both losses, unweighted, in nats, float32 or better.

    Raises:
        ValueError: shapes do not fit, there is only one class, or the temperature is not positive.

    References:
        Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
        Loss and Customized Soft Labels", arXiv 2303.13005.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 1.0]])
        >>> target, nontarget = normalized_kd(student, teacher, torch.tensor([0]))
        >>> round(target.item(), 4), round(nontarget.item(), 4)
        (0.138, 0.6931)
    """
    check_same_shape(student_logits, teacher_logits, "student and teacher logits")
    targets = targets_of_rows(labels, student_logits, mask)
    student, teacher = neutralised(student_logits, mask), neutralised(teacher_logits.detach(), mask)
    column, others = targets.unsqueeze(-1), other_classes(targets, student.shape[-1])
    log_s, log_t = torch.log_softmax(student, -1).gather(-1, column), torch.log_softmax(teacher, -1).gather(-1, column)
    rest_s = tempered_log_softmax(student.gather(-1, others), temperature)
    rest_t = tempered_log_softmax(teacher.gather(-1, others), temperature)
    scale = temperature**2 if scale_by_t2 else 1.0
    return NormalizedKD(
        reduce(_expected(log_t.exp(), log_s), reduction, mask=mask),
        reduce(scale * _expected(rest_t.exp(), rest_s), reduction, mask=mask),
    )


def _expected(mass: Tensor, log_probabilities: Tensor) -> Tensor:
    """Returns ``-sum mass * log p`` over the last dimension; classes without mass add nothing."""
    return -(mass * torch.where(mass > 0, log_probabilities, mass.new_zeros(()))).sum(-1)
