"""Neuron selectivity transfer: the distributions of channel maps, compared by maximum mean discrepancy."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from limbeck.functional.feature_maps import pool_to_smaller, unit_vectors
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, reduce

Kernel = Literal["polynomial", "linear", "gaussian"]


@full_precision
def neuron_selectivity(
    student: Tensor,
    teacher: Tensor,
    *,
    kernel: Kernel = "polynomial",
    degree: int = 2,
    offset: float = 0.0,
    reduction: Reduction = "mean",
    mask: Tensor | None = None,
) -> Tensor:
    r"""Squared maximum mean discrepancy between the channels of two maps, each channel a unit vector over positions.

    .. math:: L_b = \mathrm{mean}_{ii'} k(t_i, t_{i'}) + \mathrm{mean}_{jj'} k(s_j, s_{j'})
        - 2\,\mathrm{mean}_{ij} k(t_i, s_j)

    Needs memory for the ``Cs * Ct`` products of channels, not for their ``Cs * Ct * HW`` elements.

    Args:
        student: ``[B, Cs, Hs, Ws]``.
        teacher: ``[B, Ct, Ht, Wt]``; the larger map is average-pooled to the smaller.
        kernel: ``polynomial`` is :math:`(x^\top y + c)^d`, ``linear`` is :math:`x^\top y`, ``gaussian`` is
            :math:`\exp(-\lVert x-y \rVert^2 / 2\sigma^2)` with :math:`\sigma^2` the mean squared distance between the
            student's and the teacher's channels of the sample.
        degree: :math:`d` of the polynomial kernel.
        offset: :math:`c` of the polynomial kernel.
        reduction: over samples.
        mask: ``[B]`` true where a sample counts.

    Returns:
        ``[B]`` or a scalar.

    Raises:
        ValueError: the kernel is unknown.

    References:
        Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv 1707.01219.

    Example:
        >>> maps = torch.rand(2, 3, 4, 4)
        >>> neuron_selectivity(maps.flip(1), maps).abs().item() < 1e-6
        True
    """
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel should be one of {', '.join(get_args(Kernel))}, not '{kernel}'")
    student, teacher = pool_to_smaller(student, teacher)
    student, teacher = unit_vectors(student.flatten(2)), unit_vectors(teacher.flatten(2))
    if kernel == "gaussian":
        values = _gaussian_discrepancy(student, teacher)
    else:
        power, shift = (degree, offset) if kernel == "polynomial" else (1, 0.0)
        values = _mean_power(teacher, teacher, power, shift).detach()
        values = values + _mean_power(student, student, power, shift) - 2 * _mean_power(student, teacher, power, shift)
    return reduce(values, reduction, mask=mask)


def _mean_power(first: Tensor, second: Tensor, degree: int, offset: float) -> Tensor:
    """Mean over channel pairs of ``(x.y + offset) ** degree``, ``[B]``."""
    return (first @ second.mT + offset).pow(degree).mean((1, 2))


def _gaussian_discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    across = _squared_distances(student, teacher)
    # Identical channels have no distance and any bandwidth; the discrepancy is then zero.
    bandwidth = across.detach().mean((1, 2), keepdim=True).clamp(min=torch.finfo(across.dtype).eps)

    def similarity(distances: Tensor) -> Tensor:
        return torch.exp(-distances / (2 * bandwidth)).mean((1, 2))

    own = similarity(_squared_distances(teacher, teacher)).detach() + similarity(_squared_distances(student, student))
    return own - 2 * similarity(across)


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    squares = first.square().sum(-1).unsqueeze(2) + second.square().sum(-1).unsqueeze(1)
    return (squares - 2 * first @ second.mT).clamp(min=0)
