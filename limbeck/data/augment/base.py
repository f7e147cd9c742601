"""The contract of an augmentation: pictures and random numbers in, pictures out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from limbeck.errors import RecipeError, suggest
from limbeck.hyperparameters import explain_validation
from limbeck.registry import Registry

Fill = Literal["black", "mean"]


class Augmentation(BaseModel):
    """Base of every augmentation. Fields are its options, checked at construction.

    An augmentation is a pure function of the pictures and of uniform random numbers, of which it gets a row for each
    picture. It treats each picture by itself, so that a view does not depend on which samples share a batch: no
    reduction or product whose rounding depends on the batch, no per-batch decision.

    Attributes:
        name: name in recipes, set by the registration.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: ClassVar[str] = ""

    def takes_bytes(self) -> bool:
        """Whether uint8 pictures need not be turned into floats first."""
        return False

    def draws(self, shape: tuple[int, ...]) -> int:
        """Random numbers a picture of ``shape`` needs; 0 for what is not random."""
        return 0

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of a picture afterwards.

        Raises:
            RecipeError: pictures of ``shape`` cannot be treated so.
        """
        self.require_image(shape)
        return shape

    def require_image(self, shape: tuple[int, ...]) -> None:
        """Refuses what is no picture ``(C, H, W)``."""
        if len(shape) != 3:
            raise RecipeError(f"augmentation '{self.name}' needs images, but samples have shape {shape}")

    def __call__(self, images: Tensor, numbers: Tensor, mean: Tensor) -> Tensor:
        """Returns the pictures, changed.

        Args:
            images: ``[n, C, H, W]``, uint8 or float in [0, 1].
            numbers: ``[n, draws]`` float64 in [0, 1).
            mean: ``[C]`` channel means of the data, for filling.
        """
        raise TypeError(f"{type(self).__name__} does not define __call__(images, numbers, mean)")

    def options(self) -> dict[str, Any]:
        """Returns name and options as plain data, as a recipe would write them in full."""
        return {"name": self.name, **self.model_dump(mode="json")}


augmentations: Registry[type[Augmentation]] = Registry("augmentation", "limbeck.data.augment")

A = TypeVar("A", bound=type[Augmentation])

Entry = str | Mapping[str, Any]
_WEAK: tuple[dict[str, Any], ...] = ({"name": "crop", "padding": 0.125}, {"name": "flip"})
policies: dict[str, tuple[dict[str, Any], ...]] = {
    "weak": _WEAK,
    "strong": (*_WEAK, {"name": "randaugment", "n": 2, "magnitude": 10}, {"name": "cutout", "size": 0.5}),
}
"""Names that stand for several augmentations in a row: the two views of FixMatch (Sohn et al., 2020,
https://arxiv.org/abs/2001.07685); the strong one ends in a square of half the side."""


def augmentation(name: str) -> Callable[[A], A]:
    """Returns a decorator that registers an :class:`Augmentation` under ``name``."""

    def decorate(cls: A) -> A:
        cls.name = name
        augmentations.register(name)(cls)
        return cls

    return decorate


def build_augmentations(entries: Sequence[Entry]) -> list[Augmentation]:
    """Returns the augmentations of recipe entries: names, or mappings of ``name`` and options. A policy gives several.

    Raises:
        UnknownNameError: no augmentation or policy has that name; proposes near matches.
        RecipeError: an option is unknown or out of its range.

    Example:
        >>> [a.options() for a in build_augmentations([{"name": "crop", "padding": 4}])]
        [{'name': 'crop', 'padding': 4.0, 'size': None, 'fill': 'black'}]
    """
    if isinstance(entries, (str, Mapping)):
        raise RecipeError(
            f"augmentation is a list of entries such as {{name: crop, padding: 4}}, but this is {entries!r}"
        )
    built: list[Augmentation] = []
    for entry in entries:
        options = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise RecipeError(f"an augmentation is written {{name: crop, padding: 4}}, but this says {entry!r}")
        if name not in policies:
            built.append(_build(name, options))
        elif options:
            raise RecipeError(
                f"the policy '{name}' has no options; write out its parts instead: {list(policies[name])}"
            )
        else:
            built += build_augmentations(policies[name])
    return built


def _build(name: str, options: dict[str, Any]) -> Augmentation:
    cls = augmentations[name].part
    try:
        return cls(**options)
    except ValidationError as error:
        raise explain_validation(error, f"augmentation '{name}'", list(cls.model_fields)) from None
    except TypeError:
        wrong = next(key for key in options if not isinstance(key, str))
        raise RecipeError(
            f"augmentation '{name}': unknown option {wrong!r}. {suggest(str(wrong), cls.model_fields)}"
        ) from None


def pixels(amount: float, side: int) -> int:
    """Returns ``amount`` in pixels: itself where it is 1 or more, else that part of ``side``, rounded."""
    return round(amount * side) if amount < 1 else int(amount)


def filled(shape: Sequence[int], like: Tensor, fill: Fill, mean: Tensor) -> Tensor:
    """Returns pictures of one colour, black or the data's mean, of the type of ``like``."""
    canvas = like.new_zeros(tuple(shape))
    return canvas if fill == "black" else canvas + mean.to(like.dtype).view(1, -1, 1, 1)


def chosen_integers(numbers: Tensor, count: int) -> Tensor:
    """Turns uniform numbers in [0, 1) into int64 in [0, count)."""
    return (numbers * count).to(torch.int64).clamp_(max=count - 1)


def between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Turns uniform numbers in [0, 1) into float64 in [low, high)."""
    return numbers * (high - low) + low
