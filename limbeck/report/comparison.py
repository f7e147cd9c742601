"""The sections of a report that compares arms; each is left out where the arms do not have what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from limbeck.evaluate import Measure, Spread, measures
from limbeck.report.arms import ACCURACY, ALONE, Arm
from limbeck.report.figures.classes import class_accuracies, confusion_change
from limbeck.report.figures.cost import cost_accuracy
from limbeck.report.figures.palette import palette
from limbeck.report.figures.ranking import ranking
from limbeck.report.figures.reliability import reliability
from limbeck.report.figures.training import accuracy_curves, contribution_curves, gradient_curves, loss_curves
from limbeck.report.sections import Cell, Column, Figure, Figures, Highlight, Highlights, Section, Table, Text

_AGREEMENT = Measure("agreement.top1", "Agreement", "fraction", "higher")
_LOSSES_SHOWN = 3
_NAMED = 3


def best(arms: Sequence[Arm], kind: str) -> Arm | None:
    """Returns the arm of a kind with the highest mean accuracy."""
    return max((a for a in arms if a.kind == kind and a.accuracy), key=_mean_accuracy, default=None)


def alone(arms: Sequence[Arm]) -> Arm | None:
    """Returns the student that was trained with nothing but its labels; else the best of those without a teacher."""
    return next((a for a in arms if a.name == ALONE and a.accuracy), best(arms, "baseline"))


def _mean_accuracy(arm: Arm) -> float:
    return arm.accuracy.mean if arm.accuracy else 0.0


def gain(student: Arm, other: Arm) -> Spread | None:
    """Returns how much more accurate ``student`` is: seed by seed where both have the same seeds, else on average.

    Seeds that the arms share start from the same weights and see the data in the same order, so their differences
    vary less than the arms. The deviation of unpaired arms is that of the difference of two independent numbers.
    """
    if student.accuracy is None or other.accuracy is None:
        return None
    ours, theirs = (_by_seed(arm) for arm in (student, other))
    shared = sorted(ours.keys() & theirs.keys())
    if shared and len(shared) == max(len(student.results), len(other.results)):
        return Spread.of(ours[seed] - theirs[seed] for seed in shared)
    std = (student.accuracy.std**2 + other.accuracy.std**2) ** 0.5
    return Spread(student.accuracy.mean - other.accuracy.mean, std, min(student.accuracy.n, other.accuracy.n))


def _by_seed(arm: Arm) -> dict[int, float]:
    return {s: value for s, results in zip(arm.seeds, arm.results) if (value := ACCURACY.read(results)) is not None}


def points(difference: Spread, *, sign: bool = True) -> str:
    """Writes a difference of two fractions in percentage points.

    Example:
        >>> points(Spread(0.0213, 0.004, 3))
        '+2.13 ± 0.40 points'
    """
    mean = f"{100 * difference.mean:{'+' if sign else ''}.2f}".replace("-", "−")
    deviation = f" ± {100 * difference.std:.2f}" if difference.n > 1 else ""
    return f"{mean}{deviation} points"


def verdict(arms: Sequence[Arm]) -> str:
    """Says in one or two sentences what the comparison shows, and whether it is more than the spread of the seeds."""
    student, other = best(arms, "distilled"), alone(arms)
    if student is None or student.accuracy is None:
        reached = f" The student {other.name} reaches {ACCURACY.text(other.accuracy)}." if other is not None else ""
        return f"No distilled student is in this report.{reached}"
    if other is None or other.accuracy is None:
        reached = ACCURACY.text(student.accuracy)
        return f"{student.name} reaches {reached}. No student trained alone is in this report to compare with."
    difference = gain(student, other)
    assert difference is not None
    count = sum(arm.kind == "distilled" and arm.accuracy is not None for arm in arms)
    name = f"{student.name}, on this data the best of {count} distilled students," if count > 2 else student.name
    whom = "the student alone" if other.name == ALONE else other.name
    ours, theirs = ACCURACY.text(student.accuracy), ACCURACY.text(other.accuracy)
    head = f"{name} reaches {ours}, {whom} {theirs}: {points(difference)}. "
    return head + _weight(difference, student, other, best(arms, "teacher"))


def _weight(difference: Spread, student: Arm, other: Arm, teacher: Arm | None) -> str:
    """What the difference shows, given how much the seeds differ."""
    assert student.accuracy is not None
    assert other.accuracy is not None
    if _different_models(student, other):
        return "The two are different models, so this is not the effect of distillation."
    if min(student.accuracy.n, other.accuracy.n) < 2:
        return "With one seed there is no telling how much of this is chance."
    spread = max(student.accuracy.std, other.accuracy.std)
    in_points = f"{100 * spread:.2f} points"
    if abs(difference.mean) <= spread:
        return f"That is within the spread of the seeds ({in_points}), so it shows no difference."
    direction = "more accurate" if difference.mean > 0 else "less accurate"
    effect = f"Distillation made the student {direction} by more than the spread of the seeds ({in_points})."
    return effect + _gap_closed(student.accuracy.mean, other.accuracy.mean, teacher)


def _different_models(one: Arm, other: Arm) -> bool:
    sizes = [set(arm.values(Measure("cost.parameters", "Parameters", "count"))) for arm in (one, other)]
    return all(sizes) and sizes[0] != sizes[1]


def _gap_closed(student: float, other: float, teacher: Arm | None) -> str:
    gap = teacher.accuracy.mean - other if teacher is not None and teacher.accuracy is not None else 0.0
    closed = (student - other) / gap if gap > 0 else 0.0
    return f" It closes {closed:.0%} of the gap to the teacher." if 0 < closed < 1 else ""


def highlights(arms: Sequence[Arm]) -> Highlights | None:
    """Returns the few numbers of the best distilled student that matter; None where there is none."""
    student, other, teacher = best(arms, "distilled"), alone(arms), best(arms, "teacher")
    if student is None:
        return None
    items = [Highlight(ACCURACY.text(student.accuracy), f"accuracy of {student.name}", _seeds(student))]
    difference = gain(student, other) if other is not None else None
    if difference is not None and other is not None:
        items.append(
            Highlight(
                points(difference), "gained by distillation", f"{other.name} reaches {ACCURACY.text(other.accuracy)}"
            )
        )
    agreement = student.spread(_AGREEMENT)
    if agreement is not None:
        before = other.spread(_AGREEMENT) if other is not None else None
        detail = f"{other.name} {_AGREEMENT.text(before)}" if other is not None and before is not None else ""
        items.append(Highlight(_AGREEMENT.text(agreement), "same answer as the teacher", detail))
    if teacher is not None:
        items += _savings(student, teacher)
    return Highlights("", tuple(items))


def _seeds(arm: Arm) -> str:
    count = len(arm.results)
    return f"mean ± standard deviation of {count} seeds" if count > 1 else "one seed"


def _savings(student: Arm, teacher: Arm) -> list[Highlight]:
    wanted = {
        "latency.batch_1.p50_ms": "faster than the teacher",
        "cost.parameters": "fewer parameters",
    }
    known = {measure.key: measure for measure in measures()}
    items = []
    for key, label in wanted.items():
        measure = known[key]
        ours, theirs = student.spread(measure), teacher.spread(measure)
        if ours is not None and theirs is not None and theirs.mean > ours.mean > 0:
            ratio = theirs.mean / ours.mean
            detail = f"{measure.text(ours)}, the teacher {measure.text(theirs)}"
            items.append(Highlight(f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×", label, detail))
    return items[:1]


def _measures(*, costs: bool) -> list[Measure]:
    return [m for m in measures() if m.key.startswith(("cost.", "latency.")) == costs]


def _by_cost(arms: Sequence[Arm]) -> list[Arm]:
    """Puts students that cost the same into one row, with all their seeds."""
    counted = [m for m in measures() if m.key.startswith("cost.")]
    groups: dict[tuple[object, ...], list[Arm]] = {}
    for arm in arms:
        groups.setdefault((arm.kind == "teacher", *(tuple(arm.values(m)[:1]) for m in counted)), []).append(arm)
    merged = []
    for group in groups.values():
        names = [arm.name for arm in group]
        name = ", ".join(names) if len(names) <= _NAMED else f"{', '.join(names[:2])} and {len(names) - 2} more"
        merged.append(replace(group[0], name=name, results=tuple(r for arm in group for r in arm.results), seeds=()))
    return merged


def results_table(title: str, arms: Sequence[Arm], chosen: Sequence[Measure] | None = None) -> Table | None:
    """Returns a table with a row an arm and a column a measure; None where no arm has results.

    Args:
        title: heading.
        arms: what is compared.
        chosen: the columns; those measures of the default evaluations that an arm has when None.
    """
    columns = [m for m in chosen or measures() if any(arm.spread(m) for arm in arms)]
    if not columns:
        return None
    looks = palette(arms)
    reference = alone(arms) if any(m.key == ACCURACY.key for m in columns) else None
    gains = {
        arm.name: gain(arm, reference)
        for arm in arms
        if reference is not None and arm.kind != "teacher" and arm is not reference
    }
    heads = [Column("Model", numeric=False), *(Column(_heading(m), m.explanation) for m in columns)]
    if gains:
        assert reference is not None
        heads.insert(
            2,
            Column(
                f"Over {reference.name}",
                f"Accuracy minus that of {reference.name}, in percentage points, seed by seed.",
            ),
        )
    rows = []
    for arm in arms:
        cells = [_cell(arm, measure, arms) for measure in columns]
        if gains:
            difference = gains.get(arm.name)
            text = points(difference).removesuffix(" points") if difference is not None else "–"
            cells.insert(1, Cell(text, difference.mean if difference is not None else None))
        rows.append((Cell(arm.name, colour=looks[arm.name].number), *cells))
    return Table(title, tuple(heads), tuple(rows), _caption(arms, columns))


def _heading(measure: Measure) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", "": ""}[measure.better]
    return measure.title + arrow


def _cell(arm: Arm, measure: Measure, arms: Sequence[Arm]) -> Cell:
    """An entry; the best student of a column is marked where students differ."""
    spread = arm.spread(measure)
    if spread is None:
        return Cell("–")
    means = [s.mean for a in arms if a.kind != "teacher" and (s := a.spread(measure))]
    top = max(means, default=None) if measure.better == "higher" else min(means, default=None)
    distinct = len({measure.text(m) for m in means}) > 1
    is_best = bool(measure.better) and arm.kind != "teacher" and distinct and spread.mean == top
    return Cell(measure.text(spread), spread.mean, is_best)


def _caption(arms: Sequence[Arm], columns: Sequence[Measure]) -> str:
    counts = sorted({len(arm.results) for arm in arms if arm.kind != "teacher" and arm.results})
    if not counts:
        return ""
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if all(measure.key.startswith(("cost.", "latency.")) for measure in columns):
        if not any(measure.key.startswith("latency.") for measure in columns):
            return ""
        spread = "" if counts == [1] else f"; mean ± standard deviation over {number} runs"
        return f"Latency is the median of a forward pass on this machine{spread}."
    spread = "One seed each" if counts == [1] else f"Mean ± standard deviation over {number} seeds"
    return f"{spread}; last epoch, never the best one. Arrows show what is better, the accent colour the best student."


def comparison_sections(arms: Sequence[Arm], class_names: Sequence[str] = ()) -> list[Section]:
    """Returns everything about arms that needs no images: verdict, numbers, table and drawings."""
    known: list[Section | None] = [
        Text("", (verdict(arms),), "lead") if any(arm.results for arm in arms) else None,
        highlights(arms),
        results_table("Results", arms, _measures(costs=False)),
        results_table("Cost", _by_cost(arms), _measures(costs=True)),
        _figures("How good for what cost", *_overview(arms)),
        _figures("Training", *_training(arms)),
        _figures("Calibration and classes", *_classes(arms, class_names)),
    ]
    return [section for section in known if section is not None]


def _figures(title: str, *figures: Figure | None) -> Figures | None:
    drawn = tuple(figure for figure in figures if figure is not None)
    return Figures(title, drawn) if drawn else None


def _overview(arms: Sequence[Arm]) -> list[Figure | None]:
    looks = palette(arms)
    by_key = {measure.key: measure for measure in measures()}
    ranked = ranking(arms, looks, ACCURACY, alone(arms))
    # Parameters and operations mostly tell the same; the first that tells models apart is enough.
    against = (cost_accuracy(arms, looks, by_key[key]) for key in ("cost.parameters", "cost.macs"))
    return [ranked, next((figure for figure in against if figure is not None), None)]


def _training(arms: Sequence[Arm]) -> list[Figure | None]:
    distilled = [arm for arm in arms if arm.kind == "distilled"]
    drawings = (loss_curves, contribution_curves, gradient_curves)
    return [
        accuracy_curves(arms, palette(arms)),
        *(draw(arm) for arm in distilled[:_LOSSES_SHOWN] for draw in drawings),
    ]


def _classes(arms: Sequence[Arm], class_names: Sequence[str]) -> list[Figure | None]:
    looks = palette(arms)
    student, other, teacher = best(arms, "distilled"), alone(arms), best(arms, "teacher")
    few = [arm for arm in (teacher, other, student) if arm is not None]
    confusion = confusion_change(other, student, class_names) if student is not None and other is not None else None
    return [
        reliability(few, looks),
        reliability(few, looks, scaled=True),
        class_accuracies(few, looks, class_names),
        confusion,
    ]
