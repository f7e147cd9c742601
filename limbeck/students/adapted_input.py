"""A model behind a change of its inputs: other size, grey to colour, other normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from limbeck.anatomy import anatomy_of


@dataclass(frozen=True)
class Normalisation:
    """Per-channel statistics by which images in [0, 1] were normalised: ``(image - mean) / std``.

    Attributes:
        mean: one value a channel.
        std: one value a channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


class AdaptedInput(nn.Module):
    """Runs ``network`` on images of another form than it was made for; taps and export see one model.

    Args:
        network: the model; where it returns a record with ``logits``, those are returned.
        size: side to which images are resized, bilinearly and without antialiasing; None keeps their size.
        to_colour: repeat a grey channel three times.
        given: how the images arrive normalised. Only used together with ``wanted``.
        wanted: how ``network`` wants them normalised.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        size: int | None = None,
        to_colour: bool = False,
        given: Normalisation | None = None,
        wanted: Normalisation | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.to_colour = to_colour
        self.scale: Tensor | None
        self.shift: Tensor | None
        scale, shift = _affine(given, wanted) if given and wanted else (None, None)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.anatomy = anatomy_of(network).under("network")

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits ``[B, num_classes]`` of ``images`` ``[B, C, H, W]``."""
        if self.to_colour:
            images = images.expand(-1, 3, -1, -1)
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        if self.size is not None:
            images = interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False)
        output = self.network(images)
        return output if isinstance(output, Tensor) else output.logits


def _affine(given: Normalisation, wanted: Normalisation) -> tuple[Tensor, Tensor]:
    """Returns scale and shift that take images from one normalisation to another, as ``[1, C, 1, 1]``."""
    given_mean, given_std, wanted_mean, wanted_std = (
        _per_channel(values) for values in (given.mean, given.std, wanted.mean, wanted.std)
    )
    return given_std / wanted_std, (given_mean - wanted_mean) / wanted_std


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
