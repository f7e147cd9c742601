"""Who is ahead: every arm's accuracy on one axis, with each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from limbeck.evaluate import Measure
from limbeck.report.arms import Arm
from limbeck.report.figures.canvas import HEIGHT, INK, Drawing, short, ticker
from limbeck.report.figures.palette import Look
from limbeck.report.sections import Figure

_ROW, _FRAME = 0.27, 0.75


def ranking(
    arms: Sequence[Arm], looks: Mapping[str, Look], measure: Measure, reference: Arm | None = None
) -> Figure | None:
    """Draws the mean, the deviation and every seed of a measure, a row an arm; None with fewer than two students.

    Args:
        arms: what is compared; teachers are left out.
        looks: how each arm is drawn.
        measure: the number to rank by.
        reference: the arm whose level is drawn through all rows; the first without a teacher when None.
    """
    students = [(arm, spread) for arm in arms if arm.kind != "teacher" and (spread := arm.spread(measure))]
    if len(students) < 2:
        return None
    reference = reference or next((arm for arm, _ in students if arm.kind == "baseline"), None)
    students.sort(key=lambda pair: pair[1].mean, reverse=measure.better == "lower")
    drawing = Drawing(f"ranking by {measure.key}", height=max(HEIGHT, _FRAME + _ROW * len(students)))
    with drawing.axes() as axes:
        for row, (arm, spread) in enumerate(students):
            look = looks[arm.name]
            values = arm.values(measure)
            axes.scatter(values, [row] * len(values), s=14, color=look.colour, alpha=0.35, linewidths=0)
            axes.errorbar(spread.mean, row, xerr=spread.std, color=look.colour, capsize=2.5, linewidth=1.4)
            mark = axes.scatter([spread.mean], [row], s=42, color=look.colour, marker=look.mark, zorder=3, linewidths=0)
            drawing.tip(mark, f"{arm.name}: {measure.text(spread)}, {spread.n} seeds")
        level = reference.spread(measure) if reference is not None else None
        if reference is not None and level is not None:
            colour = looks[reference.name].colour
            axes.axvline(level.mean, color=colour, linestyle=(0, (1.2, 1.4)), linewidth=1.0)
        axes.set_yticks(range(len(students)), [short(arm.name) for arm, _ in students])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-0.7, len(students) - 0.3)
        axes.xaxis.set_major_locator(ticker().MaxNLocator(nbins=6))
        percent = ticker().PercentFormatter(1.0, decimals=None, symbol=" %")
        plain = ticker().FuncFormatter(lambda value, _: measure.text(value))
        axes.xaxis.set_major_formatter(percent if measure.unit == "fraction" else plain)
    words = "; ".join(f"{arm.name} {measure.text(spread)}" for arm, spread in reversed(students))
    line = f" The dotted line marks {reference.name}." if reference is not None else ""
    several = any(spread.n > 1 for _, spread in students)
    caption = ("Small dots are seeds, bars one standard deviation." if several else "One seed each.") + line
    return Figure(f"{measure.title} of the students", drawing.svg(), f"Dot plot, best first: {words}.", caption)
