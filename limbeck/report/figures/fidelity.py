"""Drawings of a fidelity study: gains against what is known of students and teachers."""

from __future__ import annotations

from typing import Any

from limbeck.evaluate.fidelity_study import QUANTITIES, Observation, Study
from limbeck.report.figures.canvas import MUTED, Drawing, series, short, ticker
from limbeck.report.sections import Figure

_MARKS = "osD^vPX*"
_FRACTIONS = ("agreement", "on_teacher_errors", "baseline", "teacher_score", "total_variation", "bleu")


def improvement_against(found: Study, quantity: str) -> Figure | None:
    """Draws every setting's gain against a quantity; None where it is known of fewer than three or never varies."""
    shown = [o for o in found.observations if quantity in o.quantities]
    values = [o.quantities[quantity] for o in shown]
    if len(shown) < 3 or len(set(values)) < 2:
        return None
    title = QUANTITIES[quantity]
    drawing = Drawing(f"gain by {quantity}")
    with drawing.axes() as axes:
        axes.axhline(0.0, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        _scatter(drawing, axes, shown, [(o.quantities[quantity], 100 * o.improvement) for o in shown])
        if quantity == "parameters":
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(ticker().EngFormatter(sep=""))
            axes.xaxis.set_minor_formatter(ticker().NullFormatter())
            axes.tick_params(which="both", length=0)
        elif quantity in _FRACTIONS:
            axes.xaxis.set_major_formatter(_percent())
        axes.set_xlabel(title.lower())
        axes.set_ylabel("gain, percentage points")
        drawing.legend_above(axes)
    known = next((c for c in found.correlations if c.quantity == quantity), None)
    said = "" if known is None else f"Spearman {known.rho:+.2f}, p = {known.p:.2g}, corrected {known.corrected:.2g}."
    return Figure(f"Gain and {title.lower()}", drawing.svg(), f"Scatter plot of {len(shown)} settings. {said}", said)


def agreement_and_score(found: Study) -> Figure | None:
    """Draws agreement with the teacher against the score itself; None where agreement was not measured."""
    shown = [o for o in found.observations if "agreement" in o.quantities]
    if len(shown) < 2:
        return None
    drawing = Drawing("score by agreement")
    with drawing.axes() as axes:
        _scatter(drawing, axes, shown, [(o.quantities["agreement"], o.score) for o in shown])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_percent())
        axes.set_xlabel("agreement with the teacher")
        axes.set_ylabel("score")
        drawing.legend_above(axes)
    caption = "Agreement rises with the score by itself; the agreement on the teacher's errors is the sharper question."
    return Figure("Fidelity and score", drawing.svg(), f"Scatter plot of {len(shown)} settings.", caption)


def _percent() -> Any:
    return ticker().PercentFormatter(1.0, decimals=None, symbol=" %")


def _scatter(drawing: Drawing, axes: Any, shown: list[Observation], points: list[tuple[float, float]]) -> None:
    methods = list(dict.fromkeys(o.method for o in shown))
    for number, method in enumerate(methods):
        own = [(o, p) for o, p in zip(shown, points) if o.method == method]
        x, y = zip(*(p for _, p in own))
        mark = axes.scatter(
            x, y, s=30, color=series(number), marker=_MARKS[number % len(_MARKS)], linewidths=0, alpha=0.85,
            label=short(method), clip_on=False,
        )  # fmt: skip
        drawing.tip(mark, method)
