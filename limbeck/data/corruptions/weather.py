"""Weather: snow, frost, fog, bright light."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.data.corruptions.base import Severity, corruption, levels, normal
from limbeck.data.corruptions.blur import smeared, zoomed

# Mean, deviation, zoom and threshold of the flakes; length and deviation of their fall; part of the picture kept.
_SNOW = (
    (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
_FROST = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
_FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))
_BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)
_GREY = (0.299, 0.587, 0.114)
_ICE = (0.88, 0.95, 1.0)
_ICE_DECAY = 1.5


def _pattern_side(shape: tuple[int, ...]) -> int:
    """Side of a square pattern that covers a picture, a power of two."""
    return 1 << (max(shape[-2:]) - 1).bit_length()


def _one_pattern(shape: tuple[int, int, int]) -> int:
    return _pattern_side(shape) ** 2


@corruption("snow", "weather", lambda shape: shape[1] * shape[2] + 1)
def snow(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Whitens the picture and lays falling flakes over it, and the same flakes upside down."""
    mean, deviation, zoom, threshold, length, sigma, kept = _SNOW[severity - 1]
    count, _, rows, columns = images.shape
    flakes = mean + deviation * normal(numbers[:, 1:]).view(count, 1, rows, columns)
    flakes = zoomed(flakes, zoom)
    flakes = levels(torch.where(flakes < threshold, 0.0, flakes)) / 255
    flakes = levels(smeared(flakes, length, sigma, numbers[:, 0] * 90 - 135)) / 255
    white = torch.maximum(images, _brightness(images) * 1.5 + 0.5)
    return kept * images + (1 - kept) * white + flakes + flakes.rot90(2, (2, 3))


@corruption("frost", "weather", lambda shape: 2 * _one_pattern(shape))
def frost(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Blends in a generated pattern of icy ridges, where the benchmark has photographs of frozen windows."""
    kept, added = _FROST[severity - 1]
    return kept * images + added * ice(numbers, tuple(images.shape))


def ice(numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns ``[n, C, H, W]`` in [0, 1]: bright ridges along the contour lines of one rough field, thicker by another.

    Args:
        numbers: ``[n, 2 * side**2]`` uniform, for the two fields.
        shape: ``(n, C, H, W)``.
    """
    rough, thickness = (plasma(half, _ICE_DECAY) for half in numbers.chunk(2, 1))
    ridges = 1 - (torch.sin(4 * torch.pi * rough)).abs()
    pattern = (0.35 + 0.65 * ridges) * (0.4 + 0.6 * thickness)
    pattern = pattern[:, None, : shape[2], : shape[3]]
    if shape[1] == 1:
        return pattern
    return pattern * torch.tensor(_ICE, dtype=pattern.dtype).view(1, 3, 1, 1)


@corruption("fog", "weather", _one_pattern)
def fog(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Adds a cloud, and keeps the brightest value of the picture where it was."""
    strength, decay = _FOG[severity - 1]
    rows, columns = images.shape[2:]
    cloud = plasma(numbers, decay)[:, None, :rows, :columns]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + strength * cloud) * brightest / (brightest + strength)


def plasma(numbers: Tensor, decay: float) -> Tensor:
    """Returns random clouds by midpoint displacement on a torus, from 0 to 1.

    Each level halves the distance of the points and displaces them by ``decay ** 2`` times less than the one before.
    Reference: Fournier, Fussell and Carpenter, "Computer rendering of stochastic models", 1982.

    Args:
        numbers: ``[n, side**2]`` uniform, ``side`` a power of two.
        decay: how fast roughness fades.

    Returns:
        ``[n, side, side]``.
    """
    count, total = numbers.shape
    side = round(total**0.5)
    moves = 2 * numbers.view(count, side, side) - 1
    cloud = torch.zeros_like(moves)
    step, size = side, 1.0
    while step >= 2:
        half = step // 2
        corners = cloud[:, ::step, ::step]
        squares = corners + corners.roll(-1, 1)
        squares = squares + squares.roll(-1, 2)
        cloud[:, half::step, half::step] = squares / 4 + size * moves[:, half::step, half::step]
        middles = cloud[:, half::step, half::step]
        above = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        cloud[:, ::step, half::step] = above / 4 + size * moves[:, ::step, half::step]
        beside = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        cloud[:, half::step, ::step] = beside / 4 + size * moves[:, half::step, ::step]
        step, size = half, size / decay**2
    low, high = cloud.amin((1, 2), keepdim=True), cloud.amax((1, 2), keepdim=True)
    return (cloud - low) / (high - low)


@corruption("brightness", "weather")
def brightness(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Raises the value of the HSV colour model; hue and saturation stay."""
    value = images.amax(1, keepdim=True)
    raised = (value + _BRIGHTNESS[severity - 1]).clamp_max(1)
    return torch.where(value > 0, images * raised / value.clamp_min(1e-12), raised)


def _brightness(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(_GREY, dtype=images.dtype).view(1, 3, 1, 1)).sum(1, keepdim=True)
