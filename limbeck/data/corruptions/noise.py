"""Noise: Gaussian, of counted photons, of dead and stuck pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.data.corruptions.base import Severity, corruption, every_value, levels, normal

_GAUSSIAN = (0.04, 0.06, 0.08, 0.09, 0.10)
_PHOTONS = (500, 250, 100, 75, 50)
_IMPULSES = (0.01, 0.02, 0.03, 0.05, 0.07)


@corruption("gaussian_noise", "noise", every_value)
def gaussian_noise(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Adds independent normal noise to every value."""
    return images + _GAUSSIAN[severity - 1] * normal(numbers).view(images.shape)


@corruption("shot_noise", "noise", every_value)
def shot_noise(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Counts so many photons for white, as a Poisson variable whose mean is the brightness."""
    photons = _PHOTONS[severity - 1]
    table = poisson_table(torch.arange(256, dtype=torch.float64) * photons / 255)
    level = levels(images).long()
    # One search over all levels: the cumulative probabilities of level v lie between v and v + 1.
    flat = (table + torch.arange(256, dtype=torch.float64).unsqueeze(1)).reshape(-1)
    found = torch.searchsorted(flat, numbers.view(images.shape) + level, right=True)
    return (found - level * table.shape[1]).to(images.dtype) / photons


@corruption("impulse_noise", "noise", every_value)
def impulse_noise(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Sets a part of the values to black or to white, each as likely."""
    part = _IMPULSES[severity - 1]
    u = numbers.view(images.shape)
    return torch.where(u < part / 2, 0.0, torch.where(u < part, 1.0, images))


def poisson_table(means: Tensor) -> Tensor:
    """Returns ``[M, K]`` probabilities of at most 0, 1, 2 ... events; beyond ``K`` there is next to none.

    Args:
        means: ``[M]`` float64 expected numbers.
    """
    largest = float(means.max())
    events = torch.arange(int(largest + 12 * largest**0.5 + 30), dtype=torch.float64)
    log_probability = torch.xlogy(events, means.unsqueeze(1)) - means.unsqueeze(1) - torch.lgamma(events + 1)
    return log_probability.exp().cumsum(1).clamp_max(1.0)
