"""The contract of a selector: what models say of a pool in, the samples to ask about out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.hyperparameters import validated
from limbeck.registry import Registry


@dataclass(frozen=True)
class PoolSignals:
    """What is known when samples are chosen.

    Attributes:
        index: ``[N]`` numbers of the samples of the pool, increasing.
        logits: ``[N, C]`` what the student of this round says of them.
        labelled: ``[M, C]`` what it says of the samples whose labels are known.
        labels: ``[M]`` those labels.
        teacher_accuracy: how often the teacher is right on the samples whose labels are known; None where nobody asked
            it about them.
        round: number of the round, from 1.
        seed: seed of the run.
    """

    index: Tensor
    logits: Tensor
    labelled: Tensor
    labels: Tensor
    teacher_accuracy: float | None = None
    round: int = 1
    seed: int = 0


class Selector:
    """Base of every selector. It is a pure function of the signals; its randomness comes from their seed and round."""

    def __init__(self) -> None:
        """Takes no options."""

    def __call__(self, pool: PoolSignals, count: int) -> Tensor:
        """Returns ``[count]`` distinct positions in the pool, in order of preference."""
        raise TypeError(f"{type(self).__name__} does not define __call__(pool, count)")


selectors: Registry[type[Selector]] = Registry("selector", "limbeck.selection")

P = TypeVar("P", bound=type)


def part(registry: Registry[Any], name: str, **about: Any) -> Callable[[P], P]:
    """Returns a decorator that registers a class and checks its options at construction."""
    enter = registry.register(name, **about)

    def decorate(cls: P) -> P:
        cls.__init__ = validated(f"{registry.kind} '{name}'", cls.__init__)  # type: ignore[misc]
        enter(cls)
        return cls

    return decorate


def build_part(registry: Registry[Any], entry: str | Mapping[str, Any]) -> Any:
    """Returns the part of a recipe entry: a name, or a mapping of ``name`` and options.

    Raises:
        UnknownNameError: no part has that name; proposes near matches.
        RecipeError: an option is unknown or out of its range.
    """
    options = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = options.pop("name", None)
    if not isinstance(name, str):
        known = next(iter(registry))
        raise RecipeError(f"a {registry.kind} is written {{name: {known}}}, but this says {entry!r}")
    return registry[name].part(**{str(k): v for k, v in options.items()})


def selector(name: str, **about: Any) -> Callable[[P], P]:
    """Returns a decorator that registers a :class:`Selector` and checks its options at construction."""
    return part(selectors, name, **about)


def build_selector(entry: str | Mapping[str, Any]) -> Selector:
    """Returns the selector of a recipe entry: a name, or a mapping of ``name`` and options.

    Raises:
        UnknownNameError: no selector has that name; proposes near matches.
        RecipeError: an option is unknown or out of its range.
    """
    built: Selector = build_part(selectors, entry)
    return built
