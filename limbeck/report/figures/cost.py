"""What accuracy costs: accuracy against the size of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.evaluate import Measure, Spread
from limbeck.report.arms import ACCURACY, Arm
from limbeck.report.figures.canvas import INK, MUTED, Drawing, short, ticker
from limbeck.report.figures.palette import Look
from limbeck.report.sections import Figure

_SHOWN = 8
_LABEL_HEIGHT = 0.06


def cost_accuracy(arms: Sequence[Arm], looks: Mapping[str, Look], cost: Measure) -> Figure | None:
    """Draws accuracy with its deviation over seeds against a cost; None where all arms cost the same."""
    points = [
        (arm, at, accuracy) for arm in arms if (at := arm.spread(cost)) and (accuracy := arm.accuracy) and at.mean > 0
    ]
    if len({at.mean for _, at, _ in points}) < 2:
        return None
    drawing = Drawing(f"accuracy and {cost.key}")
    with drawing.axes() as axes:
        for arm, at, accuracy in points:
            look = looks[arm.name]
            axes.errorbar(at.mean, accuracy.mean, accuracy.std, color=look.colour, capsize=3, linewidth=1.4)
            mark = axes.scatter(
                [at.mean], [accuracy.mean], s=48, color=look.colour, marker=look.mark, zorder=3, linewidths=0
            )
            drawing.tip(mark, f"{arm.name}: {cost.text(at)}, {ACCURACY.text(accuracy)}")
        axes.set_xscale("log")
        axes.margins(x=0.22, y=0.15)
        _label(axes, points)
        axes.xaxis.set_major_locator(ticker().LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(ticker().FuncFormatter(lambda value, _: cost.text(value)))
        axes.xaxis.set_minor_formatter(ticker().NullFormatter())
        axes.yaxis.set_major_formatter(ticker().PercentFormatter(1.0, decimals=None, symbol=" %"))
        axes.tick_params(which="both", length=0, colors=MUTED)
        axes.set_xlabel(f"{_within_sentence(cost.title)} (logarithmic)")
    words = "; ".join(f"{arm.name} {ACCURACY.text(accuracy)} at {cost.text(at)}" for arm, at, accuracy in points)
    several = any(accuracy.n > 1 for _, _, accuracy in points)
    caption = "Up and to the left is better." + (" Bars are one standard deviation over seeds." if several else "")
    return Figure(f"Accuracy against {_within_sentence(cost.title)}", drawing.svg(), f"Scatter plot: {words}.", caption)


def _within_sentence(title: str) -> str:
    """Lowers the first letter of what is no abbreviation."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def _label(axes: Any, points: Sequence[tuple[Arm, Spread, Spread]]) -> None:
    """Names the best points beside their marks, moved apart where they would overlap."""
    taken: list[tuple[float, float]] = []
    low, high = axes.get_ylim()
    for arm, at, accuracy in sorted(points, key=lambda p: -p[2].mean)[:_SHOWN]:
        right = at.mean == max(other.mean for _, other, _ in points)
        level = (accuracy.mean - low) / (high - low)
        while any(x == at.mean and abs(level - y) < _LABEL_HEIGHT for x, y in taken):
            level -= _LABEL_HEIGHT / 4
        taken.append((at.mean, level))
        axes.annotate(
            short(arm.name),
            (at.mean, low + level * (high - low)),
            xytext=(-9 if right else 9, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            fontsize=8.5,
            color=INK,
        )
