"""Class by class: where distillation changed what the student confuses, and how accurate it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.evaluate import Predictions
from limbeck.functional.metrics import confusion_matrix
from limbeck.report.arms import Arm
from limbeck.report.figures.canvas import GRID, INK, Drawing, series, short, ticker
from limbeck.report.figures.palette import Look
from limbeck.report.sections import Figure

_MOST_CLASSES = 12
_ROW, _FRAME = 0.27, 0.85


def class_name(names: Sequence[str], number: int) -> str:
    """Returns a class's name, or its number where it has none."""
    return names[number] if number < len(names) else f"class {number}"


def class_accuracies(arms: Sequence[Arm], looks: Mapping[str, Look], class_names: Sequence[str]) -> Figure | None:
    """Draws each class's accuracy for each arm; None where fewer than two arms have it."""
    rates = {arm.name: rate for arm in arms if (rate := _mean_per_class(arm)) is not None}
    sizes = {len(rate) for rate in rates.values()}
    if len(rates) < 2 or len(sizes) != 1:
        return None
    table = torch.stack(list(rates.values()))
    span = (table.max(0).values - table.min(0).values).nan_to_num(-1.0)
    chosen = sorted(span.argsort(descending=True)[:_MOST_CLASSES].tolist(), key=lambda c: float(table[:, c].mean()))
    drawing = Drawing("accuracy by class", height=_FRAME + _ROW * len(chosen))
    with drawing.axes() as axes:
        for row, number in enumerate(chosen):
            column = table[:, number]
            axes.plot([float(column.min()), float(column.max())], [row, row], color=GRID, linewidth=2.2)
        for name, rate in rates.items():
            look = looks[name]
            values = [float(rate[number]) for number in chosen]
            axes.scatter(
                values,
                range(len(chosen)),
                s=36,
                color=look.colour,
                marker=look.mark,
                label=short(name),
                zorder=3,
                linewidths=0,
            )
        axes.set_yticks(range(len(chosen)), [short(class_name(class_names, number)) for number in chosen])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(ticker().PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.set_ylim(-0.7, len(chosen) - 0.3)
        drawing.legend_above(axes)
    words = "; ".join(
        f"{class_name(class_names, number)}: "
        + ", ".join(f"{name} {float(rate[number]):.0%}" for name, rate in rates.items())
        for number in reversed(chosen)
    )
    which = "each class" if len(chosen) == table.shape[1] else f"the {len(chosen)} classes on which models differ most"
    caption = f"Accuracy of {which}" + (", means over seeds." if any(len(arm.results) > 1 for arm in arms) else ".")
    return Figure("Accuracy by class", drawing.svg(), f"Dot plot by class. {words}.", caption)


def _mean_per_class(arm: Arm) -> Tensor | None:
    lists = [r for results in arm.results if (r := _per_class(results))]
    if not lists:
        return None
    rates = torch.tensor([[float("nan") if v is None else float(v) for v in rate] for rate in lists])
    return rates.nanmean(0)


def _per_class(results: Mapping[str, Any]) -> Any:
    accuracy = results.get("accuracy")
    return accuracy.get("per_class") if isinstance(accuracy, Mapping) else None


def confusion_change(before: Arm, after: Arm, class_names: Sequence[str]) -> Figure | None:
    """Draws how much more or less often each class is taken for another by ``after`` than by ``before``.

    Returns None where one of them kept no predictions, or they were not made on the same samples.
    """
    first, second = before.predictions, after.predictions
    if first is None or second is None or not torch.equal(first.index, second.index):
        return None
    change = 100 * (_rates(second, after.role) - _rates(first, before.role))
    chosen = _most_changed(change)
    part = change[chosen][:, chosen]
    names = [short(class_name(class_names, number)) for number in chosen]
    drawing = Drawing("confusion", height=0.9 + 0.3 * len(chosen))
    with drawing.axes() as axes:
        _draw_cells(axes, part)
        axes.set_xticks(range(len(chosen)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(chosen)), names)
        axes.set(xlim=(-0.5, len(chosen) - 0.5), ylim=(len(chosen) - 0.5, -0.5), xlabel="predicted", ylabel="true")
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    caption = (
        f"Predictions for each 100 samples of a true class: {after.name} minus {before.name}, one seed. "
        "On the diagonal more is better, elsewhere less; the accent colour marks what became better."
    )
    if len(chosen) < change.shape[0]:
        caption += f" The {len(chosen)} classes that changed most."
    return Figure(
        "What is confused less", drawing.svg(), _in_words(change, class_names, after.name, before.name), caption
    )


def _rates(predictions: Predictions, role: str) -> Tensor:
    logits = predictions.logits[role]
    classes = logits.shape[1]
    table = confusion_matrix(logits.argmax(1), predictions.labels, classes).double()
    return table / table.sum(1, keepdim=True).clamp(min=1)


def _most_changed(change: Tensor) -> list[int]:
    weight = change.abs().sum(1) + change.abs().sum(0)
    return sorted(weight.argsort(descending=True, stable=True)[:_MOST_CLASSES].tolist())


def _draw_cells(axes: Any, part: Tensor) -> None:
    from matplotlib.patches import Rectangle

    largest = max(float(part.abs().max()), 1e-9)
    better, worse = series(0), series(6)
    for row, column in torch.cartesian_prod(*(torch.arange(len(part)),) * 2).reshape(-1, 2).tolist():
        value = float(part[row, column])
        good = (value > 0) == (row == column)
        if row == column:
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor=GRID, linewidth=1))
        if round(value, 1) == 0:
            continue
        strength = 0.12 + 0.55 * abs(value) / largest
        corner = (column - 0.46, row - 0.46)
        axes.add_patch(Rectangle(corner, 0.92, 0.92, color=better if good else worse, alpha=strength, linewidth=0))
        axes.text(column, row, f"{value:+.1f}".replace("-", "−"), ha="center", va="center", fontsize=6.5, color=INK)


def _in_words(change: Tensor, class_names: Sequence[str], after: str, before: str) -> str:
    errors = change.clone()
    errors.fill_diagonal_(0.0)
    flat = errors.flatten()
    most = flat.abs().argsort(descending=True, stable=True)[:3].tolist()
    classes = change.shape[1]
    phrases = [
        f"{class_name(class_names, cell // classes)} is taken for {class_name(class_names, cell % classes)} "
        f"{abs(float(flat[cell])):.1f} percentage points {'more' if flat[cell] > 0 else 'less'} often"
        for cell in most
    ]
    return f"Matrix of true and predicted classes, {after} minus {before}. " + "; ".join(phrases) + "."
