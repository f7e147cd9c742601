"""Soft targets whose true class is lifted before an exponent sharpens or flattens them."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.divergences import tempered_log_softmax
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


@full_precision
def boosted_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    exponent: float = 1.0,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""OFA's loss: cross-entropy with the teacher's probabilities, the true class boosted by an exponent.

    .. math:: L = -\sum_c \big[ (p^T_c + y_c)^e - y_c \big] \log p^S_c

    with the one-hot label :math:`y`. With :math:`e = 1` it is the soft cross-entropy with the teacher. A larger
    exponent gives the true class more weight, up to :math:`2^e - 1`, and the others less; the weights then do not sum
    to 1. The gradient of one row is :math:`(W p^S - w) / T` with the weights :math:`w` and their sum :math:`W`.

    Args:
        student_logits: ``[..., C]``.
        teacher_logits: ``[..., C]``, a constant: no gradient flows to it.
        labels: ``[...]`` class indices.
        exponent: :math:`e > 0`.
        temperature: divides both logits; the loss is not multiplied by its square.
        mask: ``[...]`` true where a row counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        The loss in nats, float32 or better.

    Raises:
        ValueError: shapes do not fit, or temperature or exponent is not positive.

    References:
        Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation", arXiv
        2310.19444.

    Example:
        >>> logits = torch.zeros(1, 2)
        >>> boosted_cross_entropy(logits, logits, torch.tensor([0]), exponent=2.0)
        tensor(1.0397)
    """
    check_same_shape(student_logits, teacher_logits, "student and teacher logits")
    check_same_shape(student_logits[..., 0], labels, "logits without the class dimension and labels")
    if not exponent > 0:
        raise ValueError(f"exponent is {exponent}, but should be positive")
    log_s = tempered_log_softmax(neutralised(student_logits, mask), temperature)
    log_t = tempered_log_softmax(neutralised(teacher_logits.detach(), mask), temperature)
    target = (labels if mask is None else labels.masked_fill(~mask.bool(), 0)).unsqueeze(-1)
    lifted = torch.expm1(exponent * torch.log1p(log_t.gather(-1, target).exp()))
    weights = (exponent * log_t).exp().scatter(-1, target, lifted)
    values = -(weights * torch.where(weights > 0, log_s, log_s.new_zeros(()))).sum(-1)
    return reduce(values, reduction, mask=mask)
