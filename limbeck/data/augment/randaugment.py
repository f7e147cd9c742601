"""RandAugment (Cubuk et al., 2020, https://arxiv.org/abs/1909.13719) and the policy ``strong`` that is made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from limbeck.data.augment import colour
from limbeck.data.augment.base import Augmentation, Fill, augmentation, chosen_integers
from limbeck.data.augment.warping import affine_matrices, warp
from limbeck.hyperparameters import Count

Operation = Callable[[Tensor, Tensor, Fill, Tensor], Tensor]
"""``(images, amount, fill, mean)``; ``amount`` ``[n]`` runs from -1 to 1, its sign being random."""


def _warped(images: Tensor, fill: Fill, mean: Tensor, **changes: Tensor) -> Tensor:
    none, one = [0.0] * len(images), [1.0] * len(images)
    given = {name: values.tolist() for name, values in changes.items()}
    order = ("degrees", "shift_x", "shift_y", "zoom", "shear_x", "shear_y")
    lists = [given.get(name, one if name == "zoom" else none) for name in order]
    return warp(images, affine_matrices(*lists), (images.shape[2], images.shape[3]), fill, mean)


def _identity(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    return images


def _rotate(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    return _warped(images, fill, mean, degrees=amount * 30)


def _shear_x(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    return _warped(images, fill, mean, shear_x=amount * 0.3)


def _shear_y(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    return _warped(images, fill, mean, shear_y=amount * 0.3)


def _translate_x(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    return _warped(images, fill, mean, shift_x=amount * (0.45 * images.shape[3]))


def _translate_y(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    return _warped(images, fill, mean, shift_y=amount * (0.45 * images.shape[2]))


def _brightness(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    return colour.brightness(images, 1 + amount * 0.9)


def _contrast(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    return colour.contrast(images, 1 + amount * 0.9)


def _saturation(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    return colour.saturation(images, 1 + amount * 0.9)


def _sharpness(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    if min(images.shape[2:]) < 3:
        return images
    rows, columns = images.shape[2] - 2, images.shape[3] - 2
    near = torch.zeros_like(images[:, :, 1:-1, 1:-1])
    for row in range(3):
        for column in range(3):
            near = near + images[:, :, row : row + rows, column : column + columns]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (near + 4 * images[:, :, 1:-1, 1:-1]) / 13
    return colour.blend(smooth, images, 1 + amount * 0.9)


def _posterize(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    step = (2 ** (amount.abs() * 4).round()).to(images.dtype).view(-1, 1, 1, 1)
    return ((images * 255).round() / step).floor() * step / 255


def _solarize(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    threshold = ((1 - amount.abs()) * 256 / 255).to(images.dtype).view(-1, 1, 1, 1)
    return torch.where(images >= threshold, 1 - images, images)


def _autocontrast(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (images - low) / torch.where(spread > 0, spread, 1), images)


def _equalize(images: Tensor, amount: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    count, channels = images.shape[:2]
    levels = (images * 255).round().to(torch.int64).clamp_(0, 255).view(count * channels, -1)
    histogram = torch.zeros(count * channels, 256, dtype=torch.int64)
    histogram.scatter_add_(1, levels, torch.ones_like(levels))
    last = levels.amax(1, keepdim=True)
    step = (levels.shape[1] - histogram.gather(1, last)) // 255
    before = histogram.cumsum(1) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(max=255)
    equal = table.gather(1, levels).view_as(images).to(images.dtype) / 255
    return torch.where(step.view(count, channels, 1, 1) > 0, equal, images)


OPERATIONS: dict[str, Operation] = {
    "identity": _identity,
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}


@augmentation("randaugment")
class RandAugment(Augmentation):
    """Applies ``n`` operations drawn at random to each picture, all with one strength.

    The fourteen operations and their ranges at full strength are those of the paper: identity, rotation by 30 degrees,
    shears of 0.3, shifts of 0.45 of the side, brightness, contrast, saturation and sharpness changed by 0.9,
    posterising to 4 bits, solarising above 0, autocontrast and equalisation. Strength has a random sign where that
    makes sense. Deviations from the authors' code: pixels are interpolated bilinearly, and shifts scale with the
    picture instead of being 100 pixels.

    Args:
        n: operations on each picture.
        magnitude: strength, from 0 to 30.
        fill: what comes in from outside: ``black`` or the data's ``mean``.
    """

    n: Count = 2
    magnitude: Annotated[float, Ge(0), Le(30)] = 10.0
    fill: Fill = "mean"

    def draws(self, shape: tuple[int, ...]) -> int:
        """Operation and sign of each."""
        return 2 * self.n

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns pictures after ``n`` operations each."""
        changed = images.clone()
        for slot in range(self.n):
            chosen = chosen_integers(numbers[:, 2 * slot], len(OPERATIONS))
            amount = (1 - 2 * (numbers[:, 2 * slot + 1] >= 0.5).to(torch.float64)) * (self.magnitude / 30)
            for number, operation in enumerate(OPERATIONS.values()):
                rows = (chosen == number).nonzero()[:, 0]
                if len(rows):
                    changed[rows] = operation(changed[rows], amount[rows], self.fill, mean)
        return changed
