"""Divergences between the sigmoids of logits, class by class."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


@full_precision
def binary_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 2.0,
    scale_by_t2: bool = True,
    eps: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""KL divergences between the teacher's and the student's Bernoulli distributions, summed over classes.

    .. math:: L = T^2 \sum_c \mathrm{KL}\big(\mathrm{Bern}(\sigma(t_c / T)) \,\|\, \mathrm{Bern}(\sigma(s_c / T))\big)

    Args:
        student_logits: ``[..., C]``.
        teacher_logits: ``[..., C]``, a constant: no gradient flows to it.
        temperature: :math:`T > 0`.
        scale_by_t2: whether to multiply by :math:`T^2`.
        eps: probabilities are cut to ``[eps, 1 - eps]``, which stops the gradient of saturated classes; 0 cuts nothing.
        mask: ``[...]`` true where a row counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`. The mean is over rows, never over classes.

    Returns:
        The loss in nats, float32 or better.

    Raises:
        ValueError: shapes differ, the temperature is not positive, or ``eps`` is not in [0, 1/2).

    References:
        Yang et al., "Dual-Head Knowledge Distillation", arXiv 2411.08937.

    Example:
        >>> binary_kl(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
        tensor(0.)
    """
    ours, theirs = _checked(student_logits, teacher_logits, temperature, eps, mask)
    s, t = _cut(ours / temperature, eps), _cut(theirs / temperature, eps)
    # KL = t's entropy part cancels in differences of log-sigmoids, each of which is exact for logits of any size.
    yes = torch.sigmoid(t) * (logsigmoid(t) - logsigmoid(s))
    no = torch.sigmoid(-t) * (logsigmoid(-t) - logsigmoid(-s))
    return _finish((yes + no).sum(-1), temperature, scale_by_t2, mask, reduction)


@full_precision
def binary_kl_norm(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 2.0,
    scale_by_t2: bool = True,
    eps: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Distance of logits through the sigmoid of their difference, summed over classes.

    .. math:: L = T^2 \sum_c \mathrm{KL}\big(\mathrm{Bern}(\tfrac12) \,\|\, \mathrm{Bern}(\sigma(u_c))\big)
                = T^2 \sum_c \big[ \mathrm{softplus}(u_c) - \tfrac{u_c}{2} - \ln 2 \big],
              \qquad u = (s - t) / T

    Zero only where the logits are equal class by class: unlike a loss of softmaxes it also teaches their common offset.
    Symmetric in student and teacher, convex, about :math:`u^2 / 8` for small differences and :math:`|u| / 2` for large
    ones.

    Args:
        student_logits: ``[..., C]``.
        teacher_logits: ``[..., C]``, a constant: no gradient flows to it.
        temperature: :math:`T > 0`, the scale from which on differences count linearly.
        scale_by_t2: whether to multiply by :math:`T^2`.
        eps: the sigmoid is cut to ``[eps, 1 - eps]``, which stops the gradient of saturated classes; 0 cuts nothing.
        mask: ``[...]`` true where a row counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`. The mean is over rows, never over classes, so the
            loss grows with their number.

    Returns:
        The loss in nats, float32 or better.

    Raises:
        ValueError: shapes differ, the temperature is not positive, or ``eps`` is not in [0, 1/2).

    References:
        Yang et al., "Dual-Head Knowledge Distillation", arXiv 2411.08937.

    Example:
        >>> binary_kl_norm(torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(1.7351)
    """
    ours, theirs = _checked(student_logits, teacher_logits, temperature, eps, mask)
    u = _cut((ours - theirs) / temperature, eps)
    return _finish((softplus(u.abs()) - u.abs() / 2 - math.log(2)).sum(-1), temperature, scale_by_t2, mask, reduction)


def _checked(
    student: Tensor, teacher: Tensor, temperature: float, eps: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    check_same_shape(student, teacher, "student and teacher logits")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but should be positive")
    if not 0 <= eps < 0.5:
        raise ValueError(f"eps is {eps}, but should be in [0, 1/2)")
    return neutralised(student, mask), neutralised(teacher.detach(), mask)


def _cut(logits: Tensor, eps: float) -> Tensor:
    """Cuts the sigmoid of ``logits`` to ``[eps, 1 - eps]``: in logits, since 1 - eps may round to 1."""
    if eps == 0:
        return logits
    bound = math.log1p(-eps) - math.log(eps)
    return logits.clamp(-bound, bound)


def _finish(values: Tensor, temperature: float, scale_by_t2: bool, mask: Tensor | None, reduction: Reduction) -> Tensor:
    return reduce(values * temperature**2 if scale_by_t2 else values, reduction, mask=mask)
