"""Affine changes of images by differentiable parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, softplus

WARP_PARAMETERS = ("angle", "shift_x", "shift_y", "log_scale", "shear")
"""Order of the parameters of a warp: radians, halves of the image's width and height, natural logarithm, slope."""


def reparameterised(mean: Tensor, raw_deviation: Tensor, noise: Tensor) -> Tensor:
    r"""Returns samples of a normal distribution that its parameters can be trained through.

    .. math:: p = \mu + \mathrm{softplus}(\rho) \, \epsilon

    Args:
        mean: :math:`\mu` ``[P]``.
        raw_deviation: :math:`\rho` ``[P]``.
        noise: :math:`\epsilon` ``[B, P]``, standard normal.

    Returns:
        ``[B, P]``.

    Example:
        >>> reparameterised(torch.zeros(1), torch.tensor([-100.0]), torch.ones(2, 1)).flatten()
        tensor([3.7835e-44, 3.7835e-44])
    """
    return mean + softplus(raw_deviation) * noise


def warp_matrices(parameters: Tensor) -> Tensor:
    r"""Returns the matrices of warps: a shear, a rotation by the angle :math:`a`, a scaling by :math:`e^s`, a shift.

    .. math:: \begin{pmatrix} e^s \cos a & e^s (h \cos a - \sin a) & t_x \\
        e^s \sin a & e^s (\cos a + h \sin a) & t_y \end{pmatrix}

    Args:
        parameters: ``[B, 5]`` in the order of :data:`WARP_PARAMETERS`.

    Returns:
        ``[B, 2, 3]``, from output to input coordinates in [-1, 1]. Zeros give the identity.

    Example:
        >>> warp_matrices(torch.zeros(1, 5))
        tensor([[[1., 0., 0.],
                 [0., 1., 0.]]])
    """
    angle, right, down, log_scale, shear = parameters.unbind(-1)
    scale, cos, sin = log_scale.exp(), angle.cos(), angle.sin()
    first = torch.stack([scale * cos, scale * (shear * cos - sin), right], -1)
    second = torch.stack([scale * sin, scale * (cos + shear * sin), down], -1)
    return torch.stack([first, second], -2)


def warp(images: Tensor, matrices: Tensor, *, outside: Tensor | float = 0.0) -> Tensor:
    """Returns images seen through affine maps, by bilinear interpolation.

    Args:
        images: ``[B, C, H, W]``.
        matrices: ``[B, 2, 3]``, see :func:`warp_matrices`.
        outside: value of what lies outside of an image, a number or ``[C, 1, 1]``.

    Returns:
        ``[B, C, H, W]``, differentiable by images and matrices.

    References:
        Jaderberg et al., "Spatial Transformer Networks", arXiv 1506.02025.

    Example:
        >>> image = torch.arange(4.0).view(1, 1, 2, 2)
        >>> bool(torch.allclose(warp(image, warp_matrices(torch.zeros(1, 5))), image))
        True
    """
    grid = affine_grid(matrices.to(images.dtype), list(images.shape), align_corners=False)
    return grid_sample(images - outside, grid, padding_mode="zeros", align_corners=False) + outside
