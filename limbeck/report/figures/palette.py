"""Which colour, line and mark an arm has in every drawing and table of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.report.arms import ALONE, Arm
from limbeck.report.figures.canvas import series

_ACCENT, _TEACHER = 0, 2
_BASELINES = (1, 8)
_DISTILLED = (_ACCENT, 3, 4, 5, 6, 7, 9)
_MARKS = {"teacher": "D", "baseline": "s", "distilled": "o"}
_LINES: dict[str, Any] = {"teacher": (0, (4, 2)), "baseline": (0, (1.2, 1.4)), "distilled": "-"}


@dataclass(frozen=True)
class Look:
    """How an arm is drawn.

    Attributes:
        number: the page's series colour.
        colour: its stand-in in drawings.
        mark: matplotlib marker.
        line: matplotlib line style.
    """

    number: int
    colour: str
    mark: str
    line: Any


def palette(arms: Sequence[Arm]) -> dict[str, Look]:
    """Returns a look for each arm by name; kinds differ in mark and line too, so that colour is never alone.

    Where there are more distilled students than colours, the best has the accent and the others share one.
    """
    looks: dict[str, Look] = {}
    for kind, colours in (("teacher", (_TEACHER,)), ("baseline", _BASELINES), ("distilled", _DISTILLED)):
        own = sorted((arm for arm in arms if arm.kind == kind), key=_rank)
        many = len(own) > len(colours)
        for position, arm in enumerate(own):
            number = colours[min(position, 1 if many else position, len(colours) - 1)]
            looks[arm.name] = Look(number, series(number), _MARKS[kind], _LINES[kind])
    return looks


def _rank(arm: Arm) -> tuple[bool, float]:
    """The student alone first, then by falling accuracy."""
    return arm.name != ALONE, -(arm.accuracy.mean if arm.accuracy else 0.0)
