"""Blur: out of focus, through wavy glass, by motion, by zooming while the shutter is open."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from limbeck.data.corruptions.base import Severity, corruption, levels

_DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
_GLASS = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
_MOST_PASSES = 2
_MOTION = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))
_ZOOM = (1.06, 1.11, 1.16, 1.21, 1.26)

Border = Literal["nearest", "reflect", "mirror"]


@corruption("defocus_blur", "blur")
def defocus_blur(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Spreads every pixel over a disk whose edge is softened."""
    radius, softness = _DEFOCUS[severity - 1]
    return convolved(images, soft_disk(radius, softness))


def soft_disk(radius: float, softness: float) -> Tensor:
    """Returns an odd, square kernel: pixels within ``radius``, blurred over three pixels by ``softness``; sum 1."""
    reach = math.ceil(radius) + 1
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = (place[:, None] ** 2 + place[None, :] ** 2 <= radius**2).double()
    side = math.exp(-1 / (2 * softness**2))
    line = torch.tensor([side, 1.0, side], dtype=torch.float64) / (1 + 2 * side)
    blurred = nnf.conv2d(disk[None, None], (line[:, None] * line[None, :])[None, None], padding=1)[0, 0]
    return blurred / blurred.sum()


def convolved(images: Tensor, kernel: Tensor) -> Tensor:
    """Returns pictures correlated with one small odd kernel; what lies outside mirrors the inside about its edge."""
    reach = len(kernel) // 2
    padded = nnf.pad(images, (reach,) * 4, mode="reflect")
    rows, columns = images.shape[2:]
    result = torch.zeros_like(images)
    # Summed tap by tap, since the rounding of a convolution may depend on the size of the batch.
    for i, line in enumerate(kernel.tolist()):
        for j, weight in enumerate(line):
            if weight:
                result += weight * padded[:, :, i : i + rows, j : j + columns]
    return result


@corruption("glass_blur", "blur", lambda shape: 2 * _MOST_PASSES * shape[1] * shape[2])
def glass_blur(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Blurs, lets pixels take the values of neighbours, one after the other, and blurs again."""
    sigma, reach, passes = _GLASS[severity - 1]
    count, _, rows, columns = images.shape
    pixels = levels(gaussian_blurred(images, sigma)).numpy().copy()
    steps = (
        np.floor(numbers.numpy().reshape(count, _MOST_PASSES, rows, columns, 2) * 2 * reach).astype(np.int64) - reach
    )
    every = np.arange(count)
    for turn in range(passes):
        for row in range(rows - reach, reach, -1):
            for column in range(columns - reach, reach, -1):
                dy, dx = steps[:, turn, row - 1, column - 1].T
                pixels[:, :, row, column] = pixels[every, :, row + dy, column + dx]
    return gaussian_blurred(torch.from_numpy(pixels) / 255, sigma)


def gaussian_blurred(images: Tensor, sigma: float, *, truncate: float = 4.0, border: Border = "nearest") -> Tensor:
    """Returns ``[..., H, W]`` blurred by a Gaussian of ``sigma`` pixels that is cut off at ``truncate`` deviations."""
    rows, columns = (blur_matrix(side, sigma, truncate, border) for side in images.shape[-2:])
    return rows @ images @ columns.T


def blur_matrix(side: int, sigma: float, truncate: float, border: Border) -> Tensor:
    """Returns the ``[side, side]`` float64 matrix that blurs a line of pixels, its border included."""
    reach = int(truncate * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma else np.ones(1)
    weights /= weights.sum()
    matrix = np.zeros((side, side))
    for row in range(side):
        np.add.at(matrix[row], inside(row + offsets, side, border), weights)
    return torch.from_numpy(matrix)


def inside(places: np.ndarray, side: int, border: Border) -> np.ndarray:
    """Returns the pixels that stand for places outside ``0 .. side - 1``.

    ``nearest`` repeats the last one, ``reflect`` mirrors about the border, ``mirror`` about the last pixel.
    """
    if border == "nearest":
        return places.clip(0, side - 1)
    period = 2 * side if border == "reflect" else 2 * side - 2
    folded = places % period
    return np.where(folded < side, folded, period - folded - (border == "reflect"))


@corruption("motion_blur", "blur", lambda shape: 1)
def motion_blur(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Smears the picture one way along a random line up to 45 degrees off the horizontal."""
    radius, sigma = _MOTION[severity - 1]
    return smeared(images, radius, sigma, numbers[:, 0] * 90 - 45)


def smeared(images: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Returns the weighted mean of a picture and of it moved on by whole pixels, weights falling as half a Gaussian.

    Args:
        images: ``[n, C, H, W]``.
        radius: the smear has ``2 * radius + 1`` pixels.
        sigma: deviation of the weights, in pixels.
        degrees: ``[n]`` direction; 0 is towards larger columns, 90 towards larger rows.
    """
    count, channels, rows, columns = images.shape
    steps = torch.arange(2 * radius + 1, dtype=torch.float64)
    weights = (-0.5 * (steps / sigma) ** 2).exp()
    weights /= weights.sum()
    angle = torch.deg2rad(degrees)[:, None]
    down, right = ((steps * part(angle) - 0.5).ceil().long() for part in (torch.sin, torch.cos))
    result = torch.zeros_like(images)
    for step, weight in enumerate(weights.tolist()):
        row = (torch.arange(rows) + down[:, step, None]).clamp(0, rows - 1)
        column = (torch.arange(columns) + right[:, step, None]).clamp(0, columns - 1)
        place = (row[:, :, None] * columns + column[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
        result += weight * images.flatten(2).gather(2, place).view_as(images)
    return result


@corruption("zoom_blur", "blur")
def zoom_blur(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Averages the picture with ever larger views of its middle."""
    factors = np.arange(1, _ZOOM[severity - 1], 0.01)
    total = images.clone()
    for factor in factors:
        total += zoomed(images, float(factor))
    return total / (len(factors) + 1)


def zoomed(images: Tensor, factor: float) -> Tensor:
    """Returns the middle of pictures ``[n, C, H, W]``, enlarged bilinearly to their own size."""
    parts = []
    for side in images.shape[2:]:
        shown = math.ceil(side / factor)
        parts.append((shown, (side - shown) // 2, round(shown * factor)))
    (height, top, tall), (width, left, wide) = parts
    large = nnf.interpolate(
        images[:, :, top : top + height, left : left + width],
        (tall, wide),
        mode="bilinear",
        align_corners=True,
    )
    rows, columns = images.shape[2:]
    above, before = (tall - rows) // 2, (wide - columns) // 2
    return large[:, :, above : above + rows, before : before + columns]
