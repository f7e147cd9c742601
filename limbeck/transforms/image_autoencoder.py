"""A small variational autoencoder of images with two levels of latent maps.

Reference:
    Kingma and Welling, Auto-Encoding Variational Bayes, 2013, https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

LEVELS = ((4, 4), (8, 8))
"""Channels of the latent maps of each level and how many times smaller than the image they are."""


class ImageAutoencoder(nn.Module):
    """Encodes images as fine and coarse latent maps, both normal, and decodes them.

    Args:
        channels: channels of the images.
        width: channels inside.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        fine, coarse = (latent for latent, _ in LEVELS)
        self.entry = nn.Sequential(_down(channels, width), nn.SiLU(), _down(width, width), nn.SiLU())
        self.deeper = nn.Sequential(_down(width, width), nn.SiLU())
        self.fine, self.coarse = nn.Conv2d(width, 2 * fine, 1), nn.Conv2d(width, 2 * coarse, 1)
        self.from_coarse = nn.Sequential(nn.Conv2d(coarse, width, 3, padding=1), nn.SiLU())
        self.joined = nn.Sequential(nn.Conv2d(width + fine, width, 3, padding=1), nn.SiLU())
        self.exit = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)
        )

    def encode(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns mean and logarithm of the variance of each level's latent map, the fine one first."""
        near = self.entry(images)
        fine, coarse = self.fine(near), self.coarse(self.deeper(near))
        return [(m.chunk(2, 1)[0], m.chunk(2, 1)[1].clamp(-10, 4)) for m in (fine, coarse)]

    def decode(self, latents: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Returns images of ``size`` with values in (0, 1)."""
        fine, coarse = latents
        near = interpolate(self.from_coarse(coarse), fine.shape[2:])
        near = self.joined(torch.cat([near, fine], 1))
        return torch.sigmoid(self.exit(interpolate(near, size, mode="bilinear", align_corners=False)))

    def loss(self, images: Tensor, noise: list[Tensor], *, sharpness: float = 100.0) -> Tensor:
        """Returns the negative evidence bound an image, in nats up to a constant, of images in [0, 1].

        Args:
            images: ``[B, C, H, W]``.
            noise: standard normal numbers shaped like each level's latent map.
            sharpness: inverse variance of a pixel.
        """
        levels = self.encode(images)
        latents = [mean + (0.5 * log).exp() * e for (mean, log), e in zip(levels, noise)]
        error = (
            0.5
            * sharpness
            * (self.decode(latents, (images.shape[2], images.shape[3])) - images).square().sum((1, 2, 3))
        )
        divergence = [0.5 * (mean.square() + log.exp() - 1 - log).sum((1, 2, 3)) for mean, log in levels]
        return (error + torch.stack(divergence).sum(0)).mean()


def _down(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=2, padding=1)
