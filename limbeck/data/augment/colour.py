"""What changes colours: brightness, contrast, saturation and hue."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.data.augment.base import Augmentation, augmentation, between
from limbeck.hyperparameters import Fraction, NonNegative

_LEVELS = 255 * 256


def grey(images: Tensor) -> Tensor:
    """Returns the luma (ITU-R 601) of float pictures ``[n, C, H, W]`` as ``[n, 1, H, W]``."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True) if images.shape[1] > 1 else images
    red, green, blue = images.unbind(1)
    return (red * 0.299 + green * 0.587 + blue * 0.114).unsqueeze(1)


def mean_grey(images: Tensor) -> Tensor:
    """Returns the mean luma of each picture ``[n, 1, 1, 1]``, summed in integers, which round nothing."""
    luma = (grey(images) * _LEVELS).round().to(torch.int64)
    total = luma.sum(dim=(1, 2, 3), keepdim=True).to(images.dtype)
    return total / (_LEVELS * luma[0].numel())


def blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Returns ``base`` at ``factor`` ``[n]`` 0, ``images`` at 1 and more of them above, cut to [0, 1]."""
    return ((images - base) * factor.to(images.dtype).view(-1, 1, 1, 1) + base).clamp_(0, 1)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends from black."""
    return blend(images.new_zeros(()), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends from each picture's mean luma."""
    return blend(mean_grey(images), images, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends from each picture's luma; nothing happens to a picture of one channel."""
    return blend(grey(images), images, factor)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turns the hue of pictures ``[n, 3, H, W]`` by ``turn`` ``[n]`` of a circle; HSV saturation and value stay."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sector = sector + turn.to(images.dtype).view(-1, 1, 1) * 6

    def channel(offset: float) -> Tensor:
        place = (sector + offset).remainder(6)
        return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], dim=1)


@augmentation("color_jitter")
class ColorJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue by random amounts, always in this order.

    The first three are multiplied by a factor between ``1 - x`` and ``1 + x``; the hue is turned by up to ``hue`` of a
    circle either way.

    Args:
        brightness: largest change of brightness.
        contrast: largest change of contrast.
        saturation: largest change of saturation.
        hue: largest turn of the hue, at most 0.5.
        p: probability that a picture is changed.
    """

    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    hue: Fraction = 0.0
    p: Fraction = 1.0

    def draws(self, shape: tuple[int, ...]) -> int:
        """Whether, and four amounts."""
        return 5

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns pictures of other colours."""
        changed = images
        amounts = (self.brightness, self.contrast, self.saturation)
        for column, (operation, amount) in enumerate(zip((brightness, contrast, saturation), amounts), start=1):
            if amount:
                changed = operation(changed, between(numbers[:, column], max(0.0, 1 - amount), 1 + amount))
        if self.hue:
            changed = hue(changed, between(numbers[:, 4], -self.hue, self.hue))
        return torch.where((numbers[:, 0] < self.p).view(-1, 1, 1, 1), changed, images)


@augmentation("grayscale")
class Grayscale(Augmentation):
    """Takes the colours out of the picture with some probability; the number of channels stays.

    Args:
        p: the probability.
    """

    p: Fraction = 0.2

    def draws(self, shape: tuple[int, ...]) -> int:
        """Whether."""
        return 1

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns pictures, some without colours."""
        return torch.where((numbers[:, 0] < self.p).view(-1, 1, 1, 1), grey(images).expand_as(images), images)
