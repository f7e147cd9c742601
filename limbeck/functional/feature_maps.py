"""Losses between feature maps ``[B, C, H, W]`` of a student and a teacher, one stage at a time.

The two maps of a pair may differ in size; the larger is then average-pooled to the smaller. They may differ in
channels where a loss says so. Every loss averages over the samples, so ``reduction="none"`` gives ``[B]``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, reduce


def pool_to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pools two maps to their smaller height and width, so that they can be compared position by position.

    Args:
        first: ``[B, C1, H1, W1]``.
        second: ``[B, C2, H2, W2]``.

    Returns:
        Both maps at ``min(H1, H2)`` by ``min(W1, W2)``; a map that has this size already comes back as it is.

    Raises:
        ValueError: a tensor is not four-dimensional.

    Example:
        >>> small, same = pool_to_smaller(torch.ones(1, 3, 8, 8), torch.ones(1, 5, 4, 4))
        >>> small.shape, same.shape
        (torch.Size([1, 3, 4, 4]), torch.Size([1, 5, 4, 4]))
    """
    check_maps(first, second)
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    return _pooled(first, size), _pooled(second, size)


def check_maps(*maps: Tensor) -> None:
    """Refuses what is not a batch of feature maps.

    Raises:
        ValueError: a tensor is not ``[B, C, H, W]``.
    """
    for tensor in maps:
        if tensor.dim() != 4:
            raise ValueError(f"feature maps should be [batch, channels, height, width], not {tuple(tensor.shape)}")


def _pooled(features: Tensor, size: tuple[int, int]) -> Tensor:
    return features if features.shape[2:] == size else adaptive_avg_pool2d(features, size)


def unit_vectors(vectors: Tensor) -> Tensor:
    """Scales vectors along the last dimension to unit length; a zero vector stays zero, with a finite gradient.

    Dividing by the largest entry first keeps squares of extreme entries in range.

    Example:
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, torch.ones_like(largest))
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(length > 0, length, torch.ones_like(length))


@full_precision
def mean_squared_features(
    student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean", mask: Tensor | None = None
) -> Tensor:
    r"""Mean squared difference of two features of the same shape, the hint loss of FitNets.

    .. math:: L_b = \frac{1}{CHW} \lVert f^S_b - f^T_b \rVert^2

    Args:
        student: ``[B, ...]``.
        teacher: the same shape.
        reduction: over samples, see :func:`limbeck.functional.reduction.reduce`.
        mask: ``[B]`` true where a sample counts.

    Returns:
        ``[B]`` or a scalar.

    Raises:
        ValueError: the shapes differ.

    References:
        Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550, equation 3.

    Example:
        >>> mean_squared_features(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
        tensor(1.)
    """
    check_same_shape(student, teacher, "student's and teacher's features")
    return reduce((student - teacher).square().flatten(1).mean(1), reduction, mask=mask)


def attention_map(features: Tensor, *, p: float = 2.0) -> Tensor:
    r"""Where a layer looks: the channel mean of :math:`|f|^p`, flattened and scaled to unit length.

    Args:
        features: ``[B, C, H, W]``.
        p: power, at least 1; larger values weigh the strongest activations more.

    Returns:
        ``[B, HW]`` non-negative unit vectors (zero where the features are zero).

    Raises:
        ValueError: ``p`` is below 1, where the gradient at zero would be infinite.

    Example:
        >>> attention_map(torch.tensor([[[[3.0, 4.0]]]]), p=1.0).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """
    check_maps(features)
    if p < 1:
        raise ValueError(f"p should be at least 1, not {p}")
    rows = features.flatten(2)
    # On a CPU, to look at the result costs less than to scale all activations beforehand; elsewhere it would cost more.
    if features.is_cpu and not torch.compiler.is_compiling():
        strength = _mean_power(rows, p)
        if _well_in_range(strength):
            return strength / torch.linalg.vector_norm(strength, dim=1, keepdim=True)
    # The map does not depend on the scale of a sample, and powers of large activations would overflow.
    largest = rows.detach().abs().amax((1, 2), keepdim=True)
    return unit_vectors(_mean_power(rows / torch.where(largest > 0, largest, torch.ones_like(largest)), p))


def _mean_power(rows: Tensor, p: float) -> Tensor:
    """Returns the mean over channels of ``|rows|^p``."""
    return (rows.square() if p == 2 else rows.abs().pow(p)).mean(1)


def _well_in_range(strength: Tensor) -> bool:
    """Whether the largest entry of every row is so far from overflow and underflow that squares are in range too."""
    peak, limits = strength.detach().amax(1), torch.finfo(strength.dtype)
    return bool(((peak > limits.tiny**0.5) & (peak < (limits.max / strength.shape[1]) ** 0.5)).all())


@full_precision
def attention_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    p: float = 2.0,
    distance: Literal["squared", "l2"] = "squared",
    reduction: Reduction = "mean",
    mask: Tensor | None = None,
) -> Tensor:
    r"""Attention transfer for one pair of maps.

    .. math:: L_b = \frac{1}{HW} \lVert a(f^S_b) - a(f^T_b) \rVert_2^2, \qquad
        a(f) = \frac{m}{\lVert m \rVert_2}, \quad m = \frac{1}{C} \sum_c |f_c|^p

    Args:
        student: ``[B, Cs, Hs, Ws]``.
        teacher: ``[B, Ct, Ht, Wt]``.
        p: power of the activations, at least 1.
        distance: ``squared`` is the mean of squared differences over positions, as in the authors' code; ``l2`` the
            distance itself, as in the paper's equation 2.
        reduction: over samples.
        mask: ``[B]`` true where a sample counts.

    Returns:
        ``[B]`` or a scalar.

    References:
        Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv 1612.03928, equation 2.

    Example:
        >>> maps = torch.rand(2, 3, 4, 4)
        >>> attention_transfer(5 * maps, maps).item() < 1e-12
        True
    """
    student, teacher = pool_to_smaller(student, teacher)
    difference = attention_map(student, p=p) - attention_map(teacher, p=p)
    if distance == "squared":
        values = difference.square().mean(1)
    elif distance == "l2":
        values = torch.linalg.vector_norm(difference, dim=1)
    else:
        raise ValueError(f"distance should be 'squared' or 'l2', not '{distance}'")
    return reduce(values, reduction, mask=mask)


@full_precision
def flow_matrix(lower: Tensor, upper: Tensor) -> Tensor:
    r"""Flow of the solution procedure between two layers of one network: a Gram matrix of their channels.

    .. math:: G_{ij} = \frac{1}{HW} \sum_{hw} f^{upper}_{i,hw} f^{lower}_{j,hw}

    Args:
        lower: ``[B, C1, H1, W1]``, the shallower map.
        upper: ``[B, C2, H2, W2]``, the deeper map.

    Returns:
        ``[B, C2, C1]``.

    References:
        Yim et al., "A Gift from Knowledge Distillation", CVPR 2017, equation 1.

    Example:
        >>> flow_matrix(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2)).shape
        torch.Size([1, 3, 2])
    """
    lower, upper = (side.flatten(2) for side in pool_to_smaller(lower, upper))
    return upper @ lower.mT / lower.shape[-1]


@full_precision
def hierarchical_context(
    student: Tensor,
    teacher: Tensor,
    *,
    pools: tuple[int, ...] = (4, 2, 1),
    reduction: Reduction = "mean",
    mask: Tensor | None = None,
) -> Tensor:
    r"""Hierarchical context loss: squared differences of the maps and of their average-pooled versions.

    .. math:: L_b = \frac{\sum_l w_l \, \mathrm{mse}(\mathrm{pool}_l f^S_b, \mathrm{pool}_l f^T_b)}{\sum_l w_l},
        \qquad w_0 = 1, \; w_{l+1} = w_l / 2

    Args:
        student: ``[B, C, H, W]``.
        teacher: the same shape.
        pools: sizes to pool to, from large to small; a size that is not below the map's own is left out.
        reduction: over samples.
        mask: ``[B]`` true where a sample counts.

    Returns:
        ``[B]`` or a scalar.

    References:
        Chen et al., "Distilling Knowledge via Knowledge Review", arXiv 2104.09044, section 3.3.

    Example:
        >>> hierarchical_context(torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
        tensor(1.)
    """
    check_maps(student, teacher)
    loss, weight, total = mean_squared_features(student, teacher, reduction="none"), 1.0, 1.0
    for size in pools:
        if size >= min(student.shape[2:]):
            continue
        weight /= 2
        total += weight
        pair = (adaptive_avg_pool2d(side, size) for side in (student, teacher))
        loss = loss + weight * mean_squared_features(*pair, reduction="none")
    return reduce(loss / total, reduction, mask=mask)
