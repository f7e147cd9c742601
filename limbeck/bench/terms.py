"""What the arms of a comparison are ranked by, and which of them the others are held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.errors import RecipeError, suggest
from limbeck.evaluate import evaluations, measures
from limbeck.evaluate.measure import Measure

ALWAYS = ("none", "label_smoothing", "kd")
"""Baselines of comparisons that name none: what it costs nothing to have."""
ACCURACY = "accuracy.top1"
_DECIMALS = 3


@dataclass(frozen=True)
class Terms:
    """How a comparison judges.

    Attributes:
        criterion: the measure by which arms are ranked.
        baselines: arms that are always there; gains are told over the first, a student that learns alone, and over the
            last, plain distillation.
        columns: keys of the further measures that tables show; all that were taken when None.
    """

    criterion: Measure
    baselines: tuple[str, ...] = ALWAYS
    columns: tuple[str, ...] | None = None

    @property
    def first(self) -> str:
        """The arm of a student that learns alone."""
        return self.baselines[0]

    @property
    def last(self) -> str:
        """The arm of plain distillation."""
        return self.baselines[-1]

    def gain(self, value: float, base: float) -> float:
        """Returns by how much ``value`` is better than ``base``; negative where it is worse."""
        return base - value if self.criterion.better == "lower" else value - base

    def text(self, mean: float, spread: float = 0.0, *, several: bool = True) -> str:
        """Writes a value of the criterion and its deviation over seeds.

        Args:
            mean: the value.
            spread: its deviation.
            several: whether there is a deviation to tell.

        Example:
            >>> terms_of("accuracy.top1").text(0.9123, 0.0042), terms_of("token_loss.loss").text(1.4142, 0.0121)
            ('91.23 ± 0.42 %', '1.414 ± 0.012')
        """
        if math.isnan(mean):
            return "–"
        factor, decimals, unit = (100.0, 2, " %") if self._fraction else (1.0, _DECIMALS, "")
        deviation = f" ± {factor * spread:.{decimals}f}" if several else ""
        return f"{factor * mean:.{decimals}f}{deviation}{unit}"

    def signed(self, gain: float) -> str:
        """Writes a gain with its sign, that of a fraction in percentage points.

        Example:
            >>> terms_of("accuracy.top1").signed(0.0123), terms_of("token_loss.loss").signed(-0.0123)
            ('+1.23', '-0.012')
        """
        if math.isnan(gain):
            return "–"
        return f"{100 * gain:+.2f}" if self._fraction else f"{gain:+.{_DECIMALS}f}"

    @property
    def unit(self) -> str:
        """What gains are told in."""
        return "percentage points" if self._fraction else f"units of the {self.criterion.title.lower()}"

    @property
    def _fraction(self) -> bool:
        return self.criterion.unit == "fraction"


def terms_of(criterion: str, baselines: Sequence[str] = ALWAYS, columns: Sequence[str] | None = None) -> Terms:
    """Returns the terms of a comparison.

    Args:
        criterion: key of a measure of which one direction is better, such as ``token_loss.loss``.
        baselines: arms that are always there.
        columns: keys of further measures for tables; all when None.

    Raises:
        RecipeError: no evaluation takes such a measure, or no direction of it is better.
    """
    known = {m.key: m for m in measures(evaluations)}
    for key in (criterion, *(columns or ())):
        if key not in known:
            raise RecipeError(f"no evaluation takes the measure '{key}'. {suggest(key, known)}")
    if not known[criterion].better:
        raise RecipeError(f"no direction of '{criterion}' is better, so arms cannot be ranked by it")
    return Terms(known[criterion], tuple(baselines), None if columns is None else tuple(columns))
