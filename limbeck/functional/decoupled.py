"""The two parts of the tempered KL divergence: target class against the rest, and among the rest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional.divergences import kl_of_log_probabilities
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


class DecoupledKL(NamedTuple):
    """Target-class (``tckd``) and non-target-class (``nckd``) knowledge distillation losses."""

    tckd: Tensor
    nckd: Tensor


@full_precision
def decoupled_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> DecoupledKL:
    r"""Splits the distillation loss into a target-class and a non-target-class part.

    With :math:`b = (p_y, 1 - p_y)` and :math:`\hat p` the softmax over the classes other than the label :math:`y`,

    .. math:: \mathrm{TCKD} = T^2\,\mathrm{KL}(b^T \| b^S), \quad
              \mathrm{NCKD} = T^2\,\mathrm{KL}(\hat p^T \| \hat p^S), \quad
              \mathrm{KL} = \mathrm{TCKD} + (1 - p^T_y)\,\mathrm{NCKD}

    Every log-probability is a difference of log-sum-exps, so logits of any size give finite values; with two classes
    NCKD is exactly 0.

    Args:
        student_logits: ``[..., C]`` with at least two classes.
        teacher_logits: ``[..., C]``, a constant: no gradient flows to it.
        labels: ``[...]`` integer classes.
        temperature: :math:`T > 0`, the same for both sides.
        scale_by_t2: whether to multiply both parts by :math:`T^2`.
        mask: ``[...]`` true where a row counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        Both parts, unweighted, in nats, float32 or better.

    Raises:
        ValueError: shapes do not fit, labels are not integers, there is only one class, or the temperature is not
            positive.

    References:
        Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 1.0]])
        >>> tckd, nckd = decoupled_kl(student, teacher, torch.tensor([0]))
        >>> round(tckd.item(), 4), round(nckd.item(), 4)
        (0.9115, 0.0)
    """
    check_same_shape(student_logits, teacher_logits, "student and teacher logits")
    if labels.is_floating_point():
        raise ValueError("the decoupled loss needs class indices as labels; soft labels have no single target class")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but should be positive")
    chosen = targets_of_rows(labels, student_logits, mask)
    binary_s, rest_s = _target_and_rest(neutralised(student_logits, mask) / temperature, chosen)
    binary_t, rest_t = _target_and_rest(neutralised(teacher_logits.detach(), mask) / temperature, chosen)
    scale = temperature**2 if scale_by_t2 else 1.0
    return DecoupledKL(
        reduce(scale * kl_of_log_probabilities(binary_t, binary_s), reduction, mask=mask),
        reduce(scale * kl_of_log_probabilities(rest_t, rest_s), reduction, mask=mask),
    )


def targets_of_rows(labels: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the target class of each row of logits; of a masked row, class 0, so that it can be looked up.

    Args:
        labels: ``[...]`` integer classes, or ``[..., C]`` class probabilities, of which the largest names the target.
        logits: ``[..., C]``.
        mask: ``[...]`` true where a row counts.

    Raises:
        ValueError: there are fewer than two classes, so that nothing stands beside the target, or shapes do not fit.
    """
    if logits.shape[-1] < 2:
        raise ValueError("target against the rest needs at least two classes")
    if labels.is_floating_point():
        check_same_shape(logits, labels, "logits and label probabilities")
        labels = labels.argmax(-1)
    check_same_shape(logits[..., 0], labels, "logits without the class dimension and labels")
    return labels if mask is None else labels.masked_fill(~mask.bool(), 0)


def other_classes(labels: Tensor, classes: int) -> Tensor:
    """Returns the classes other than the label, in increasing order.

    Args:
        labels: ``[...]`` integer classes.
        classes: their number ``C``.

    Returns:
        ``[..., C-1]`` int64, ready for ``torch.gather``.

    Example:
        >>> other_classes(torch.tensor([1]), 4)
        tensor([[0, 2, 3]])
    """
    others = torch.arange(classes - 1, device=labels.device)
    return others + (others >= labels.unsqueeze(-1))


def _target_and_rest(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``[..., 2]`` log-probabilities of target and rest, and ``[..., C-1]`` ones among the rest."""
    rest = logits.gather(-1, other_classes(labels, logits.shape[-1]))
    rest_total = rest.logsumexp(-1, keepdim=True)
    binary = torch.log_softmax(torch.cat([logits.gather(-1, labels.unsqueeze(-1)), rest_total], dim=-1), dim=-1)
    return binary, rest - rest_total
