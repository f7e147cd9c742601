"""Drawings about language models: fidelity by token frequency, lengths, and the curves of teacher hacking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.evaluate.teacher_hacking import Curves, Judgement, curves_of, judge
from limbeck.report.arms import Arm
from limbeck.report.figures.canvas import INK, MUTED, Drawing, short, ticker
from limbeck.report.figures.palette import Look
from limbeck.report.sections import Figure

_SHOWN = 6
Looks = Mapping[str, Look]


def band_name(frequency: Sequence[float]) -> str:
    """Names a band by how often its tokens come in a million.

    Example:
        >>> band_name([120.4, 34_567.0]), band_name([0.0, 0.0])
        ('120–35k', 'never')
    """
    low, high = (_short_number(value) for value in frequency)
    if high == "0":
        return "never"
    return low if low == high else f"{low}–{high}"


def _short_number(value: float) -> str:
    rounded = float(f"{value:.2g}")
    return f"{rounded / 1000:g}k" if rounded >= 1000 else f"{rounded:g}"


def by_frequency(arms: Sequence[Arm], looks: Looks, key: str = "kl") -> Figure | None:
    """Draws the KL to the teacher (or the ``loss``) over bands of token frequency; None where it was not measured.

    Args:
        arms: what is drawn, first seeds.
        looks: how.
        key: ``kl`` or ``loss``.
    """
    known = {arm.name: bands for arm in arms if (bands := _bands(arm, key))}
    shown = [arm for arm in arms if arm.name in known][:_SHOWN]
    if not shown:
        return None
    widest = max((known[arm.name] for arm in shown), key=len)
    names = [band_name(band["frequency"]) for band in widest]
    shown = [arm for arm in shown if [band_name(b["frequency"]) for b in known[arm.name]] == names]
    title = "KL to the teacher by frequency" if key == "kl" else "Loss by frequency"
    drawing = Drawing(title)
    with drawing.axes() as axes:
        for arm in shown:
            look = looks[arm.name]
            values = [band[key] for band in known[arm.name]]
            axes.plot(
                range(len(values)), values, color=look.colour, linestyle=look.line, marker=look.mark, markersize=5,
                label=short(arm.name),
            )  # fmt: skip
        if key == "loss" and "teacher_loss" in widest[0]:
            values = [band["teacher_loss"] for band in widest]
            axes.plot(
                range(len(values)), values, color=MUTED, linestyle="--", marker="D", markersize=4, label="teacher"
            )
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("occurrences of the true token in a million training tokens")
        axes.set_ylabel("nats a token")
        axes.margins(y=0.08)
        axes.set_ylim(bottom=0)
        drawing.legend_above(axes)
    ends = "; ".join(f"{a.name} from {known[a.name][0][key]:.3g} to {known[a.name][-1][key]:.3g}" for a in shown)
    caption = "From the commonest tokens to the rarest, bands of about equally many training tokens. First seed."
    return Figure(title, drawing.svg(), f"Line chart from common to rare tokens: {ends}.", caption)


def _bands(arm: Arm, key: str) -> list[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = next(
        (r["frequency_bands"]["bands"] for r in arm.results if "bands" in r.get("frequency_bands", {})), []
    )
    return [band for band in found if key in band]


def lengths(arms: Sequence[Arm], looks: Looks) -> Figure | None:
    """Draws how many tokens each arm writes; None where texts were not counted or all have one length."""
    known = {arm.name: _lengths(arm) for arm in arms}
    shown = [arm for arm in arms if known[arm.name]][:_SHOWN]
    everything = [n for arm in shown for n in known[arm.name]]
    if not everything or min(everything) == max(everything):
        return None
    drawing = Drawing("lengths of what is written")
    with drawing.axes() as axes:
        for arm in shown:
            look, counts = looks[arm.name], sorted(known[arm.name])
            parts = [(n + 1) / len(counts) for n in range(len(counts))]
            axes.step(
                [0, *counts], [0, *parts], where="post", color=look.colour, linestyle=look.line, label=short(arm.name)
            )
        axes.set(xlim=(0, max(everything) * 1.02), ylim=(0, 1.02), xlabel="tokens written", ylabel="texts up to there")
        axes.yaxis.set_major_formatter(ticker().PercentFormatter(1.0, decimals=0, symbol=" %"))
        drawing.legend_above(axes)
    means = "; ".join(f"{a.name} {sum(known[a.name]) / len(known[a.name]):.1f} tokens on average" for a in shown)
    caption = "A step at the right end are texts that were cut off at the most tokens allowed."
    return Figure("Length of what is written", drawing.svg(), f"Cumulative chart of lengths: {means}.", caption)


def _lengths(arm: Arm) -> list[int]:
    return [n for results in arm.results for n in results.get("repetition", {}).get("length", {}).get("each", [])]


def arm_curves(arms: Sequence[Arm]) -> dict[str, tuple[Curves, Judgement]]:
    """Returns the curves of each arm's first seed that was evaluated often enough, and what they show."""
    found: dict[str, Curves] = {}
    for arm in arms:
        curves = curves_of(arm.history[0]) if arm.history else None
        if curves is not None:
            found[arm.name] = curves
    return {name: (curves, judge(curves)) for name, curves in found.items()}


def golden_curves(
    curves: Mapping[str, tuple[Curves, Judgement]], looks: Looks, *, level: tuple[float, str] | None = None
) -> Figure | None:
    """Draws held-out loss, or the distance to an oracle, by epoch, a cross where it turned; None below two points.

    Args:
        curves: by name.
        looks: how each is drawn.
        level: a height to draw through, and what it is.
    """
    if not curves:
        return None
    title = next(iter(curves.values()))[0].golden_name
    drawing = Drawing(f"{title} by epoch")
    with drawing.axes() as axes:
        for name, (curve, judged) in curves.items():
            look = looks[name]
            axes.plot(curve.epochs, curve.golden, color=look.colour, linestyle=look.line, label=short(name))
            if judged.hacking:
                _mark(axes, curve.epochs[judged.turn.best], curve.golden[judged.turn.best])
        if level is not None:
            axes.axhline(level[0], color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), label=level[1])
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.xaxis.set_major_locator(ticker().MaxNLocator(integer=True, nbins=8))
        drawing.legend_above(axes)
    turned = [name for name, (_, judged) in curves.items() if judged.hacking]
    ends = ", ".join(f"{name} ends at {curve.golden[-1]:.3g}" for name, (curve, _) in curves.items())
    caption = "First seed. A cross marks the lowest point of a curve that then turned, by more than chance."
    said = f" {', '.join(turned)} turned." if turned else " None turned."
    name = title[:1].upper() + title[1:]
    return Figure(name, drawing.svg(), f"Line chart by epoch: {ends}.{said}", caption)


def proxy_by_epoch(curves: Mapping[str, tuple[Curves, Judgement]], looks: Looks) -> Figure | None:
    """Draws the distance to the teacher by epoch, both logarithmic: a power law is a straight line."""
    known = {n: c for n, c in curves.items() if c[0].proxy_name != "training loss" and min(c[0].proxy) > 0}
    if not known:
        return None
    title = next(iter(known.values()))[0].proxy_name
    drawing = Drawing(f"{title} by epoch")
    with drawing.axes() as axes:
        for name, (curve, _) in known.items():
            points = [(e, v) for e, v in zip(curve.epochs, curve.proxy) if e > 0]
            look = looks[name]
            axes.plot(*zip(*points), color=look.colour, linestyle=look.line, label=short(name))
        axes.set(xscale="log", yscale="log", xlabel="epoch", ylabel=title)
        for axis in (axes.xaxis, axes.yaxis):
            _plain_logarithmic(axis)
        axes.tick_params(which="both", length=0)
        drawing.legend_above(axes)
    ends = ", ".join(f"{name} ends at {curve.proxy[-1]:.3g}" for name, (curve, _) in known.items())
    caption = "Both axes are logarithmic: a power law, which is what fresh data give, is a straight line."
    name = title[:1].upper() + title[1:]
    return Figure(name, drawing.svg(), f"Line chart by epoch: {ends}.", caption)


def _plain_logarithmic(axis: Any) -> None:
    """Plain numbers at 1, 2 and 5: the drawing's letters are text, which shows no formulas."""
    axis.set_major_locator(ticker().LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(ticker().FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker().NullFormatter())


def proxy_against_golden(curves: Mapping[str, tuple[Curves, Judgement]], looks: Looks) -> Figure | None:
    """Draws the golden number against the proxy, a path an arm; None where no distance to the teacher was measured."""
    known = {n: c for n, c in curves.items() if c[0].proxy_name != "training loss" and min(c[0].proxy) > 0}
    if not known:
        return None
    first = next(iter(known.values()))[0]
    drawing = Drawing("golden against proxy")
    with drawing.axes() as axes:
        for name, (curve, judged) in known.items():
            look = looks[name]
            axes.plot(
                curve.proxy, curve.golden, color=look.colour, linestyle=look.line, linewidth=1.3, label=short(name)
            )
            axes.scatter(curve.proxy[-1:], curve.golden[-1:], color=look.colour, marker=look.mark, s=26, zorder=3)
            if judged.hacking:
                _mark(axes, curve.proxy[judged.turn.best], curve.golden[judged.turn.best])
        axes.set_xscale("log")
        _plain_logarithmic(axes.xaxis)
        axes.invert_xaxis()
        axes.tick_params(which="both", length=0)
        axes.set_xlabel(f"{first.proxy_name}: nearer to the right")
        axes.set_ylabel(first.golden_name)
        drawing.legend_above(axes)
    turned = ", ".join(name for name, (_, judged) in known.items() if judged.hacking) or "none"
    caption = "Training goes to the right. A path that bends up comes nearer to the teacher and loses the truth."
    return Figure("Truth against teacher", drawing.svg(), f"Paths of each arm; bending up: {turned}.", caption)


def _mark(axes: Any, x: float, y: float) -> None:
    axes.scatter([x], [y], color=INK, marker="x", s=44, linewidths=1.6, zorder=4)
