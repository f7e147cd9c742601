"""What a corruption is: a function of pictures, of uniform random numbers and of a severity from 1 to 5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.registry import Registry

Severity = Literal[1, 2, 3, 4, 5]
Family = Literal["noise", "blur", "weather", "digital"]
SEVERITIES: tuple[Severity, ...] = (1, 2, 3, 4, 5)
SMALLEST, LARGEST = 16, 64
"""Sides of pictures, in pixels, for which the severities of CIFAR-10-C mean something."""

Corrupt = Callable[[Tensor, Tensor, Severity], Tensor]
Draws = Callable[[tuple[int, int, int]], int]


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    Attributes:
        family: ``noise``, ``blur``, ``weather`` or ``digital``.
        draws: random numbers that a picture ``(C, H, W)`` needs.
        apply: takes pictures ``[n, C, H, W]`` float64 in [0, 1], numbers ``[n, draws]`` in [0, 1) and the severity.
    """

    family: Family
    draws: Draws
    apply: Corrupt


corruptions: Registry[Corruption] = Registry("corruption", "limbeck.data.corruptions")


def corruption(name: str, family: Family, draws: Draws = lambda shape: 0) -> Callable[[Corrupt], Corrupt]:
    """Returns a decorator that registers a function as the corruption ``name``.

    Args:
        name: name in recipes.
        family: group it belongs to.
        draws: random numbers that a picture ``(C, H, W)`` needs; none by default.
    """

    def decorate(function: Corrupt) -> Corrupt:
        corruptions.register(name)(Corruption(family, draws, function))
        return function

    return decorate


def families() -> dict[str, list[str]]:
    """Returns the kinds by family.

    Example:
        >>> families()["noise"]
        ['gaussian_noise', 'impulse_noise', 'shot_noise']
    """
    found: dict[str, list[str]] = {family: [] for family in ("noise", "blur", "weather", "digital")}
    for entry in corruptions.entries():
        found[entry.part.family].append(entry.name)
    return found


def corrupt(images: Tensor, kind: str, severity: Severity, numbers: Tensor) -> Tensor:
    """Returns corrupted pictures, rounded to the 256 levels that an image file has.

    Each picture is treated by itself, whatever shares its batch.

    Args:
        images: ``[n, C, H, W]`` in [0, 1] with one or three channels.
        kind: name of the corruption.
        severity: 1 to 5.
        numbers: ``[n, draws]`` float64 in [0, 1), as many as the kind asks for.

    Returns:
        ``[n, C, H, W]`` float32 in [0, 1].

    Raises:
        UnknownNameError: there is no such kind; proposes near matches.
        RecipeError: pictures of this shape cannot be corrupted.
    """
    check_shape(tuple(images.shape[1:]))
    changed = corruptions[kind].part.apply(levels(images.double()) / 255, numbers, severity)
    return (levels(changed) / 255).float()


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuses what is no small picture.

    Raises:
        RecipeError: the shape is not ``(1 or 3, H, W)`` with sides of 16 to 64 pixels.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise RecipeError(f"corruptions need grey or colour images, but samples have shape {shape}")
    if not all(SMALLEST <= side <= LARGEST for side in shape[1:]):
        raise RecipeError(
            f"the severities of corruptions are made for images of about 32 pixels, {SMALLEST} to {LARGEST} a side; "
            f"these are {shape[1]} x {shape[2]}"
        )


def levels(images: Tensor) -> Tensor:
    """Returns whole numbers from 0 to 255, as an image file holds them, of the type of ``images`` in [0, 1]."""
    return images.clamp(0, 1).mul(255).add(0.5).floor()


def every_value(shape: tuple[int, int, int]) -> int:
    """One random number for every value of a picture."""
    return shape[0] * shape[1] * shape[2]


def normal(numbers: Tensor) -> Tensor:
    """Turns uniform numbers in [0, 1) into standard normal ones."""
    return torch.special.ndtri(numbers.clamp_min(2.0**-54))
