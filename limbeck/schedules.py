"""Where a run stands, and quantities that depend on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """Where a stage stands.

    Attributes:
        step: optimizer steps already taken.
        steps_per_epoch: optimizer steps an epoch.
        epochs: epochs the stage will run.
    """

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epoch(self) -> int:
        """The running epoch, from 0."""
        return self.step // max(self.steps_per_epoch, 1)

    @property
    def fraction(self) -> float:
        """Part of the stage that is done, in [0, 1]."""
        return min(self.step / max(self.steps_per_epoch * self.epochs, 1), 1.0)


Weight = float | Callable[[Progress], float]
"""The weight of a loss term: a number, or a function of the progress."""


@dataclass(frozen=True)
class Warmup:
    """Grows linearly to ``value`` over the first epochs, counted from 1 within an epoch as the CIFAR literature does.

    Attributes:
        value: the weight after the warm-up.
        epochs: its length; None means ``fraction`` of the run.
        fraction: length as a part of the run, used when ``epochs`` is None.
    """

    value: float
    epochs: float | None = None
    fraction: float = 20 / 240

    def __call__(self, progress: Progress) -> float:
        """Returns the weight at ``progress``."""
        length = self.fraction * progress.epochs if self.epochs is None else self.epochs
        if length <= 0:
            return self.value
        return self.value * min((progress.epoch + 1) / length, 1.0)


@dataclass(frozen=True)
class During:
    """Is ``value`` during a part of the stage and zero outside it.

    Attributes:
        value: the weight inside.
        start: where the part begins, as a fraction of the stage.
        stop: where it ends.

    Example:
        >>> first_half = During(2.0, stop=0.5)
        >>> [first_half(Progress(step, 1, 4)) for step in range(4)]
        [2.0, 2.0, 0.0, 0.0]
    """

    value: float
    start: float = 0.0
    stop: float = 1.0

    def __call__(self, progress: Progress) -> float:
        """Returns the weight at ``progress``."""
        return self.value if self.start <= progress.fraction < self.stop else 0.0


@dataclass(frozen=True)
class Ramp:
    """Goes from one weight to another between two points of the stage, and keeps each outside.

    Attributes:
        first: the weight before ``start``.
        last: the weight after ``stop``.
        shape: ``linear``, or ``cosine`` for half a wave, flat at both ends.
        start: where the change begins, as a fraction of the stage.
        stop: where it ends.

    Example:
        >>> fading = Ramp(1.0, 0.0)
        >>> [fading(Progress(step, 1, 4)) for step in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    first: float
    last: float
    shape: Literal["linear", "cosine"] = "linear"
    start: float = 0.0
    stop: float = 1.0

    def __call__(self, progress: Progress) -> float:
        """Returns the weight at ``progress``."""
        done = (progress.fraction - self.start) / (self.stop - self.start) if self.stop > self.start else 1.0
        done = min(max(done, 0.0), 1.0)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.first + (self.last - self.first) * done


@dataclass(frozen=True)
class Scaled:
    """A weight times a number.

    Attributes:
        weight: the weight.
        factor: the number.
    """

    weight: Weight
    factor: float

    def __call__(self, progress: Progress) -> float:
        """Returns the product at ``progress``."""
        return self.factor * weight_at(self.weight, progress)

    def simplest(self) -> Weight:
        """Returns the same weight, as a number or unscaled where it can be."""
        if self.factor == 1:
            return self.weight
        return self if callable(self.weight) else self.factor * self.weight


def weight_at(weight: Weight, progress: Progress) -> float:
    """Returns a weight's value at ``progress``."""
    return weight(progress) if callable(weight) else weight
