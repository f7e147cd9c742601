"""The variational bound on mutual information between features (VID)."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional.feature_maps import check_maps
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, reduce


@full_precision
def gaussian_feature_nll(
    mean: Tensor,
    teacher: Tensor,
    variance: Tensor,
    *,
    reduction: Reduction = "mean",
    mask: Tensor | None = None,
) -> Tensor:
    r"""Negative log-likelihood of the teacher's map under a normal distribution that the student predicts.

    .. math:: L_b = \frac{1}{2CHW} \sum_{chw} \frac{(\mu_{chw} - f^T_{chw})^2}{\sigma_c^2} + \log \sigma_c^2

    The constant :math:`\frac{1}{2} \log 2\pi` is left out, so the value may be negative.

    Args:
        mean: ``[B, C, H, W]``, predicted from the student's map.
        teacher: the same shape.
        variance: ``[C]``, positive.
        reduction: over samples.
        mask: ``[B]`` true where a sample counts.

    Returns:
        ``[B]`` or a scalar, in nats an element.

    Raises:
        ValueError: the shapes differ.

    References:
        Ahn et al., "Variational Information Distillation for Knowledge Transfer", arXiv 1904.05835, equation 6.

    Example:
        >>> import torch
        >>> gaussian_feature_nll(torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), torch.ones(2))
        tensor(0.5000)
    """
    check_maps(mean)
    check_same_shape(mean, teacher, "the predicted and the teacher's map")
    spread = variance.view(1, -1, 1, 1)
    values = 0.5 * ((mean - teacher).square() / spread + spread.log())
    return reduce(values.flatten(1).mean(1), reduction, mask=mask)
