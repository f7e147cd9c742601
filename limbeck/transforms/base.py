"""The contract of a transform, and transforms by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from limbeck.errors import RecipeError
from limbeck.registry import Registry
from limbeck.signals import Batch

Transform = Callable[[Batch], Batch]
"""Returns a changed batch and leaves its argument as it is; its randomness comes from :mod:`limbeck.streams`."""

transforms: Registry[Callable[..., Transform]] = Registry("transform", "limbeck.transforms")


def build_transform(spec: str | Mapping[str, Any], *, seed: int, num_classes: int) -> Transform:
    """Returns the transform that a recipe's entry names.

    Args:
        spec: a name, or a mapping with a ``name`` and options.
        seed: seed of the run.
        num_classes: number of classes.

    Raises:
        UnknownNameError: no transform has that name.
        RecipeError: an option is unknown or out of range.
    """
    options = {"name": spec} if isinstance(spec, str) else {str(key): value for key, value in spec.items()}
    if not isinstance(options.get("name"), str):
        raise RecipeError(f"a transform is named by `name: ...`, but this says {spec!r}")
    return transforms[options.pop("name")].part(seed=seed, num_classes=num_classes, **options)
