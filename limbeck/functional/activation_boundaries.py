"""The margin ReLU and the partial distance of the feature-distillation overhaul (OFD)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from limbeck.functional.feature_maps import check_maps
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, reduce

_RARE = 1e-3


def negative_part_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    r"""Expected value of the negative part of a normal variable, the margin that OFD takes from a batch normalisation.

    .. math:: m = E[x \mid x < 0] = \mu - \sigma \frac{\varphi(\mu/\sigma)}{\Phi(-\mu/\sigma)},
        \qquad x \sim N(\mu, \sigma^2)

    Where :math:`P(x < 0) \le 0.001` the margin is :math:`-3\sigma` as in the authors' code. A channel without spread
    has the margin :math:`\min(\mu, 0)`.

    Args:
        mean: ``[C]``, the normalisation's shift.
        deviation: ``[C]``, its scale; the sign does not matter.

    Returns:
        ``[C]`` margins, none of them positive.

    References:
        Heo et al., "A Comprehensive Overhaul of Feature Distillation", arXiv 1904.01866, equation 8 (appendix).

    Example:
        >>> negative_part_mean(torch.zeros(1), torch.ones(1))
        tensor([-0.7979])
    """
    mean, spread = mean.double(), deviation.double().abs()
    ratio = mean / torch.where(spread > 0, spread, torch.ones_like(spread))
    below = torch.special.ndtr(-ratio)
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    margin = torch.where(below > _RARE, mean - spread * density / below.clamp(min=_RARE), -3 * spread)
    margin = torch.where(spread > 0, margin, mean)
    return margin.clamp(max=0).to(torch.promote_types(deviation.dtype, torch.float32))


@full_precision
def partial_distance(
    student: Tensor,
    teacher: Tensor,
    margin: Tensor,
    *,
    reduction: Reduction = "mean",
    mask: Tensor | None = None,
) -> Tensor:
    r"""Squared distance to the teacher's margin ReLU, skipped where teacher and student agree that a neuron is silent.

    .. math:: L_b = \sum_{chw} d(s, \max(t, m_c)), \qquad
        d(s, t) = \begin{cases} 0 & s \le t \le 0 \\ (s - t)^2 & \text{otherwise} \end{cases}

    Args:
        student: ``[B, C, H, W]`` before the activation, after its connector.
        teacher: ``[B, C, Ht, Wt]`` before the activation; average-pooled to the student's size.
        margin: ``[C]`` margins, not positive.
        reduction: over samples.
        mask: ``[B]`` true where a sample counts.

    Returns:
        ``[B]`` or a scalar; a sum over channels and positions.

    Raises:
        ValueError: the channels differ.

    References:
        Heo et al., "A Comprehensive Overhaul of Feature Distillation", arXiv 1904.01866, equations 2 to 4.

    Example:
        >>> silent, margin = torch.full((1, 1, 2, 2), -3.0), torch.tensor([-1.0])
        >>> partial_distance(silent, silent, margin).item()
        0.0
    """
    check_maps(student, teacher)
    if teacher.shape[2:] != student.shape[2:]:
        teacher = adaptive_avg_pool2d(teacher, (student.shape[2], student.shape[3]))
    check_same_shape(student, teacher, "the connected student map and the teacher map")
    target = torch.maximum(teacher, margin.view(1, -1, 1, 1))
    silent = (student <= target) & (teacher <= 0)
    values = torch.where(silent, torch.zeros_like(student), (student - target).square())
    return reduce(values.flatten(1).sum(1), reduction, mask=mask)
