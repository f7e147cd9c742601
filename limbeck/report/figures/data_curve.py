"""Accuracy against the number of training samples."""

from __future__ import annotations

from collections.abc import Mapping

from limbeck.evaluate import Spread
from limbeck.report.arms import ACCURACY
from limbeck.report.figures.canvas import Drawing, series, short, ticker
from limbeck.report.sections import Figure

_LINES = ((1, (0, (1.2, 1.4)), "s"), (0, "-", "o"), (3, (0, (4, 2)), "D"))


def curve(points: Mapping[str, Mapping[int, Spread]]) -> Figure | None:
    """Draws a line for each student, with the deviation over seeds; None where there is no point.

    Args:
        points: accuracy by training samples, by student.
    """
    lines = {name: sorted(line.items()) for name, line in points.items() if line}
    if not lines:
        return None
    drawing = Drawing("accuracy by training samples")
    with drawing.axes() as axes:
        for position, (name, line) in enumerate(lines.items()):
            number, style, mark = _LINES[position % len(_LINES)]
            axes.errorbar(
                [count for count, _ in line],
                [spread.mean for _, spread in line],
                [spread.std for _, spread in line],
                color=series(number),
                linestyle=style,
                marker=mark,
                markersize=5,
                capsize=3,
                label=short(name),
            )
        axes.set_xscale("log")
        axes.set_xlabel("training samples (logarithmic)")
        axes.set_ylabel("accuracy")
        axes.xaxis.set_major_formatter(ticker().FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(ticker().NullFormatter())
        axes.yaxis.set_major_formatter(ticker().PercentFormatter(1.0, decimals=0, symbol=" %"))
        drawing.legend_above(axes)
    words = "; ".join(
        f"{name}: " + ", ".join(f"{ACCURACY.text(spread)} with {count}" for count, spread in line)
        for name, line in lines.items()
    )
    caption = "Where the upper line reaches the height of the lower one, it needs so many samples fewer."
    return Figure("Accuracy by training samples", drawing.svg(), f"Line plot: {words}.", caption)
