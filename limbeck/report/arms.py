"""What a report compares: arms, each a recipe with its seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from limbeck.evaluate import Measure, Predictions, Spread, measures, of_teacher
from limbeck.report.runs import RunRecord

Kind = Literal["teacher", "baseline", "distilled"]
ALONE = "alone"
"""Name of the arm whose student learns from nothing but the labels."""
_ORDER: dict[str, int] = {"teacher": 0, "baseline": 1, "distilled": 2}
ACCURACY = Measure("accuracy.top1", "Accuracy", "fraction", "higher")


@dataclass(frozen=True)
class Arm:
    """One thing that is compared with others, over its seeds.

    Attributes:
        name: what it is called in tables and drawings.
        kind: the teacher, a student trained without it, or one that was distilled.
        results: what the evaluations said, one entry a seed.
        history: one entry a seed, each one record an epoch.
        predictions: logits on the test data, of the first seed that kept them.
        role: whose logits in ``predictions`` are this arm's.
        seeds: the seeds, in the order of ``results``.
    """

    name: str
    kind: Kind
    results: tuple[Mapping[str, Any], ...]
    history: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    predictions: Predictions | None = None
    role: str = "student"
    seeds: tuple[int, ...] = ()

    def spread(self, measure: Measure) -> Spread | None:
        """Mean and deviation of a measure over the seeds; None where no seed has it."""
        return Spread.of(self.values(measure))

    def values(self, measure: Measure) -> list[float]:
        """A measure's value for each seed that has it."""
        return [value for results in self.results if (value := measure.read(results)) is not None]

    @property
    def accuracy(self) -> Spread | None:
        """Top-1 accuracy over the seeds."""
        return self.spread(ACCURACY)


def arms_of(records: Sequence[RunRecord]) -> list[Arm]:
    """Groups runs whose recipes differ in nothing but the seed, and adds the teachers they report.

    Returns:
        Teachers, then students trained alone, then distilled ones, each kind by falling accuracy.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(_identity(record), []).append(record)
    names = _names([group[0] for group in groups.values()])
    students = [_student_arm(name, group) for name, group in zip(names, groups.values())]
    return ordered([*_teachers(records), *students])


def ordered(arms: Iterable[Arm]) -> list[Arm]:
    """Returns teachers, then students trained alone, then distilled ones, each kind by falling accuracy."""
    return sorted(arms, key=lambda arm: (_ORDER[arm.kind], -(arm.accuracy.mean if arm.accuracy else 0.0)))


def _identity(record: RunRecord) -> str:
    if not record.recipe:
        return record.method
    return json.dumps(
        {k: v for k, v in record.recipe.items() if k not in ("seed", "about")}, sort_keys=True, default=str
    )


def _student_arm(name: str, group: Sequence[RunRecord]) -> Arm:
    group = sorted(group, key=lambda record: record.seed)
    return Arm(
        name=name,
        kind=kind_of(group[0].method),
        results=tuple(record.results for record in group if record.results),
        history=tuple(record.history for record in group if record.history),
        predictions=next((record.predictions for record in group if record.predictions is not None), None),
        seeds=tuple(record.seed for record in group if record.results),
    )


def kind_of(method: str) -> Kind:
    """Whether a method learns from a teacher: fine-tuning and methods of the family ``arm`` do not."""
    from limbeck.methods import methods

    alone = method == "sft" or (method in methods and methods[method].about.get("family") == "arm")
    return "baseline" if alone else "distilled"


def _title(method: str) -> str:
    """A short name for tables: what an arm is, or the method's name in recipes as papers write it."""
    return {"none": ALONE, "label_smoothing": "label smoothing"}.get(
        method, method.upper() if len(method) <= 4 else method
    )


def _names(records: Sequence[RunRecord]) -> list[str]:
    """The method's name, and for arms of one method what their recipes differ in."""
    flat = [_flattened(record.recipe) for record in records]
    names = []
    for record, own in zip(records, flat):
        alike = [other for r, other in zip(records, flat) if r.method == record.method]
        keys = sorted(
            {k for other in alike for k in other if k != "seed" and any(o.get(k) != other.get(k) for o in alike)}
        )
        telling = [f"{key.rpartition('.')[2]} {own[key]}" for key in keys if key in own][:2]
        names.append(" · ".join([_title(record.method), *telling]))
    return [
        name if names.count(name) == 1 else f"{name} ({record.folder.name})" for name, record in zip(names, records)
    ]


def _flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    return {
        k: v for name, child in items for k, v in _flattened(child, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _teachers(records: Sequence[RunRecord]) -> list[Arm]:
    """One arm for each teacher; runs that report the same numbers of it share one entry."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        if of_teacher(record.results):
            roles = record.stage.get("roles")
            spec = roles.get("teacher") if isinstance(roles, Mapping) else None
            found.setdefault(json.dumps(spec, sort_keys=True, default=str), []).append(record)
    arms = [_teacher_arm(group) for group in found.values()]
    if len(arms) > 1:
        arms = (
            [replace(arm, name=f"{arm.name} {number}") for number, arm in enumerate(arms, 1)] if _clash(arms) else arms
        )
    return arms


def _clash(arms: Sequence[Arm]) -> bool:
    return len({arm.name for arm in arms}) < len(arms)


def _teacher_arm(group: Sequence[RunRecord]) -> Arm:
    model = group[0].model("teacher")
    return Arm(
        name=f"teacher {model}".strip(),
        kind="teacher",
        results=_told_of_teacher(group),
        predictions=next(
            (r.predictions for r in group if r.predictions is not None and "teacher" in r.predictions.logits), None
        ),
        role="teacher",
    )


def _told_of_teacher(group: Sequence[RunRecord]) -> tuple[Mapping[str, Any], ...]:
    """What runs say of their teacher; those that report the same numbers share an entry, to which each adds its own.

    Runs may have been judged by different evaluations, so no single one need have everything.
    """
    telling = measures(("accuracy", "token_loss"))
    entries: list[dict[str, Any]] = []
    for record in group:
        said = of_teacher(record.results)
        for entry in entries:
            pairs = [(measure, measure.read(entry), measure.read(said)) for measure in telling]
            if all(m.text(one) == m.text(two) for m, one, two in pairs if one is not None and two is not None):
                entry.update({name: part for name, part in said.items() if name not in entry})
                break
        else:
            entries.append(dict(said))
    return tuple(entries)
