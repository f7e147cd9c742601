"""The fidelity report: what distillation gained in many runs, and what the gain goes along with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from limbeck.engine.checkpoint import write_atomically
from limbeck.errors import RunFolderError
from limbeck.evaluate import Measure, of_teacher
from limbeck.evaluate.fidelity_study import QUANTITIES, Correlation, Observation, Study, study
from limbeck.evaluate.significance import Tested
from limbeck.report.arms import kind_of
from limbeck.report.figures.fidelity import agreement_and_score, improvement_against
from limbeck.report.page import render
from limbeck.report.runs import RunRecord, read_run
from limbeck.report.sections import Cell, Column, Figures, Section, Table, Text

_LEVEL = 0.05
_DRAWN = ("agreement", "kl", "parameters", "baseline", "teacher_score", "on_teacher_errors")
_WHERE: Mapping[str, tuple[str, ...]] = {
    "parameters": ("cost.parameters", "size.parameters"),
    "agreement": ("agreement.top1", "token_agreement.top1"),
    "on_teacher_errors": ("agreement.on_teacher_errors", "token_agreement.on_teacher_errors"),
    "kl": ("agreement.kl_teacher_student", "token_agreement.kl_teacher_student"),
    "total_variation": ("agreement.total_variation", "token_agreement.total_variation"),
    "bleu": ("text_overlap.with_teacher.bleu",),
}
_SCORES = ("accuracy.top1", "token_loss.accuracy")


@dataclass(frozen=True)
class Matched:
    """Runs that could be compared.

    Attributes:
        observations: a distilled student each.
        left_out: what could not be compared and why, in words.
    """

    observations: tuple[Observation, ...]
    left_out: tuple[str, ...]


def match(records: Sequence[RunRecord]) -> Matched:
    """Pairs every distilled student with the one trained alone on the same data with the same settings and seed.

    What is not a finite number is not known: a run with such a score is left out, and such a quantity of a run.
    """
    alone: dict[str, RunRecord] = {}
    for record in records:
        if kind_of(record.method) == "baseline" and _known(_score(record.results)):
            # Plain training before others without a teacher, such as label smoothing.
            key = _settings(record)
            if key not in alone or record.method in ("none", "sft"):
                alone[key] = record
    found, left_out = [], []
    for record in records:
        if kind_of(record.method) == "baseline":
            continue
        partner, score = alone.get(_settings(record)), _score(record.results)
        if score is None:
            left_out.append(f"{record.folder.name} was not judged by accuracy")
        elif not _known(score):
            left_out.append(f"the score of {record.folder.name} is {score}, which is no finite number")
        elif partner is None:
            left_out.append(f"{record.folder.name} has no student trained alone with its data, model, settings, seed")
        else:
            found.append(_observation(record, score, partner))
            lost = [QUANTITIES[name] for name, value in _quantities(record, partner).items() if not _known(value)]
            left_out += [f"{name.lower()} of {record.folder.name}, which is no finite number" for name in lost]
    return Matched(tuple(found), tuple(left_out))


def _settings(record: RunRecord) -> str:
    """What a distilled student and the one trained alone have in common."""
    stage = record.stage
    roles = stage.get("roles")
    student = roles.get("student") if isinstance(roles, Mapping) else None
    common = [stage.get("task"), stage.get("data"), student, stage.get("train"), record.seed]
    return json.dumps(common, sort_keys=True, default=str)


def _score(results: Mapping[str, Any]) -> float | None:
    return _read(results, _SCORES)


def _read(results: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    values = (Measure(key, key).read(results) for key in keys)
    return next((value for value in values if value is not None), None)


def _observation(record: RunRecord, score: float, alone: RunRecord) -> Observation:
    quantities = _quantities(record, alone)
    stage = {k: v for k, v in record.stage.items() if k not in ("name",)}
    data = stage.get("data")
    return Observation(
        record.method,
        str(data.get("name")) if isinstance(data, Mapping) else str(data),
        json.dumps(stage, sort_keys=True, default=str),
        record.seed,
        score,
        score - quantities["baseline"],
        {name: value for name, value in quantities.items() if _known(value)},
    )


def _quantities(record: RunRecord, alone: RunRecord) -> dict[str, float]:
    """Returns what was measured of a run, finite or not."""
    found = {name: _read(record.results, keys) for name, keys in _WHERE.items()}
    found |= {"baseline": _score(alone.results), "teacher_score": _score(of_teacher(record.results))}
    return {name: value for name, value in found.items() if value is not None}


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _studied(folders: Sequence[str | Path]) -> tuple[Matched, Study]:
    # A run that is named twice is still one observation.
    once = {Path(folder).resolve(): folder for folder in folders}
    matched = match([read_run(folder) for folder in once.values()])
    if not matched.observations:
        reasons = "; ".join(matched.left_out) or "none of the runs distils a teacher"
        raise RunFolderError(f"there is no pair of a distilled student and one trained alone to compare: {reasons}")
    return matched, study(matched.observations)


def sentences(found: Study) -> tuple[str, ...]:
    """Returns what a study shows, in words."""
    said = []
    for name, tested in found.by_method.items():
        gains = [o.improvement for o in found.observations if o.method == name]
        sure = "above zero" if tested.p < _LEVEL else "not shown to be above zero"
        mean = 100 * sum(gains) / len(gains)
        said.append(f"{name} gains {mean:+.2f} points on average, {sure} ({_p(tested.p)}).")
    if found.between_methods is not None:
        differ = "differ" if found.between_methods.p < _LEVEL else "do not differ by more than chance"
        said.append(f"Methods {differ} ({_p(found.between_methods.p)}, analysis of variance).")
    sure_ones = [c for c in found.correlations if c.corrected < _LEVEL]
    if sure_ones:
        parts = [f"{QUANTITIES[c.quantity].lower()} ({c.rho:+.2f})" for c in sure_ones]
        said.append(f"Gains go along with {', '.join(parts)}.")
    elif found.correlations:
        said.append("Gains go along with nothing that was measured by more than chance.")
    return tuple(said) or ("Too few runs for any test: at least two seeds of a method, three pairs for correlations.",)


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def show_fidelity(folders: Sequence[str | Path]) -> None:
    """Prints what a study of runs shows.

    Raises:
        RunFolderError: a folder is no run, or nothing can be compared.
        MissingExtraError: scipy is not installed.
    """
    matched, found = _studied(folders)
    console = Console()
    console.print(
        f"{len(matched.observations)} distilled students, {len(found.observations)} settings", highlight=False
    )
    for sentence in (*sentences(found), *matched.left_out):
        console.print(sentence, soft_wrap=True, highlight=False)


def report_fidelity(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Writes the fidelity report of many runs.

    Args:
        folders: run folders, distilled students and students trained alone.
        out: the HTML file.

    Raises:
        RunFolderError: a folder is no run, or nothing can be compared.
        MissingExtraError: scipy or the packages of ``limbeck[report]`` are not installed.
    """
    matched, found = _studied(folders)
    drawn = (agreement_and_score(found), *(improvement_against(found, name) for name in _DRAWN))
    figures = tuple(figure for figure in drawn if figure is not None)
    sections: list[Section] = [Text("", sentences(found), tone="lead"), _tests(found)]
    sections += [_correlations(found.correlations)] if found.correlations else []
    sections += [Figures("Gains and what they go along with", figures)] if figures else []
    sections.append(_table(found.observations))
    if matched.left_out:
        sections.append(Text("What is not in this report", tuple(f"{s}." for s in matched.left_out), tone="note"))
    count = f"{len(matched.observations)} distilled students in {len(found.observations)} settings."
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render("Fidelity and generalisation", sections, subtitle=count).encode())
    return path


def _tests(found: Study) -> Table:
    columns = (
        Column("Test", numeric=False),
        Column("Statistic", "t of a one-sample t-test, or F of the analysis of variance."),
        Column("p", "One-sided for t-tests: a mean gain above zero."),
    )
    named: dict[str, Tested] = {f"{name} gains": tested for name, tested in found.by_method.items()}
    named |= {f"gain on {name}, all methods": tested for name, tested in found.by_task.items()}
    if found.between_methods is not None:
        named["methods differ"] = found.between_methods
    rows = tuple((Cell(n), Cell(f"{t.statistic:.3g}", t.statistic), Cell(f"{t.p:.2g}", t.p)) for n, t in named.items())
    return Table("Tests", columns, rows, "Over settings where there are several, else over seeds.")


def _correlations(found: Sequence[Correlation]) -> Table:
    columns = (
        Column("Quantity", numeric=False),
        Column("Spearman", "Rank correlation of the gain with this quantity."),
        Column("p", "Two-sided."),
        Column("p, corrected", "After Holm's correction for all rows."),
        Column("Settings"),
    )
    rows = tuple(
        (
            Cell(QUANTITIES[c.quantity]),
            Cell(f"{c.rho:+.2f}", c.rho),
            Cell(f"{c.p:.2g}", c.p),
            Cell(f"{c.corrected:.2g}", c.corrected),
            Cell(str(c.count), c.count),
        )
        for c in found
    )
    return Table("Correlations of the gain", columns, rows, "Seeds are averaged first. Correlation is no cause.")


def _table(observations: Sequence[Observation]) -> Table:
    known = [n for n in QUANTITIES if any(n in o.quantities for o in observations)]
    columns = (
        Column("Method", numeric=False),
        Column("Data", numeric=False),
        Column("Score", "Accuracy, or the part of tokens that are right."),
        Column("Gain", "Score minus that of the same student trained alone, in percentage points."),
        *(Column(QUANTITIES[name]) for name in known),
    )
    rows = tuple(
        (
            Cell(o.method),
            Cell(o.task),
            Cell(f"{o.score:.2%}", o.score),
            Cell(f"{100 * o.improvement:+.2f}", o.improvement),
            *(Cell("–" if (v := o.quantities.get(name)) is None else f"{v:.4g}", v) for name in known),
        )
        for o in observations
    )
    return Table("Students", columns, rows, "Means over seeds.")
