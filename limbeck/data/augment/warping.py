"""What moves pixels by fractions: rotation, affine maps, crops of random size, resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as nnf
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.data.augment.base import Augmentation, Fill, augmentation, between
from limbeck.data.augment.framing import Size, pair
from limbeck.hyperparameters import Fraction, NonNegative, Positive


def warp(images: Tensor, matrix: Tensor, size: tuple[int, int], fill: Fill | Literal["edge"], mean: Tensor) -> Tensor:
    """Returns pictures seen through affine maps, bilinearly.

    Args:
        images: float ``[n, C, H, W]``.
        matrix: ``[n, 2, 3]`` float64; takes a pixel's place (x, y, 1), counted from the middle of the result, to a
            place in the input, counted from its middle.
        size: ``(height, width)`` of the result.
        fill: what lies outside of the picture; ``edge`` repeats its border.
        mean: ``[C]`` channel means.

    Returns:
        ``[n, C, height, width]``.
    """
    rows, columns = images.shape[2:]
    height, width = size
    x = (torch.arange(width) - (width - 1) / 2).view(1, 1, -1)
    y = (torch.arange(height) - (height - 1) / 2).view(1, -1, 1)
    m = matrix.to(images.dtype)[:, :, :, None, None]
    # Written out, since the rounding of a matrix product may depend on the size of the batch.
    source_x = m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2]
    source_y = m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2]
    grid = torch.stack([source_x * (2 / columns), source_y * (2 / rows)], dim=-1)
    colour = mean.to(images.dtype).view(1, -1, 1, 1) if fill == "mean" else None
    moved = images if colour is None else images - colour
    outside = "border" if fill == "edge" else "zeros"
    moved = nnf.grid_sample(moved, grid, mode="bilinear", padding_mode=outside, align_corners=False)
    return moved if colour is None else moved + colour


def affine_matrices(
    degrees: Sequence[float],
    shift_x: Sequence[float],
    shift_y: Sequence[float],
    zoom: Sequence[float],
    shear_x: Sequence[float],
    shear_y: Sequence[float],
) -> Tensor:
    """Returns ``[n, 2, 3]`` float64 maps for :func:`warp`, one for each entry of the lists.

    The picture is sheared, scaled by ``zoom``, turned clockwise by ``degrees`` and shifted by pixels.
    """
    maps = []
    for angle, dx, dy, scale, kx, ky in zip(degrees, shift_x, shift_y, zoom, shear_x, shear_y):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        # Forward map: rotation times scale times shear; the picture is sampled through its inverse.
        a, b = scale * (c - s * ky), scale * (c * kx - s)
        d, e = scale * (s + c * ky), scale * (s * kx + c)
        det = a * e - b * d
        inverse = (e / det, -b / det, -d / det, a / det)
        maps.append(
            [
                [inverse[0], inverse[1], -(inverse[0] * dx + inverse[1] * dy)],
                [inverse[2], inverse[3], -(inverse[2] * dx + inverse[3] * dy)],
            ]
        )
    return torch.tensor(maps, dtype=torch.float64).view(-1, 2, 3)


@augmentation("affine")
class Affine(Augmentation):
    """Turns, shifts, scales and shears the picture by random amounts, bilinearly.

    Args:
        degrees: largest rotation either way.
        translate: largest shift either way, as a part of height and width.
        scale: smallest and largest zoom.
        shear: largest horizontal shear either way, as a slope.
        fill: what comes in from outside: ``black`` or the data's ``mean``.
    """

    degrees: NonNegative = 10.0
    translate: Fraction = 0.0
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    shear: NonNegative = 0.0
    fill: Fill = "black"

    @model_validator(mode="after")
    def _ordered(self) -> Affine:
        if self.scale[0] > self.scale[1]:
            raise ValueError("the first number of scale must not be the larger one")
        return self

    def draws(self, shape: tuple[int, ...]) -> int:
        """Angle, two shifts, zoom and shear."""
        return 5

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns warped pictures."""
        rows, columns = images.shape[2:]
        signed = between(numbers, -1, 1)
        matrices = affine_matrices(
            (signed[:, 0] * self.degrees).tolist(),
            (signed[:, 1] * self.translate * columns).tolist(),
            (signed[:, 2] * self.translate * rows).tolist(),
            between(numbers[:, 3], *self.scale).tolist(),
            (signed[:, 4] * self.shear).tolist(),
            [0.0] * len(images),
        )
        return warp(images, matrices, (rows, columns), self.fill, mean)


@augmentation("rotate")
class Rotate(Augmentation):
    """Turns the picture about its middle by a random angle, bilinearly.

    Args:
        degrees: largest rotation either way.
        fill: what comes in from outside: ``black`` or the data's ``mean``.
    """

    degrees: NonNegative = 10.0
    fill: Fill = "black"

    def draws(self, shape: tuple[int, ...]) -> int:
        """The angle."""
        return 1

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns turned pictures."""
        angles = (between(numbers[:, 0], -1, 1) * self.degrees).tolist()
        none, one = [0.0] * len(angles), [1.0] * len(angles)
        return warp(
            images,
            affine_matrices(angles, none, none, one, none, none),
            (images.shape[2], images.shape[3]),
            self.fill,
            mean,
        )


@augmentation("resized_crop")
class ResizedCrop(Augmentation):
    """Cuts a box of random area, shape and place, and scales it to one size, bilinearly (Szegedy et al., 2015).

    https://arxiv.org/abs/1409.4842. Where the common code draws again until a box fits, sides that are too long are
    cut to the picture's.

    Args:
        size: side of the result, or ``(height, width)``.
        area: smallest and largest part of the picture's area.
        ratio: smallest and largest width over height.
    """

    size: Size = Field()
    area: tuple[Positive, Fraction] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)

    @model_validator(mode="after")
    def _ordered(self) -> ResizedCrop:
        if self.area[0] > self.area[1] or self.ratio[0] > self.ratio[1]:
            raise ValueError("the first number of area and ratio must not be the larger one")
        return self

    def draws(self, shape: tuple[int, ...]) -> int:
        """Area, shape, row and column."""
        return 4

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The size asked for."""
        self.require_image(shape)
        return (shape[0], *pair(self.size))

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns a box of every picture, scaled."""
        rows, columns = images.shape[2:]
        height, width = pair(self.size)
        maps = []
        for u_area, u_ratio, u_row, u_column in numbers.tolist():
            area = (self.area[0] + u_area * (self.area[1] - self.area[0])) * rows * columns
            ratio = math.exp(math.log(self.ratio[0]) + u_ratio * (math.log(self.ratio[1]) - math.log(self.ratio[0])))
            box_width, box_height = min(columns, math.sqrt(area * ratio)), min(rows, math.sqrt(area / ratio))
            middle_x = u_column * (columns - box_width) + (box_width - columns) / 2
            middle_y = u_row * (rows - box_height) + (box_height - rows) / 2
            maps.append([[box_width / width, 0.0, middle_x], [0.0, box_height / height, middle_y]])
        matrix = torch.tensor(maps, dtype=torch.float64).view(-1, 2, 3)
        return warp(images, matrix, (height, width), "edge", mean)


@augmentation("resize")
class ResizeTo(Augmentation):
    """Scales the picture to one size, bilinearly with antialiasing; not random.

    Args:
        size: side of the result, or ``(height, width)``.
    """

    size: Size = Field()

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The size asked for."""
        self.require_image(shape)
        return (shape[0], *pair(self.size))

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns scaled pictures."""
        return nnf.interpolate(images, pair(self.size), mode="bilinear", antialias=True, align_corners=False)
