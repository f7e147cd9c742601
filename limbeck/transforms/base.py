"""The contract of a transform: batch in, batch out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from limbeck.errors import RecipeError
from limbeck.hyperparameters import validated
from limbeck.registry import Registry
from limbeck.signals import Batch


class Transform:
    """Base of every transform.

    It is a pure function of the batch, of the seed and of what the batch says of itself (``epoch``, ``index``): its
    randomness comes from :mod:`limbeck.streams`, so a resumed run and a replay see the same.

    Args:
        seed: seed of the run.
        num_classes: number of classes of the data; 0 where there are none.

    Attributes:
        changes: entries of the batch that it changes. A teacher cache holds nothing for changed ``inputs``.
    """

    changes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *, seed: int, num_classes: int) -> None:
        self.seed = seed
        self.num_classes = num_classes

    def __call__(self, batch: Batch) -> Batch:
        """Returns the changed batch; the one given stays as it was."""
        raise TypeError(f"{type(self).__name__} does not define __call__(batch)")


transforms: Registry[type[Transform]] = Registry("transform", "limbeck.transforms")

T = TypeVar("T", bound=type[Transform])


def transform(name: str, **about: Any) -> Callable[[T], T]:
    """Returns a decorator that registers a :class:`Transform` and checks its options at construction."""
    enter = transforms.register(name, **about)

    def decorate(cls: T) -> T:
        cls.__init__ = validated(f"transform '{name}'", cls.__init__)  # type: ignore[method-assign]
        enter(cls)
        return cls

    return decorate


def build_transform(entry: str | Mapping[str, Any], *, seed: int, num_classes: int) -> Transform:
    """Returns the transform of a recipe entry: a name, or a mapping of ``name`` and options.

    Raises:
        UnknownNameError: no transform has that name; proposes near matches.
        RecipeError: an option is unknown or out of its range.
    """
    options = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(f"a transform is written {{name: mixup, alpha: 0.2}}, but this says {entry!r}")
    for reserved in ("seed", "num_classes"):
        if reserved in options:
            raise RecipeError(f"transform '{name}': '{reserved}' is set by the run; remove it")
    return transforms[name].part(**{str(k): v for k, v in options.items()}, seed=seed, num_classes=num_classes)
