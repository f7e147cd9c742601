"""The course of training: accuracy after each epoch, and the terms of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from limbeck.report.arms import Arm
from limbeck.report.figures.canvas import INK, MUTED, Drawing, series, short, ticker
from limbeck.report.figures.palette import Look
from limbeck.report.sections import Figure

_MANY_DECADES = 30.0
_SHOWN = 6


def epoch_accuracy(record: Mapping[str, Any]) -> float | None:
    """Returns the accuracy that an epoch's record holds; None where the epoch was not evaluated."""
    evaluation = record.get("evaluation")
    value = (evaluation if isinstance(evaluation, Mapping) else record).get("accuracy")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _by_epoch(
    histories: Sequence[Sequence[Mapping[str, Any]]], read: Callable[[Mapping[str, Any]], float | None]
) -> tuple[list[int], list[list[float]]]:
    """Numbers the epochs of all stages through, and gathers each epoch's values over the seeds."""
    gathered: dict[int, list[float]] = {}
    for history in histories:
        for position, record in enumerate((r for r in history if "epoch" in r), 1):
            value = read(record)
            if value is not None:
                gathered.setdefault(position, []).append(value)
    epochs = sorted(gathered)
    return epochs, [gathered[epoch] for epoch in epochs]


def accuracy_curves(arms: Sequence[Arm], looks: Mapping[str, Look]) -> Figure | None:
    """Draws test accuracy against epoch; None where no arm was evaluated while it trained."""
    curves = {arm.name: _by_epoch(arm.history, epoch_accuracy) for arm in arms if arm.kind != "teacher"}
    # One point is no curve, and the table has it.
    shown = [arm for arm in arms if len(curves.get(arm.name, ([], []))[0]) > 1][-_SHOWN:]
    if not shown:
        return None
    drawing = Drawing("accuracy by epoch")
    with drawing.axes() as axes:
        for arm in shown:
            epochs, values = curves[arm.name]
            look = looks[arm.name]
            means = [math.fsum(v) / len(v) for v in values]
            axes.plot(epochs, means, color=look.colour, linestyle=look.line, label=short(arm.name))
            if max(len(v) for v in values) > 1:
                low, high = [min(v) for v in values], [max(v) for v in values]
                axes.fill_between(epochs, low, high, color=look.colour, alpha=0.18, linewidth=0)
        ends = [means for arm in shown for means in (_means(curves[arm.name]),)]
        _draw_teachers(axes, arms, looks)
        _focus(axes, ends)
        axes.yaxis.set_major_formatter(ticker().PercentFormatter(1.0, decimals=None, symbol=" %"))
        axes.xaxis.set_major_locator(ticker().MaxNLocator(integer=True, nbins=8))
        axes.set_xlabel("epoch")
        drawing.legend_above(axes)
    final = ", ".join(f"{arm.name} ends at {_means(curves[arm.name])[-1]:.1%}" for arm in shown)
    seeds = "Bands reach from the lowest to the highest seed. " if any(len(arm.history) > 1 for arm in shown) else ""
    caption = (
        f"After each epoch, on the data the students are judged on. {seeds}The last epoch counts, never the best one."
    )
    return Figure("Accuracy while training", drawing.svg(), f"Line chart of accuracy by epoch: {final}.", caption)


def _means(curve: tuple[list[int], list[list[float]]]) -> list[float]:
    return [math.fsum(v) / len(v) for v in curve[1]]


def _draw_teachers(axes: Any, arms: Sequence[Arm], looks: Mapping[str, Look]) -> None:
    for arm in arms:
        if arm.kind == "teacher" and arm.accuracy is not None:
            look = looks[arm.name]
            axes.axhline(
                arm.accuracy.mean, color=look.colour, linestyle=look.line, linewidth=1.2, label=short(arm.name)
            )


def _focus(axes: Any, curves: Sequence[Sequence[float]]) -> None:
    """Leaves the steep beginning below the axis, so that the end, which counts, is not squeezed."""
    settled = [value for curve in curves for value in curve[len(curve) // 4 :]]
    low, high = min(settled), axes.get_ylim()[1]
    margin = 0.06 * max(high - low, 1e-3)
    axes.set_ylim(max(low - margin, 0.0), min(max(high, max(settled) + margin), 1.0 + margin))


def loss_curves(arm: Arm) -> Figure | None:
    """Draws an arm's loss terms against epoch, means over the seeds; None where no record has terms."""
    curves = _terms(arm, "terms")
    if not curves:
        return None
    drawing = Drawing(f"loss of {arm.name}")
    with drawing.axes() as axes:
        total_epochs, totals = _by_epoch(arm.history, _number("loss"))
        if len(curves) > 1 and total_epochs:
            axes.plot(
                total_epochs,
                [math.fsum(v) / len(v) for v in totals],
                color=INK,
                linewidth=1.0,
                marker=_mark(total_epochs),
                label="loss, weighted sum",
            )
        _draw_terms(axes, curves)
        everything = [v for curve in curves.values() for values in curve[1] for v in values]
        if min(everything) > 0 and max(everything) / min(everything) > _MANY_DECADES:
            axes.set_yscale("log")
            # Plain numbers: the drawing's letters are text, which shows no formulas.
            axes.yaxis.set_major_formatter(ticker().FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(ticker().NullFormatter())
        drawing.legend_above(axes)
    caption = "Means over the epoch, before weights; the weighted sum is what the optimizer saw."
    return Figure(f"Loss of {arm.name}", drawing.svg(), f"Line chart of loss terms by epoch: {_ends(curves)}.", caption)


def contribution_curves(arm: Arm) -> Figure | None:
    """Draws what each term adds to the loss, as a share; None where there is one term or none."""
    curves = _terms(arm, "contributions", _share)
    if len(curves) < 2:
        return None
    drawing = Drawing(f"shares of the loss of {arm.name}")
    with drawing.axes() as axes:
        _draw_terms(axes, curves)
        axes.yaxis.set_major_formatter(ticker().PercentFormatter(1.0, decimals=None, symbol=" %"))
        drawing.legend_above(axes)
    caption = "Weight times mean of each term, as a share of the sum of their sizes."
    return Figure(
        f"What the loss of {arm.name} is made of", drawing.svg(), f"Line chart of shares: {_ends(curves)}.", caption
    )


def gradient_curves(arm: Arm) -> Figure | None:
    """Draws how each term's gradient agrees with that of the others; None where gradients were not measured."""
    curves = _terms(arm, "gradients", lambda record, name: record["gradients"][name].get("cosine"))
    if not curves:
        return None
    drawing = Drawing(f"gradients of {arm.name}")
    with drawing.axes() as axes:
        axes.axhline(0.0, color=MUTED, linewidth=0.8)
        _draw_terms(axes, curves)
        axes.set_ylim(-1.05, 1.05)
        axes.set_ylabel("cosine with all other terms")
        drawing.legend_above(axes)
    caption = (
        "Between the weighted gradient of a term and that of all others together: below zero it works against them."
    )
    return Figure(
        f"Whether the terms of {arm.name} agree", drawing.svg(), f"Line chart of cosines: {_ends(curves)}.", caption
    )


_Curve = tuple[list[int], list[list[float]]]
_Read = Callable[[Mapping[str, Any], str], float | None]


def _terms(arm: Arm, section: str, read: _Read | None = None) -> dict[str, _Curve]:
    """Returns the course of every term in a section of the records, means over the seeds."""
    names = list(dict.fromkeys(n for history in arm.history for record in history for n in record.get(section) or {}))

    def value(name: str) -> Callable[[Mapping[str, Any]], float | None]:
        plain = _number(name)

        def of(record: Mapping[str, Any]) -> float | None:
            if name not in (record.get(section) or {}):
                return None
            return plain(record[section]) if read is None else read(record, name)

        return of

    return {name: _by_epoch(arm.history, value(name)) for name in names}


def _share(record: Mapping[str, Any], name: str) -> float | None:
    parts = record["contributions"]
    whole = math.fsum(abs(part) for part in parts.values())
    return abs(parts[name]) / whole if whole else None


def _draw_terms(axes: Any, curves: Mapping[str, _Curve]) -> None:
    for number, (name, (epochs, values)) in enumerate(curves.items()):
        style = ("-", "--", "-.", ":")[number % 4]
        means = [math.fsum(v) / len(v) for v in values]
        axes.plot(epochs, means, color=series(number), linestyle=style, marker=_mark(epochs), label=short(name))
    axes.xaxis.set_major_locator(ticker().MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.tick_params(which="both", colors=MUTED, length=0)


def _mark(epochs: Sequence[int]) -> str | None:
    """Returns the mark of a curve's points: a line through one point cannot be seen."""
    return "o" if len(epochs) == 1 else None


def _ends(curves: Mapping[str, _Curve]) -> str:
    return ", ".join(f"{name} ends at {_means(curve)[-1]:.3g}" for name, curve in curves.items() if curve[1])


def _number(key: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(record: Mapping[str, Any]) -> float | None:
        value = record.get(key)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    return read
