"""Where a run stands, and quantities that depend on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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


def weight_at(weight: Weight, progress: Progress) -> float:
    """Returns a weight's value at ``progress``."""
    return weight(progress) if callable(weight) else weight
