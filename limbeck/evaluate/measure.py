"""One number of the results: where it stands, what it is called and how it is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from limbeck.evaluate.spread import Spread

Unit = Literal["fraction", "count", "bytes", "ms", "number"]
_SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "count": ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")),
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
}
_SIGNIFICANT = 3


@dataclass(frozen=True)
class Measure:
    """One number of the results, for tables and plots.

    Attributes:
        key: where it stands in the results, ``evaluation.name``, further levels joined by dots.
        title: heading of its column.
        unit: how it is written: a ``fraction`` as per cent, a ``count`` as thousands or millions, ``bytes`` as kB or
        MB,
            ``ms`` as milliseconds, a ``number`` as it is.
        better: which direction is better, where one is.
        explanation: one sentence for readers of a report.
    """

    key: str
    title: str
    unit: Unit = "number"
    better: Literal["higher", "lower", ""] = ""
    explanation: str = ""

    def read(self, results: Mapping[str, Any]) -> float | None:
        """Returns the number in ``results``; None where it is absent.

        Example:
            >>> Measure("accuracy.top1", "accuracy").read({"accuracy": {"top1": 0.5}})
            0.5
        """
        value: Any = results
        for part in self.key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if number else None

    def text(self, value: Spread | float | None) -> str:
        """Writes a number, or a mean and its deviation over seeds, with its unit.

        Example:
            >>> Measure("accuracy.top1", "accuracy", "fraction").text(Spread(0.9123, 0.0042, 3))
            '91.23 ± 0.42 %'
            >>> Measure("cost.parameters", "parameters", "count").text(77_850)
            '77.9 k'
        """
        if value is None:
            return "–"
        spread = value if isinstance(value, Spread) else Spread(float(value), 0.0, 1)
        if not math.isfinite(spread.mean):
            return "∞" if spread.mean > 0 else str(spread.mean)
        factor, suffix = self._scale(spread.mean)
        mean, std = spread.mean * factor, spread.std * factor
        decimals = self._decimals(mean, std)
        number = f"{mean:.{decimals}f}"
        if spread.n > 1 and not (std == 0 and self.unit in _SCALES):
            number += f" ± {std:.{decimals}f}"
        return f"{number} {suffix}".rstrip()

    def _scale(self, mean: float) -> tuple[float, str]:
        if self.unit == "fraction":
            return 100.0, "%"
        for size, suffix in _SCALES.get(self.unit, ()):
            if abs(mean) >= size:
                return 1 / size, suffix
        return 1.0, {"ms": "ms", "bytes": "B"}.get(self.unit, "")

    def _decimals(self, mean: float, std: float) -> int:
        """Two for per cent, none for whole numbers, else three significant digits of the mean."""
        if self.unit == "fraction":
            return 2
        if self.unit in _SCALES and mean == round(mean) and std == 0 and abs(mean) < 1000:
            return 0
        magnitude = math.floor(math.log10(abs(mean))) if mean else 0
        return min(max(_SIGNIFICANT - 1 - magnitude, 0), 6)
