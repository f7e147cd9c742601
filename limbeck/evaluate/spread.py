"""Mean and spread of a number over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A mean, how much the seeds differ, and how many there are.

    Attributes:
        mean: arithmetic mean.
        std: standard deviation of the sample (denominator ``n - 1``); 0 for a single value.
        n: number of values.
    """

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Returns the spread of ``values``; None when there are none.

        Example:
            >>> Spread.of([1.0, 2.0, 3.0])
            Spread(mean=2.0, std=1.0, n=3)
        """
        numbers = [float(v) for v in values]
        if not numbers:
            return None
        mean = math.fsum(numbers) / len(numbers)
        squares = math.fsum((v - mean) ** 2 for v in numbers)
        return cls(mean, math.sqrt(squares / (len(numbers) - 1)) if len(numbers) > 1 else 0.0, len(numbers))
