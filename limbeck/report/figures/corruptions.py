"""Robustness to corruptions: accuracy by severity, and by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from limbeck.report.arms import Arm
from limbeck.report.figures.canvas import GRID, INK, Drawing, short, ticker
from limbeck.report.figures.palette import Look
from limbeck.report.sections import Figure

_ROW, _FRAME = 0.27, 0.85


def kind_name(kind: str) -> str:
    """Returns a kind of corruption in words.

    Example:
        >>> kind_name("jpeg_compression")
        'JPEG compression'
    """
    return kind.replace("_", " ").replace("jpeg", "JPEG")


def accuracy_by_kind(arm: Arm) -> dict[str, float]:
    """Returns an arm's accuracy for each kind, over severities and seeds; empty where it was not measured."""
    tables = [table for results in arm.results if (table := _table(results))]
    kinds = list(dict.fromkeys(kind for table in tables for kind in table))
    return {kind: fmean(fmean(table[kind]) for table in tables if kind in table) for kind in kinds}


def by_severity(arms: Sequence[Arm], looks: Mapping[str, Look]) -> Figure | None:
    """Draws mean accuracy over kinds against severity, uncorrupted images as severity 0; None without measurements."""
    lines = {arm.name: line for arm in arms if (line := _line(arm))}
    if not lines:
        return None
    drawing = Drawing("accuracy by severity")
    with drawing.axes() as axes:
        for name, points in lines.items():
            look = looks[name]
            x, y = zip(*points)
            drawn = axes.plot(
                x, y, color=look.colour, linestyle=look.line, marker=look.mark, markersize=5, label=short(name)
            )
            drawing.tip(drawn[0], name)
        axes.set(xlabel="severity of the corruption (0: none)", ylabel="accuracy")
        axes.xaxis.set_major_locator(ticker().MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(ticker().PercentFormatter(1.0, decimals=0, symbol=" %"))
        drawing.legend_above(axes)
    words = "; ".join(f"{name} from {line[0][1]:.0%} to {line[-1][1]:.0%}" for name, line in lines.items())
    caption = "Mean over the kinds of corruption. A flat line is a robust model."
    return Figure("Accuracy by severity", drawing.svg(), f"Line plot of accuracy by severity: {words}.", caption)


def by_kind(arms: Sequence[Arm], looks: Mapping[str, Look]) -> Figure | None:
    """Draws each kind's accuracy, mean over severities, for each arm; None without measurements."""
    rates = {arm.name: rate for arm in arms if (rate := accuracy_by_kind(arm))}
    if not rates:
        return None
    kinds = sorted(
        {k for rate in rates.values() for k in rate}, key=lambda k: fmean(r[k] for r in rates.values() if k in r)
    )
    drawing = Drawing("accuracy by corruption", height=_FRAME + _ROW * len(kinds))
    with drawing.axes() as axes:
        for row, kind in enumerate(kinds):
            column = [rate[kind] for rate in rates.values() if kind in rate]
            axes.plot([min(column), max(column)], [row, row], color=GRID, linewidth=2.2)
        for name, rate in rates.items():
            look = looks[name]
            rows = [row for row, kind in enumerate(kinds) if kind in rate]
            values = [rate[kinds[row]] for row in rows]
            axes.scatter(
                values, rows, s=36, color=look.colour, marker=look.mark, label=short(name), zorder=3, linewidths=0
            )
        axes.set_yticks(range(len(kinds)), [kind_name(kind) for kind in kinds])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(ticker().PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.set_ylim(-0.7, len(kinds) - 0.3)
        drawing.legend_above(axes)
    words = "; ".join(
        f"{kind_name(kind)}: " + ", ".join(f"{name} {rate[kind]:.0%}" for name, rate in rates.items() if kind in rate)
        for kind in reversed(kinds)
    )
    caption = "Accuracy on images corrupted in one way, mean over severities; the hardest at the bottom."
    return Figure("Accuracy by kind of corruption", drawing.svg(), f"Dot plot by corruption. {words}.", caption)


def _line(arm: Arm) -> list[tuple[int, float]]:
    """Severity and mean accuracy over kinds and seeds."""
    points: dict[int, list[float]] = {}
    for results in arm.results:
        found = results.get("corruptions")
        table = _table(results)
        if not table or not isinstance(found, Mapping):
            continue
        points.setdefault(0, []).append(float(found["clean"]))
        for position, severity in enumerate(found["severities"]):
            points.setdefault(int(severity), []).append(fmean(rates[position] for rates in table.values()))
    return [(severity, fmean(values)) for severity, values in sorted(points.items())]


def _table(results: Mapping[str, Any]) -> dict[str, list[float]]:
    found = results.get("corruptions")
    table = found.get("by_kind") if isinstance(found, Mapping) else None
    return table if isinstance(table, dict) else {}
