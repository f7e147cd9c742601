"""Reliability diagram: how often models are right, against how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.evaluate import Measure
from limbeck.report.arms import Arm
from limbeck.report.figures.canvas import MUTED, Drawing, short, ticker
from limbeck.report.figures.palette import Look
from limbeck.report.sections import Figure

_FEWEST = 0.002
_SHOWN = 4


def reliability(
    arms: Sequence[Arm], looks: Mapping[str, Look], *, scaled: bool = False, evaluation: str = "calibration"
) -> Figure | None:
    """Draws accuracy against confidence, pooled over the seeds; None where no arm has a calibration curve.

    Args:
        arms: what is drawn.
        looks: how.
        scaled: draw what is left after temperature scaling.
        evaluation: whose results hold the curve.
    """
    where = f"{evaluation}.scaled" if scaled else evaluation
    pooled = {arm.name: _pooled(arm, where) for arm in arms}
    error = Measure(f"{where}.ece", "Calibration error", "fraction", "lower")
    shown = [arm for arm in arms if pooled[arm.name]]
    if not shown:
        return None
    # The teacher, the student alone and the best of the distilled ones say most.
    shown = shown[:_SHOWN]
    drawing = Drawing(f"reliability, {where}")
    with drawing.axes() as axes:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        axes.annotate("perfectly calibrated", (0.15, 0.05), color=MUTED, fontsize=8)
        for arm in shown:
            points = pooled[arm.name]
            look = looks[arm.name]
            x, y, weight = zip(*points)
            axes.plot(
                x,
                y,
                color=look.colour,
                linestyle=look.line,
                linewidth=1.4,
                label=f"{short(arm.name)}, error {error.text(arm.spread(error))}",
            )
            sizes = [12 + 90 * w**0.5 for w in weight]
            drawing.tip(
                axes.scatter(
                    x, y, s=sizes, color=look.colour, marker=look.mark, alpha=0.75, linewidths=0, clip_on=False
                ),
                arm.name,
            )
        axes.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="confidence", ylabel="accuracy")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticker().PercentFormatter(1.0, decimals=0, symbol=" %"))
        drawing.legend_above(axes)
    errors = ", ".join(f"{arm.name} has a calibration error of {error.text(arm.spread(error))}" for arm in shown)
    caption = (
        "Below the diagonal a model is surer than it is right. Marks grow with the samples of their bin; "
        "bins with hardly any are left out."
    )
    if scaled:
        caption = "One temperature for each model, chosen on the other half of the test samples. " + caption
    title = "Confidence after temperature scaling" if scaled else "Confidence and accuracy"
    return Figure(title, drawing.svg(), f"Reliability diagram: {errors}.", caption)


def _pooled(arm: Arm, where: str) -> list[tuple[float, float, float]]:
    """Confidence, accuracy and share of the samples for each bin, over all seeds."""
    curves = [c for results in arm.results if isinstance(c := _curve(results, where), Mapping)]
    bins: list[tuple[float, float, float]] = []
    total = sum(sum(curve["samples"]) for curve in curves)
    for number in range(max((len(curve["samples"]) for curve in curves), default=0)):
        parts = [
            (curve["samples"][number], curve["confidence"][number], curve["accuracy"][number])
            for curve in curves
            if number < len(curve["samples"]) and curve["samples"][number]
        ]
        samples = sum(n for n, _, _ in parts)
        if samples > _FEWEST * total:
            bins.append(
                (sum(n * c for n, c, _ in parts) / samples, sum(n * a for n, _, a in parts) / samples, samples / total)
            )
    return bins


def _curve(results: Mapping[str, Any], where: str) -> Any:
    found: Any = results
    for part in where.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found.get("curve") if isinstance(found, Mapping) else None
