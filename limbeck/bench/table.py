"""Results of comparisons as CSV, one row a run, and what they say together."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from limbeck.bench.suite import arm_of
from limbeck.engine.run_folder import processor
from limbeck.errors import DataError
from limbeck.evaluate import Spread, measures
from limbeck.recipes.schema import Recipe, RoleSpec

_COLUMNS = ("accuracy", "agreement", "calibration")
"""Evaluations of which every table has columns of its own."""


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
        accuracy: top-1 accuracy of the student.
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

    @classmethod
    def of(
        cls, suite: str, label: str, seed: int, recipe: Recipe, results: dict[str, Any], seconds: float | None
    ) -> Row:
        """Returns the row of a finished run."""
        last = recipe.stages[-1]
        arm, fold = arm_of(label)
        limit = last.data.limit
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
            accuracy=_number(results, "accuracy", "top1"),
            agreement=_number(results, "agreement", "top1"),
            ece=_number(results, "calibration", "ece"),
            nll=_number(results, "calibration", "nll"),
            teacher_accuracy=_number(results, "accuracy", "teacher", "top1"),
            seconds=math.nan if seconds is None else round(seconds, 1),
            processor=processor(),
            fold=fold,
            measures=_further(results),
        )


@dataclass(frozen=True)
class Summary:
    """An arm over its seeds.

    Attributes:
        arm: its label.
        method: its method.
        seeds: number of runs: seeds, times folds in a cross-validation.
        mean: mean accuracy.
        spread: standard deviation of the accuracy over seeds (n - 1); 0 with one seed.
        gain: mean over runs of the accuracy over the arm ``none`` of the same seed and fold.
        gain_over_kd: likewise over the arm ``kd``.
        agreement: mean agreement with the teacher.
        ece: mean expected calibration error.
        seconds: mean duration.
        folds: number of folds; 0 where there is no cross-validation.
        measures: what further evaluations found.
    """

    arm: str
    method: str
    seeds: int
    mean: float
    spread: float
    gain: float
    gain_over_kd: float
    agreement: float
    ece: float
    seconds: float
    folds: int = 0
    measures: Mapping[str, Spread] = field(default_factory=dict)


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Returns one summary an arm, best accuracy first; gains are taken seed by seed, as arms share seeds."""
    arms: dict[str, list[Row]] = {}
    for row in rows:
        arms.setdefault(row.arm, []).append(row)
    summaries = [
        Summary(
            arm=arm,
            method=runs[0].method,
            seeds=len(runs),
            mean=mean(r.accuracy for r in runs),
            spread=stdev(r.accuracy for r in runs) if len(runs) > 1 else 0.0,
            gain=_gain(runs, arms.get("none", [])),
            gain_over_kd=_gain(runs, arms.get("kd", [])),
            agreement=_mean(r.agreement for r in runs),
            ece=_mean(r.ece for r in runs),
            seconds=_mean(r.seconds for r in runs),
            folds=len({r.fold for r in runs} - {None}),
            measures=_spreads(runs),
        )
        for arm, runs in arms.items()
    ]
    return sorted(summaries, key=lambda s: -s.mean)


def apart(one: Summary, other: Summary) -> int:
    """Returns 1 where ``one`` is better by more than two standard errors of the difference, -1 where worse, else 0."""
    error = math.sqrt(one.spread**2 / one.seeds + other.spread**2 / other.seeds)
    difference = one.mean - other.mean
    return (difference > 2 * error) - (difference < -2 * error)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes rows to a CSV file; a fold, and what further evaluations found, have columns where there are any."""
    facts = [f.name for f in fields(Row) if f.name not in ("fold", "measures")]
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
    facts = {name: kind(line[name]) for name, kind in kinds.items() if name not in ("fold", "measures")}
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
        return str(role.model.get("name", ""))
    return role.model or (
        f"the student of {role.from_stage}" if role.from_stage else "a cache" if role.cache else "several"
    )


def _number(results: dict[str, Any], *path: str) -> float:
    value: Any = results
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) else math.nan


def _gain(runs: list[Row], base: list[Row]) -> float:
    """Mean difference of accuracy to the run of the same seed and fold in ``base``."""
    same = {(r.seed, r.fold): r.accuracy for r in base}
    return _mean(r.accuracy - same[r.seed, r.fold] for r in runs if (r.seed, r.fold) in same)


def _further(results: dict[str, Any]) -> dict[str, float]:
    """What evaluations found that have no column of their own."""
    found = {m.key: m.read(results) for m in measures(results) if m.key.partition(".")[0] not in _COLUMNS}
    return {key: value for key, value in found.items() if value is not None}


def _spreads(runs: Sequence[Row]) -> dict[str, Spread]:
    keys = dict.fromkeys(key for r in runs for key in r.measures)
    found = {key: Spread.of(r.measures[key] for r in runs if key in r.measures) for key in keys}
    return {key: spread for key, spread in found.items() if spread is not None}


def _mean(values: Iterable[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return mean(known) if known else math.nan
