"""Results of comparisons as CSV, one row a run, and what they say together."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from statistics import mean
from typing import Any

from limbeck.bench.suite import arm_of
from limbeck.bench.terms import ACCURACY, Terms, terms_of
from limbeck.engine.run_folder import processor
from limbeck.errors import DataError
from limbeck.evaluate import Spread, measures
from limbeck.recipes.schema import Recipe, RoleSpec

_IMAGES = {
    "accuracy.top1": "accuracy",
    "agreement.top1": "agreement",
    "calibration.ece": "ece",
    "calibration.nll": "nll",
    "accuracy.teacher.top1": "teacher_accuracy",
}
"""Figures of classifiers, which have columns of their own, by where they stand in the results."""


@dataclass(frozen=True)
class Row:
    """One run of a comparison.

    Attributes:
        suite: name of the comparison.
        data: data set, with the number of training samples where it is limited.
        teacher: teacher model.
        student: student model.
        arm: label of the arm.
        method: name of the method.
        seed: seed.
        epochs: epochs of all stages; the figures are those of the last one.
        split: what the figures were measured on.
        accuracy: top-1 accuracy of the student; NaN where no classifier was compared, as the next four.
        agreement: part of the samples on which student and teacher say the same; NaN without a live teacher.
        ece: expected calibration error.
        nll: negative log-likelihood.
        teacher_accuracy: top-1 accuracy of the teacher; NaN without a live teacher.
        seconds: duration of the run on one thread; NaN where it was interrupted.
        processor: the machine.
        fold: number of the fold in a cross-validation; None elsewhere.
        measures: what further evaluations of the recipe found, by their keys, such as ``robustness_attacks.pgd``.
    """

    suite: str
    data: str
    teacher: str
    student: str
    arm: str
    method: str
    seed: int
    epochs: int
    split: str
    accuracy: float
    agreement: float
    ece: float
    nll: float
    teacher_accuracy: float
    seconds: float
    processor: str
    fold: int | None = None
    measures: Mapping[str, float] = field(default_factory=dict)

    def value(self, key: str) -> float:
        """Returns what was measured under a key, such as ``accuracy.top1``; NaN where nothing was."""
        return float(getattr(self, _IMAGES[key])) if key in _IMAGES else self.measures.get(key, math.nan)

    @classmethod
    def of(
        cls,
        suite: str,
        label: str,
        seed: int,
        recipe: Recipe,
        results: dict[str, Any],
        seconds: float | None,
        criterion: str = ACCURACY,
    ) -> Row:
        """Returns the row of a finished run.

        Args:
            suite: name of the comparison.
            label: of the arm, and of the fold where there are folds.
            seed: seed.
            recipe: what was run.
            results: what the evaluations said.
            seconds: duration; None where it was interrupted.
            criterion: key of the measure that ranks arms, of which the teacher's value is kept as well.
        """
        last = recipe.stages[-1]
        arm, fold = arm_of(label)
        limit = last.data.limit.get("train") if isinstance(last.data.limit, dict) else last.data.limit
        return cls(
            suite=suite,
            data=last.data.name if limit is None else f"{last.data.name} ({limit} samples)",
            teacher=_model(last.roles.get("teacher")),
            student=_model(last.roles.get("student")),
            arm=arm,
            method=last.method_name,
            seed=seed,
            epochs=sum(s.train.epochs for s in recipe.stages),
            split=str(results.get("split", "test")),
            **{name: _number(results, *key.split(".")) for key, name in _IMAGES.items()},
            seconds=math.nan if seconds is None else round(seconds, 1),
            processor=processor(),
            fold=fold,
            measures=_further(results, criterion),
        )


@dataclass(frozen=True)
class Summary:
    """An arm over its seeds.

    Attributes:
        arm: its label.
        method: its method.
        seeds: number of runs: seeds, times folds in a cross-validation.
        terms: how the comparison judges.
        mean: mean of the criterion.
        spread: standard deviation of the criterion over seeds (n - 1); 0 with one seed.
        gain: mean over runs of how much better the criterion is than that of the first baseline, a student that learns
            alone, of the same seed and fold.
        gain_over_plain: likewise over the last baseline, plain distillation.
        agreement: mean agreement with the teacher, of classifiers.
        ece: mean expected calibration error, of classifiers.
        seconds: mean duration.
        folds: number of folds; 0 where there is no cross-validation.
        measures: what further evaluations found.
    """

    arm: str
    method: str
    seeds: int
    terms: Terms
    mean: float
    spread: float
    gain: float
    gain_over_plain: float
    agreement: float
    ece: float
    seconds: float
    folds: int = 0
    measures: Mapping[str, Spread] = field(default_factory=dict)


def summarise(rows: Sequence[Row], terms: Terms | None = None) -> list[Summary]:
    """Returns one summary an arm, best first; gains are taken seed by seed, as arms share seeds.

    Args:
        rows: runs of one comparison.
        terms: how it judges; by accuracy, over no distillation and plain KD, when None.
    """
    terms = terms or terms_of(ACCURACY)
    key = terms.criterion.key
    arms: dict[str, list[Row]] = {}
    for row in rows:
        arms.setdefault(row.arm, []).append(row)
    summaries = [
        Summary(
            arm=arm,
            method=runs[0].method,
            seeds=len(runs),
            terms=terms,
            mean=over.mean,
            spread=over.std,
            gain=_gain(runs, arms.get(terms.first, []), terms),
            gain_over_plain=_gain(runs, arms.get(terms.last, []), terms),
            agreement=_mean(r.agreement for r in runs),
            ece=_mean(r.ece for r in runs),
            seconds=_mean(r.seconds for r in runs),
            folds=len({r.fold for r in runs} - {None}),
            measures=_spreads(runs),
        )
        for arm, runs in arms.items()
        if (over := Spread.of(r.value(key) for r in runs)) is not None
    ]
    return sorted(summaries, key=lambda s: -terms.gain(s.mean, 0.0))


def apart(one: Summary, other: Summary) -> int:
    """Returns 1 where ``one`` is better by more than two standard errors of the difference, -1 where worse, else 0.

    One run of an arm has no standard error, so that nothing can be told of it.
    """
    if min(one.seeds, other.seeds) < 2:
        return 0
    error = math.sqrt(one.spread**2 / one.seeds + other.spread**2 / other.seeds)
    difference = one.terms.gain(one.mean, other.mean)
    return (difference > 2 * error) - (difference < -2 * error)


def of_teacher(key: str) -> str:
    """Returns where the results have the teacher's value of a measure.

    Example:
        >>> of_teacher("accuracy.top1")
        'accuracy.teacher.top1'
    """
    evaluation, _, name = key.partition(".")
    return f"{evaluation}.teacher.{name}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes rows to a CSV file; classifiers' figures, folds and further measures have columns where there are any."""
    classifiers = any(not math.isnan(row.value(key)) for row in rows for key in _IMAGES)
    absent = ("fold", "measures") if classifiers or not rows else ("fold", "measures", *_IMAGES.values())
    facts = [f.name for f in fields(Row) if f.name not in absent]
    folds = ["fold"] if any(row.fold is not None for row in rows) else []
    further = list(dict.fromkeys(key for row in rows for key in row.measures))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*facts, *folds, *further], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = {name: getattr(row, name) for name in (*facts, *folds)} | dict(row.measures)
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})


def read_csv(path: Path) -> list[Row]:
    """Reads rows from a CSV file.

    Raises:
        DataError: the file is no table of a comparison.
    """
    try:
        with open(path, newline="") as file:
            return [_row(line) for line in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"'{path}' is no table of a comparison: {error}") from None


def _row(line: dict[str, str]) -> Row:
    kinds = {f.name: {"int": int, "float": float}.get(str(f.type), str) for f in fields(Row)}
    further = {key: float(text) for key, text in line.items() if key not in kinds and text}
    facts: dict[str, Any] = {
        name: math.nan if name in _IMAGES.values() and "accuracy" not in line else kind(line[name])
        for name, kind in kinds.items()
        if name not in ("fold", "measures")
    }
    return Row(**facts, fold=int(line["fold"]) if line.get("fold") else None, measures=further)


def shipped_results() -> dict[str, list[Row]]:
    """Returns the results that come with limbeck, by suite."""
    folder = resources.files("limbeck.bench") / "results"
    if not folder.is_dir():
        return {}
    return {
        p.name.removesuffix(".csv"): read_csv(Path(str(p)))
        for p in sorted(folder.iterdir(), key=str)
        if p.name.endswith(".csv")
    }


def _model(role: RoleSpec | None) -> str:
    if role is None:
        return ""
    if isinstance(role.model, dict):
        name, size = str(role.model.get("name", "")), [role.model.get(key) for key in ("layers", "width")]
        return name if None in size else f"{name} {size[0]} x {size[1]}"
    return role.model or (
        f"the student of {role.from_stage}" if role.from_stage else "a cache" if role.cache else "several"
    )


def _number(results: dict[str, Any], *path: str) -> float:
    value: Any = results
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) else math.nan


def _gain(runs: list[Row], base: list[Row], terms: Terms) -> float:
    """Mean of how much better runs are than that of the same seed and fold in ``base``."""
    key = terms.criterion.key
    same = {(r.seed, r.fold): r.value(key) for r in base}
    return _mean(terms.gain(r.value(key), same[r.seed, r.fold]) for r in runs if (r.seed, r.fold) in same)


def _further(results: dict[str, Any], criterion: str) -> dict[str, float]:
    """What evaluations found that has no column of its own, and how good the teacher is by the criterion."""
    own = {key.partition(".")[0] for key in _IMAGES}
    keys = [m.key for m in measures(results) if m.key.partition(".")[0] not in own]
    keys += [of_teacher(criterion)] if criterion in keys else []
    found = {key: _number(results, *key.split(".")) for key in keys}
    return {key: value for key, value in found.items() if not math.isnan(value)}


def _spreads(runs: Sequence[Row]) -> dict[str, Spread]:
    keys = dict.fromkeys(key for r in runs for key in r.measures)
    found = {key: Spread.of(r.measures[key] for r in runs if key in r.measures) for key in keys}
    return {key: spread for key, spread in found.items() if spread is not None}


def _mean(values: Iterable[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return mean(known) if known else math.nan
