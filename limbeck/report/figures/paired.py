"""Differences between students on the same samples, with the interval that the samples allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from limbeck.evaluate.paired import Paired
from limbeck.report.arms import Arm
from limbeck.report.figures.canvas import INK, MUTED, Drawing, short, ticker
from limbeck.report.figures.palette import Look
from limbeck.report.sections import Figure

_ROW, _FRAME = 0.34, 0.75


def differences(reference: Arm, found: Sequence[tuple[Arm, Paired]], looks: Mapping[str, Look]) -> Figure | None:
    """Draws how much more accurate students are than a reference, with bootstrap intervals; None without any."""
    if not found:
        return None
    ordered = sorted(found, key=lambda pair: pair[1].difference.value)
    drawing = Drawing("paired differences", height=_FRAME + _ROW * len(ordered))
    with drawing.axes() as axes:
        axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        for row, (arm, paired) in enumerate(ordered):
            look, d = looks[arm.name], paired.difference
            axes.plot([100 * d.low, 100 * d.high], [row, row], color=look.colour, linewidth=2, alpha=0.7)
            mark = axes.scatter(
                [100 * d.value], [row], s=44, color=look.colour, marker=look.mark, zorder=3, linewidths=0
            )
            drawing.tip(mark, f"{arm.name}: {_in_words(paired)}")
        axes.set_yticks(range(len(ordered)), [f"{short(arm.name)}, {_probability(p.test.p)}" for arm, p in ordered])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-0.6, len(ordered) - 0.4)
        axes.set_xlabel(f"points of accuracy over {short(reference.name)}")
        axes.xaxis.set_major_formatter(ticker().FuncFormatter(lambda v, _: f"{v:+.3g}".replace("-", "−") if v else "0"))
    words = "; ".join(f"{arm.name} {_in_words(paired)}" for arm, paired in reversed(ordered))
    caption = (
        f"One run of each on the same {ordered[0][1].samples} samples: bars are 95 % bootstrap intervals, "
        "p is McNemar's. They tell what other test samples could change, not what other seeds could."
    )
    return Figure("Is the difference more than chance?", drawing.svg(), f"Differences: {words}.", caption)


def _in_words(paired: Paired) -> str:
    d = paired.difference
    numbers = f"{100 * d.value:+.2f} points, {100 * d.low:+.2f} to {100 * d.high:+.2f}"
    return f"{numbers}, {_probability(paired.test.p)}".replace("-", "−")


def _probability(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.1f}"
