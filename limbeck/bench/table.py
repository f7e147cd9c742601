"""Results of comparisons as CSV, one row a run, and what they say together."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from limbeck.engine.run_folder import processor
from limbeck.errors import DataError
from limbeck.recipes.schema import Recipe, RoleSpec


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

    @classmethod
    def of(cls, suite: str, arm: str, seed: int, recipe: Recipe, results: dict[str, Any], seconds: float | None) -> Row:
        """Returns the row of a finished run."""
        last = recipe.stages[-1]
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
        )


@dataclass(frozen=True)
class Summary:
    """An arm over its seeds.

    Attributes:
        arm: its label.
        method: its method.
        seeds: number of runs.
        mean: mean accuracy.
        spread: standard deviation of the accuracy over seeds (n - 1); 0 with one seed.
        gain: mean over seeds of the accuracy over the arm ``none`` of the same seed.
        gain_over_kd: likewise over the arm ``kd``.
        agreement: mean agreement with the teacher.
        ece: mean expected calibration error.
        seconds: mean duration.
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
    """Writes rows to a CSV file."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()})


def read_csv(path: Path) -> list[Row]:
    """Reads rows from a CSV file.

    Raises:
        DataError: the file is no table of a comparison.
    """
    kinds = {f.name: {"int": int, "float": float}.get(str(f.type), str) for f in fields(Row)}
    try:
        with open(path, newline="") as file:
            return [Row(**{name: kind(line[name]) for name, kind in kinds.items()}) for line in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"'{path}' is no table of a comparison: {error}") from None


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
    """Mean difference of accuracy to the run of the same seed in ``base``."""
    of_seed = {r.seed: r.accuracy for r in base}
    return _mean(r.accuracy - of_seed[r.seed] for r in runs if r.seed in of_seed)


def _mean(values: Iterable[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return mean(known) if known else math.nan
