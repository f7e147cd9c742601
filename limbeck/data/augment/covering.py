"""What hides a part of the picture, or all of it a little: cutout, random erasing, noise."""

from __future__ import annotations

import functools
import math

import torch
from pydantic import model_validator
from torch import Tensor

from limbeck.data.augment.base import Augmentation, Fill, augmentation, between, chosen_integers, filled, pixels
from limbeck.hyperparameters import Fraction, NonNegative, Positive


def cover(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    """Returns pictures with a box of one colour; its bounds ``[n]``, ends excluded, may lie outside the picture."""
    rows, columns = torch.arange(images.shape[2]), torch.arange(images.shape[3])
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    box = (in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1)
    return torch.where(box, filled((1, images.shape[1], 1, 1), images, fill, mean), images)


@augmentation("cutout")
class Cutout(Augmentation):
    """Hides a square around a random pixel, less of it at the border.

    DeVries and Taylor, 2017, https://arxiv.org/abs/1708.04552.

    Args:
        size: side of the square in pixels, or below 1 a part of the shorter side.
        p: probability that a picture gets one.
        fill: its colour. The data's ``mean`` is 0 after normalisation, as in the authors' code.
    """

    size: Positive = 8
    p: Fraction = 1.0
    fill: Fill = "mean"

    def takes_bytes(self) -> bool:
        """Black needs no floats."""
        return self.fill == "black"

    def draws(self, shape: tuple[int, ...]) -> int:
        """Whether, row and column."""
        return 3

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns pictures with a square hidden."""
        rows, columns = images.shape[2:]
        side = pixels(self.size, min(rows, columns))
        shown = torch.where(numbers[:, 0] < self.p, side, 0)
        top = chosen_integers(numbers[:, 1], rows) - side // 2
        left = chosen_integers(numbers[:, 2], columns) - side // 2
        return cover(images, top, left, top + shown, left + shown, self.fill, mean)


@augmentation("erase")
class Erase(Augmentation):
    """Hides a rectangle of random area and shape that lies inside the picture.

    Zhong et al., 2020, https://arxiv.org/abs/1708.04896.
    Where the authors draw again until a rectangle fits, sides that are too long are cut to the picture's.

    Args:
        p: probability that a picture gets one.
        area: smallest and largest part of the picture's area.
        ratio: smallest and largest height over width.
        fill: its colour: the data's ``mean`` or ``black``.
    """

    p: Fraction = 0.5
    area: tuple[Fraction, Fraction] = (0.02, 0.4)
    ratio: tuple[Positive, Positive] = (0.3, 3.3)
    fill: Fill = "mean"

    @model_validator(mode="after")
    def _ordered(self) -> Erase:
        if self.area[0] > self.area[1] or self.ratio[0] > self.ratio[1]:
            raise ValueError("the first number of area and ratio must not be the larger one")
        return self

    def takes_bytes(self) -> bool:
        """Black needs no floats."""
        return self.fill == "black"

    def draws(self, shape: tuple[int, ...]) -> int:
        """Whether, area, shape, row and column."""
        return 5

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns pictures with a rectangle hidden."""
        rows, columns = images.shape[2:]
        areas = between(numbers[:, 1], *self.area) * (rows * columns)
        logs = between(numbers[:, 2], math.log(self.ratio[0]), math.log(self.ratio[1]))
        # The C library's functions, one by one: vectorised ones round differently at the end of a batch.
        sides = [
            (math.sqrt(a * math.exp(r)), math.sqrt(a / math.exp(r))) for a, r in zip(areas.tolist(), logs.tolist())
        ]
        height = torch.tensor([min(rows, max(1, round(h))) for h, _ in sides])
        width = torch.tensor([min(columns, max(1, round(w))) for _, w in sides])
        top = (numbers[:, 3] * (rows - height + 1)).to(torch.int64)
        left = (numbers[:, 4] * (columns - width + 1)).to(torch.int64)
        shown = numbers[:, 0] < self.p
        return cover(images, top, left, top + height * shown, left + width * shown, self.fill, mean)


@augmentation("noise")
class Noise(Augmentation):
    """Adds independent Gaussian noise to every value, without clipping.

    Args:
        std: standard deviation, where inputs lie in [0, 1].
    """

    std: NonNegative = 0.05

    def draws(self, shape: tuple[int, ...]) -> int:
        """One for each value."""
        return math.prod(shape)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Any shape will do."""
        return shape

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns noisy pictures."""
        quantiles = _normal_quantiles()
        normal = quantiles[chosen_integers(numbers, len(quantiles))].to(images.dtype)
        return images + (normal * self.std).view_as(images)


@functools.cache
def _normal_quantiles() -> Tensor:
    """65,536 equally likely normal values: looked up, a value cannot depend on its place in the batch."""
    return torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)).to(torch.float32)
