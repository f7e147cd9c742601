"""Divergences between the distributions of two sets of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.log_divergences import forward_kl, jsd
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


def tempered_log_softmax(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns the log-probabilities ``log softmax(logits / temperature)`` over the last dimension.

    Args:
        logits: ``[..., C]``.
        temperature: a positive number, or one for each row ``[...]``.

    Raises:
        ValueError: the temperature is not positive.
    """
    if isinstance(temperature, Tensor):
        return torch.log_softmax(logits / temperature.unsqueeze(-1), dim=-1)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but should be positive")
    return torch.log_softmax(logits / temperature, dim=-1)


def kl_of_log_probabilities(log_target: Tensor, log_approximation: Tensor) -> Tensor:
    """Returns ``KL(target || approximation)`` over the last dimension, from natural log-probabilities.

    Where the target has no mass the term is 0, also when both logarithms are ``-inf``.
    """
    return forward_kl(log_target, log_approximation).sum(-1)


@full_precision
def kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = True,
    reverse: bool = False,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Kullback-Leibler divergence between tempered distributions, the classic distillation loss.

    .. math:: L = T^2 \, \mathrm{KL}\big(\mathrm{softmax}(t/T) \,\|\, \mathrm{softmax}(s/T)\big)

    Zero if and only if student and teacher logits differ by a constant in each row. The gradient for one row is
    :math:`T (p^S - p^T)`, so that its size hardly depends on :math:`T` once ``scale_by_t2`` is on.

    Args:
        student_logits: ``[..., C]``.
        teacher_logits: ``[..., C]``, a constant: no gradient flows to it.
        temperature: :math:`T > 0`, a number or one for each row ``[...]``; the same for both sides.
        scale_by_t2: whether to multiply by :math:`T^2`.
        reverse: whether to compute :math:`\mathrm{KL}(p^S \| p^T)` instead, which seeks modes.
        mask: ``[...]`` true where a row counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`. The mean is over rows, never over classes.

    Returns:
        The loss in nats, float32 or better.

    Raises:
        ValueError: shapes differ or the temperature is not positive.

    References:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> kl(student, teacher, temperature=2.0)
        tensor(0.4898)
    """
    check_same_shape(student_logits, teacher_logits, "student and teacher logits")
    log_s = tempered_log_softmax(neutralised(student_logits, mask), temperature)
    log_t = tempered_log_softmax(neutralised(teacher_logits.detach(), mask), temperature)
    values = kl_of_log_probabilities(log_s, log_t) if reverse else kl_of_log_probabilities(log_t, log_s)
    if scale_by_t2:
        values = values * temperature**2
    return reduce(values, reduction, mask=mask)


@full_precision
def js(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 0.5,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence between tempered distributions.

    .. math:: L = T^2 \big[ \beta\,\mathrm{KL}(p^T \| m) + (1-\beta)\,\mathrm{KL}(p^S \| m) \big], \qquad
              m = \beta p^T + (1-\beta) p^S

    Bounded by the entropy of :math:`(\beta, 1-\beta)`, symmetric for :math:`\beta = 1/2`.

    Args:
        student_logits: ``[..., C]``.
        teacher_logits: ``[..., C]``, a constant: no gradient flows to it.
        beta: weight of the teacher in the mixture, in (0, 1).
        temperature: see :func:`kl`.
        scale_by_t2: see :func:`kl`.
        mask: ``[...]`` true where a row counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        The loss in nats, float32 or better.

    Raises:
        ValueError: shapes differ, the temperature is not positive or ``beta`` is outside (0, 1).

    References:
        Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on Information Theory 37, 1991.

    Example:
        >>> js(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]]))
        tensor(0.6931)
    """
    check_same_shape(student_logits, teacher_logits, "student and teacher logits")
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta is {beta}, but should be in (0, 1)")
    log_s = tempered_log_softmax(neutralised(student_logits, mask), temperature)
    log_t = tempered_log_softmax(neutralised(teacher_logits.detach(), mask), temperature)
    values = jsd(log_t, log_s, beta=beta).sum(-1)
    if scale_by_t2:
        values = values * temperature**2
    return reduce(values, reduction, mask=mask)
