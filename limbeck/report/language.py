"""Comparisons of language models: a table on the terminal, and a page with what teacher and students write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as Grid

from limbeck.engine.checkpoint import write_atomically
from limbeck.evaluate import Measure, Spread, measures, of_teacher
from limbeck.recipes.arms import FinishedArms
from limbeck.recipes.check import duration
from limbeck.report.arms import Arm, kind_of
from limbeck.report.language_sections import figures, hacking_warnings, tables, writing_tables
from limbeck.report.page import render
from limbeck.report.runs import RunRecord, read_run
from limbeck.report.sections import Cell, Column, Listing, Section, Table, Text
from limbeck.report.terminal import print_table

TEACHER = "teacher"
_OVERVIEW = ("token_loss", "token_agreement", "size")
_SHORT = ("token_loss.loss", "token_loss.accuracy", "token_agreement.kl_teacher_student")
"""What the table on the terminal has room for; the page has everything."""
_LOSS = "token_loss.loss"
_KL = "token_agreement.kl_teacher_student"
Rows = dict[str, tuple[Mapping[str, Any], ...]]


def results_of(finished: FinishedArms) -> Rows:
    """Returns the results of every arm, one a seed, and those of the teacher first."""
    found: Rows = {
        label: tuple(read_run(folder).results for folder in folders) for label, folders in finished.runs.items()
    }
    teachers = [of_teacher(results) for rows in found.values() for results in rows]
    known = tuple(t for t in teachers if "token_loss" in t)[:1]
    return {TEACHER: known, **found} if known else found


def _spread(rows: Sequence[Mapping[str, Any]], measure: Measure) -> Spread | None:
    return Spread.of([value for results in rows if (value := measure.read(results)) is not None])


def verdicts(found: Rows) -> tuple[str, ...]:
    """Returns one sentence an arm about how it compares with ``sft``, in loss and in KL to the teacher.

    A difference counts when it is larger than the spreads of both arms over their seeds together.

    Example:
        >>> rows = {"sft": ({"token_loss": {"loss": 4.0}},), "kd": ({"token_loss": {"loss": 3.5}},)}
        >>> verdicts(rows)
        ('kd: held-out loss 3.500 against 4.000 of sft, lower by 0.500 (one seed, so its spread is not known)',)
    """
    if "sft" not in found:
        return ()
    known = {measure.key: measure for measure in measures(["token_loss", "token_agreement"])}
    sentences = []
    for label, rows in found.items():
        if label in ("sft", TEACHER):
            continue
        parts = [
            said
            for key, title in ((_LOSS, "held-out loss"), (_KL, "KL to the teacher"))
            if (said := _compared(title, _spread(rows, known[key]), _spread(found["sft"], known[key])))
        ]
        if parts:
            sentences.append(f"{label}: {'; '.join(parts)}")
    return tuple(sentences)


def _compared(title: str, arm: Spread | None, sft: Spread | None) -> str:
    if arm is None or sft is None:
        return ""
    gap = arm.mean - sft.mean
    if arm.n < 2 or sft.n < 2:
        doubt = " (one seed, so its spread is not known)"
    else:
        noise = arm.std + sft.std
        doubt = f" ({'more' if abs(gap) > noise else 'not more'} than the seeds' spread of {noise:.3f})"
    way = "lower" if gap < 0 else "higher"
    return f"{title} {arm.mean:.3f} against {sft.mean:.3f} of sft, {way} by {abs(gap):.3f}{doubt}"


def cache_verdicts(found: Rows, stages: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Returns one sentence an arm whose teacher is a cache about how it compares with the same arm and a live teacher.

    Args:
        found: results by arm.
        stages: the last stage of each arm's recipe.
    """
    known = {measure.key: measure for measure in measures(["token_loss", "token_agreement"])}
    sentences = []
    for label, stage in stages.items():
        live = next((other for other in stages if _lives_on(stages[other], stage)), None)
        if live is None:
            continue
        gaps = [
            f"{title} {one.mean - other.mean:+.4f}"
            for key, title in ((_LOSS, "held-out loss"), (_KL, "KL to the teacher"))
            if (one := _spread(found[label], known[key])) and (other := _spread(found[live], known[key]))
        ]
        if gaps:
            sentences.append(f"{label}, from a cache, against {live}, from the live teacher: {', '.join(gaps)}")
    return tuple(sentences)


def _lives_on(live: Mapping[str, Any], cached: Mapping[str, Any]) -> bool:
    """Whether two stages differ in that one's teacher is a live model and the other's a cache."""
    teachers = [stage.get("roles", {}).get("teacher") or {} for stage in (live, cached)]
    alike = all(live.get(key) == cached.get(key) for key in ("data", "method", "transforms", "train"))
    return alike and bool(teachers[0].get("model")) and bool(teachers[1].get("cache"))


def show_arms(finished: FinishedArms) -> None:
    """Prints the table of a comparison and what it says."""
    found = results_of(finished)
    stages = {label: read_run(folders[0]).stage for label, folders in finished.runs.items()}
    shown = [m for m in _shown(found) if m.key in _SHORT]
    # Without lines between columns it fits 80 characters.
    grid = Grid(title=finished.about or finished.folder.name, box=SIMPLE, pad_edge=False)
    grid.add_column("")
    for measure in shown:
        grid.add_column(measure.title, justify="right")
    grid.add_column("Time", justify="right")
    for label, rows in found.items():
        grid.add_row(label, *(m.text(_spread(rows, m)) for m in shown), _time(finished, label))
    console = Console()
    print_table(console, grid)
    for sentence in (*verdicts(found), *cache_verdicts(found, stages)):
        console.print(sentence, soft_wrap=True)


def _shown(found: Rows) -> list[Measure]:
    return [m for m in measures(_OVERVIEW) if any(_spread(rows, m) is not None for rows in found.values())]


def _time(finished: FinishedArms, label: str) -> str:
    taken = [s for what, s in finished.seconds.items() if what.rpartition("-seed")[0] == label]
    return duration(sum(taken) / len(taken)) if taken else "–"


def report_arms(finished: FinishedArms, out: Path | None = None) -> Path:
    """Writes a page about a comparison: the table, held-out loss by epoch, and what everybody writes, side by side.

    Args:
        finished: the comparison.
        out: the HTML file; ``report.html`` in its folder when None.

    Returns:
        The file.

    Raises:
        MissingExtraError: the packages of ``limbeck[report]`` are not installed.
    """
    found = results_of(finished)
    records = {label: [read_run(folder) for folder in folders] for label, folders in finished.runs.items()}
    said = verdicts(found) or ("There is no arm 'sft' to compare with.",)
    said += cache_verdicts(found, {label: group[0].stage for label, group in records.items()})
    sections: list[Section] = [Text("", said, tone="lead")]
    arms = _arms(found, records)
    shown = [table for table in tables(arms) if table is not None and table.title != "Results"]
    sections += [_table(finished, found), *shown]
    sections += [warned] if (warned := hacking_warnings(arms)) is not None else []
    sections += [*figures(arms), *writing_tables(arms)]
    sections += [_recipe_of(label, group[0]) for label, group in records.items()]
    if finished.seconds:
        lines = "\n".join(f"{what}: {duration(seconds)}" for what, seconds in finished.seconds.items())
        sections.append(Listing("What took how long", lines))
    page = render(finished.about or finished.folder.name, sections, subtitle=_subtitle(found, records))
    path = out or finished.folder / "report.html"
    write_atomically(path, page.encode())
    return path


def _arms(found: Rows, records: Mapping[str, Sequence[RunRecord]]) -> list[Arm]:
    """The students as arms of a report, the teacher first."""
    teacher = [Arm(TEACHER, "teacher", found[TEACHER])] if TEACHER in found else []
    return teacher + [
        Arm(label, kind_of(group[0].method), found[label], tuple(r.history for r in group if r.history))
        for label, group in records.items()
    ]


def _subtitle(found: Rows, records: Mapping[str, Sequence[RunRecord]]) -> str:
    first = next(iter(records.values()))
    tokens = next((r[0]["token_loss"]["tokens"] for r in found.values() if r and "tokens" in r[0]["token_loss"]), None)
    seeds = f"{len(first)} seed{'s' if len(first) != 1 else ''}"
    judged = f", judged on {tokens:,} held-out tokens" if tokens else ""
    return f"{len(records)} students of {first[0].model('student') or 'one kind'}, {seeds} each{judged}."


def _table(finished: FinishedArms, found: Rows) -> Table:
    shown = _shown(found)
    best = {m.key: _best(m, found) for m in shown}
    rows = []
    for label, results in found.items():
        cells = [Cell(label)]
        for measure in shown:
            spread = _spread(results, measure)
            value = None if spread is None else spread.mean
            cells.append(Cell(measure.text(spread), value, best=value is not None and value == best[measure.key]))
        rows.append((*cells, Cell(_time(finished, label))))
    columns = (Column("Student", numeric=False), *(Column(m.title, m.explanation) for m in shown), Column("Time"))
    caption = "Mean and deviation over seeds; the best student of each column is marked. All saw the same tokens."
    return Table("Results", columns, tuple(rows), caption)


def _best(measure: Measure, found: Rows) -> float | None:
    means = [s.mean for label, rows in found.items() if label != TEACHER and (s := _spread(rows, measure)) is not None]
    if len(set(means)) < 2 or not measure.better:  # what all have in common distinguishes nobody
        return None
    return max(means) if measure.better == "higher" else min(means)


def _recipe_of(label: str, record: RunRecord) -> Listing:
    import yaml

    recipe = {key: value for key, value in record.recipe.items() if key != "seed"}
    return Listing(f"Recipe of {label}", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
