"""Trained modules that carry a student's feature map into the teacher's space."""

from __future__ import annotations

import math

from torch import Tensor, nn


def project(projector: nn.Module, features: Tensor) -> Tensor:
    """Runs a projector on features of any floating type, in the type of the projector's own parameters."""
    return projector(features.to(next(projector.parameters()).dtype))


def connector(student: Tensor, teacher: Tensor, *, kernel_size: int = 1) -> nn.Sequential:
    """Returns a convolution to the teacher's channels and a batch normalisation, as OFD connects maps.

    Args:
        student: ``[B, Cs, H, W]`` from a dry run; only its shape and device are used.
        teacher: ``[B, Ct, H', W']``, likewise.
        kernel_size: width of the convolution; odd ones keep the map's size.
    """
    channels = teacher.shape[1]
    convolution = nn.Conv2d(student.shape[1], channels, kernel_size, padding=(kernel_size - 1) // 2, bias=False)
    nn.init.normal_(convolution.weight, 0.0, math.sqrt(2.0 / (kernel_size**2 * channels)))
    return nn.Sequential(convolution, nn.BatchNorm2d(channels)).to(student.device)


def perceptron(student: Tensor, teacher: Tensor, *, hidden: int | None = None) -> nn.Sequential:
    """Returns three 1x1 convolutions with ReLU between them and without bias, as VID predicts a mean.

    Args:
        student: ``[B, Cs, H, W]`` from a dry run; only its shape and device are used.
        teacher: ``[B, Ct, H', W']``, likewise.
        hidden: channels of the two inner maps; the teacher's when None.
    """
    inputs, outputs = student.shape[1], teacher.shape[1]
    inner = outputs if hidden is None else hidden
    return nn.Sequential(
        nn.Conv2d(inputs, inner, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(inner, inner, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(inner, outputs, 1, bias=False),
    ).to(student.device)


def resizing_regressor(student: Tensor, teacher: Tensor, *, relu: bool = True) -> nn.Sequential:
    """Returns a convolution that turns the student's map into one of the teacher's shape, with normalisation and ReLU.

    The convolution follows the sizes as in the CIFAR literature: a student map twice as large takes a 3x3 one of
    stride 2, one half as large a transposed 4x4 one of stride 2, and a map that is larger or equal otherwise an
    unpadded one of size ``1 + H_s - H_t`` (1x1 when the sizes are equal). Where none of these fits, the convolution is
    1x1 and the caller pools the larger map.

    Args:
        student: ``[B, Cs, Hs, Ws]`` from a dry run; only its shape and device are used.
        teacher: ``[B, Ct, Ht, Wt]``, likewise.
        relu: whether the regressor ends in a ReLU, for targets taken after the teacher's activation.
    """
    inputs, outputs = student.shape[1], teacher.shape[1]
    (height, width), (target_height, target_width) = student.shape[2:], teacher.shape[2:]
    convolution: nn.Module
    if (height, width) == (2 * target_height, 2 * target_width):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    elif (2 * height, 2 * width) == (target_height, target_width):
        convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    elif height >= target_height and width >= target_width:
        convolution = nn.Conv2d(inputs, outputs, (1 + height - target_height, 1 + width - target_width))
    else:
        convolution = nn.Conv2d(inputs, outputs, 1)
    layers = [convolution, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else [])]
    return nn.Sequential(*layers).to(student.device)


def bottleneck(student: Tensor, teacher: Tensor, *, factor: int = 2) -> nn.Sequential:
    """Returns the projector of SimKD: 1x1, 3x3 and 1x1 convolutions, each with normalisation and ReLU.

    Args:
        student: ``[B, Cs, H, W]`` from a dry run; only its shape and device are used.
        teacher: ``[B, Ct, H', W']``, likewise.
        factor: how many times narrower than the teacher's map the inner maps are.
    """
    outputs = teacher.shape[1]
    inner = max(outputs // factor, 1)
    layers: list[nn.Module] = []
    for inputs, channels, size in ((student.shape[1], inner, 1), (inner, inner, 3), (inner, outputs, 1)):
        convolution = nn.Conv2d(inputs, channels, size, padding=size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers).to(student.device)
