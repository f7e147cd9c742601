"""Which part of the picture is seen: crop, flip, centre crop."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from limbeck.data.augment.base import Augmentation, Fill, augmentation, chosen_integers, filled, pixels
from limbeck.errors import RecipeError
from limbeck.hyperparameters import Count, Fraction, NonNegative

Size = Count | tuple[Count, Count]


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns ``(height, width)``."""
    return (size, size) if isinstance(size, int) else size


def windows(images: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Cuts a window of its own out of every picture.

    One gather of whole rows: every place in memory is seen as the start of a row of ``width``, and the rows wanted are
    picked.

    Args:
        images: ``[n, C, H, W]``.
        top: ``[n]`` int64 first row of each window.
        left: ``[n]`` int64 first column.
        height: rows of the window.
        width: columns.

    Returns:
        ``[n, C, height, width]``.
    """
    count, channels, rows, columns = images.shape
    flat = images.reshape(-1)
    starts = flat.as_strided((flat.numel() - width + 1, width), (1, 1))
    plane = (torch.arange(count * channels).view(count, channels) * rows + top[:, None]) * columns + left[:, None]
    wanted = plane[:, :, None] + torch.arange(height) * columns
    return starts.index_select(0, wanted.view(-1)).view(count, channels, height, width)


@augmentation("crop")
class Crop(Augmentation):
    """Pads the picture and cuts a window of the original size at a random place.

    He et al., 2016, https://arxiv.org/abs/1512.03385.

    Args:
        padding: pixels on every side, or below 1 a part of the shorter side.
        size: size of the window; that of the picture when None.
        fill: colour of the padding: ``black`` (as the literature does) or the data's ``mean``.
    """

    padding: NonNegative = 4
    size: Size | None = None
    fill: Fill = "black"

    def takes_bytes(self) -> bool:
        """Black needs no floats."""
        return self.fill == "black"

    def draws(self, shape: tuple[int, ...]) -> int:
        """Row and column."""
        return 2

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The window's shape."""
        self.require_image(shape)
        height, width = shape[1:] if self.size is None else pair(self.size)
        border = 2 * pixels(self.padding, min(shape[1:]))
        if height > shape[1] + border or width > shape[2] + border:
            raise RecipeError(
                f"augmentation 'crop': a window of {height}x{width} is larger than the padded image, "
                f"{shape[1] + border}x{shape[2] + border}"
            )
        return (shape[0], height, width)

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns a window of every picture."""
        count, channels, rows, columns = images.shape
        _, height, width = self.output_shape((channels, rows, columns))
        border = pixels(self.padding, min(rows, columns))
        if border:
            canvas = filled((count, channels, rows + 2 * border, columns + 2 * border), images, self.fill, mean)
            canvas[:, :, border : border + rows, border : border + columns] = images
            images = canvas
        top = chosen_integers(numbers[:, 0], images.shape[2] - height + 1)
        left = chosen_integers(numbers[:, 1], images.shape[3] - width + 1)
        return windows(images, top, left, height, width)


@augmentation("flip")
class Flip(Augmentation):
    """Mirrors the picture with some probability.

    Args:
        p: the probability.
        axis: ``horizontal`` swaps left and right, ``vertical`` top and bottom.
    """

    p: Fraction = 0.5
    axis: Literal["horizontal", "vertical"] = "horizontal"

    def takes_bytes(self) -> bool:
        """Pixels only change places."""
        return True

    def draws(self, shape: tuple[int, ...]) -> int:
        """Whether."""
        return 1

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns every picture or its mirror image."""
        count = len(images)
        both = torch.cat([images, images.flip(3 if self.axis == "horizontal" else 2)])
        return both.index_select(0, torch.arange(count) + (numbers[:, 0] < self.p) * count)


@augmentation("center_crop")
class CenterCrop(Augmentation):
    """Cuts the middle out of the picture; not random.

    Args:
        size: side of the square, or ``(height, width)``.
    """

    size: Size = Field()

    def takes_bytes(self) -> bool:
        """Pixels only change places."""
        return True

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The window's shape."""
        self.require_image(shape)
        height, width = pair(self.size)
        if height > shape[1] or width > shape[2]:
            raise RecipeError(
                f"augmentation 'center_crop': a window of {height}x{width} is larger than the image, "
                f"{shape[1]}x{shape[2]}"
            )
        return (shape[0], height, width)

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns the middle of every picture."""
        height, width = pair(self.size)
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        return images[:, :, top : top + height, left : left + width]
