"""What a difference of pixel values is in the inputs of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PixelScale:
    """Normalisation of pixel values in [0, 1], as attacks need it: they may change an image by so much of its range.

    Attributes:
        mean: subtracted from each channel; empty where inputs are the pixel values themselves.
        std: divides each channel, likewise.

    Example:
        >>> PixelScale((0.5,), (0.25,)).bounds(torch.zeros(2, 1, 4, 4))[1].flatten()
        tensor([2.])
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def length(self, difference: float, inputs: Tensor) -> Tensor:
        """Returns what a difference of pixel values is in each channel of ``inputs`` ``[B, C, ...]``."""
        return self._per_channel([difference / s for s in self.std or (1.0,)], inputs)

    def bounds(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the pixel values 0 and 1 are in each channel of ``inputs`` ``[B, C, ...]``."""
        pairs = list(zip(self.mean, self.std, strict=True)) or [(0.0, 1.0)]
        low, high = ([(value - m) / s for m, s in pairs] for value in (0.0, 1.0))
        return self._per_channel(low, inputs), self._per_channel(high, inputs)

    def fits(self, inputs: Tensor) -> bool:
        """Whether all of ``inputs`` lie between the pixel values 0 and 1, up to rounding."""
        low, high = self.bounds(inputs)
        room = 1e-4 * (high - low)
        return bool(((inputs >= low - room) & (inputs <= high + room)).all())

    @staticmethod
    def _per_channel(values: list[float], inputs: Tensor) -> Tensor:
        shape = (1, -1, *(1,) * (inputs.dim() - 2)) if len(values) > 1 else (1,) * inputs.dim()
        return torch.tensor(values, dtype=inputs.dtype, device=inputs.device).view(shape)
