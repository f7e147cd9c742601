"""A comparison as a page: what wins, by how much, and whether the seeds can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from limbeck.bench.table import Row, Summary, apart, summarise
from limbeck.engine.checkpoint import write_atomically
from limbeck.evaluate import measures
from limbeck.evaluate.measure import Measure
from limbeck.report.arms import Arm, kind_of, ordered
from limbeck.report.figures.palette import palette
from limbeck.report.figures.ranking import ranking
from limbeck.report.page import render
from limbeck.report.sections import Cell, Column, Figure, Figures, Section, Table, Text

_COLUMNS = (
    Column("Arm", numeric=False),
    Column("Accuracy", "Top-1 accuracy of the last epoch, mean and standard deviation over seeds."),
    Column("Gain", "Mean difference to the student without distillation of the same seed."),
    Column("Gain over KD", "Mean difference to plain KD of the same seed."),
    Column("Agreement", "How often student and teacher say the same class."),
    Column("ECE", "Expected calibration error; lower is better."),
    Column("Seconds", "Duration of a run on one thread, two runs at a time."),
)


def write_page(name: str, about: str, rows: Sequence[Row], path: Path) -> Path:
    """Writes the page of a comparison and returns its path.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
        RunFolderError: the page cannot be written.
    """
    summaries = summarise(rows)
    sections: list[Section] = [Text("What was compared", tuple(_terms_of(about, rows)))]
    if summaries:
        figure = _ranking(rows)
        sections += [Text("What it says", tuple(findings(summaries)))]
        sections += [Figures("Accuracy", (figure,))] if figure is not None else []
        sections += [_table(summaries)]
    write_atomically(path, render(f"Comparison {name}", sections, subtitle=about).encode())
    return path


def findings(summaries: Sequence[Summary]) -> list[str]:
    """Returns what a comparison says, in sentences that claim no more than its seeds allow."""
    by_arm = {s.arm: s for s in summaries}
    best = summaries[0]
    what = f"runs, {best.folds} folds each" if best.folds else "seeds"
    said = [f"Best mean accuracy: {best.arm}, {_percent(best.mean, best.spread)} over {best.seeds} {what}."]
    for base in ("none", "kd"):
        if base not in by_arm:
            continue
        others = [s for s in summaries if s.arm != base]
        better = [s.arm for s in others if apart(s, by_arm[base]) > 0]
        worse = [s.arm for s in others if apart(s, by_arm[base]) < 0]
        title = "the student without distillation" if base == "none" else "plain KD"
        said.append(
            f"Against {title} ({_percent(by_arm[base].mean, by_arm[base].spread)}): {_named(better)} better "
            f"and {_named(worse)} worse by more than two standard errors of the difference; "
            "the other arms cannot be told from it."
        )
    return said


def _named(arms: Sequence[str]) -> str:
    if not arms:
        return "no arm is"
    return f"{', '.join(sorted(arms))} {'is' if len(arms) == 1 else 'are'}"


def _terms_of(about: str, rows: Sequence[Row]) -> list[str]:
    if not rows:
        return [about, "No run has finished yet."]
    first = rows[0]
    teacher = [r.teacher_accuracy for r in rows if not math.isnan(r.teacher_accuracy)]
    with_accuracy = f" (accuracy {100 * teacher[0]:.2f} %)" if teacher else ""
    seeds = sorted({r.seed for r in rows})
    folds = sorted({r.fold for r in rows if r.fold is not None})
    crossed = (
        f" Every arm and seed was run once for each of {len(folds)} folds of the data; they share training samples, so "
        "the spread over them is somewhat smaller than that over data drawn anew."
        if folds
        else ""
    )
    return [
        f"Data {first.data}; teacher {first.teacher}{with_accuracy}; student {first.student}; "
        f"judged on the {first.split} data.",
        f"Seeds {', '.join(map(str, seeds))}. With a seed, every arm starts from the same weights and sees "
        f"the same samples in the same order. Figures are those of the last epoch. "
        f"Measured on {first.processor}.{crossed}",
    ]


def _ranking(rows: Sequence[Row]) -> Figure | None:
    arms: dict[str, list[Row]] = {}
    for row in rows:
        arms.setdefault(row.arm, []).append(row)
    made = ordered(
        Arm(
            name=name,
            kind=kind_of(runs[0].method),
            results=tuple({"accuracy": {"top1": r.accuracy}} for r in runs),
            seeds=tuple(r.seed for r in runs),
        )
        for name, runs in arms.items()
    )
    return ranking(made, palette(made), measures(["accuracy"])[0])


def _table(summaries: Sequence[Summary]) -> Table:
    best = max(s.mean for s in summaries)
    further = further_measures(summaries)
    rows = tuple(
        (
            Cell(s.arm),
            Cell(_percent(s.mean, s.spread), s.mean, best=s.mean == best),
            Cell(_signed(s.gain), s.gain),
            Cell(_signed(s.gain_over_kd), s.gain_over_kd),
            Cell(_or_dash(s.agreement, f"{100 * s.agreement:.1f} %"), s.agreement),
            Cell(_or_dash(s.ece, f"{100 * s.ece:.1f} %"), s.ece),
            *(
                Cell(m.text(s.measures.get(m.key)), s.measures[m.key].mean if m.key in s.measures else None)
                for m in further
            ),
            Cell(_or_dash(s.seconds, f"{s.seconds:.0f}"), s.seconds),
        )
        for s in summaries
    )
    columns = (*_COLUMNS[:-1], *(Column(m.title, m.explanation) for m in further), _COLUMNS[-1])
    return Table("All arms", columns, rows, "Sorted by accuracy.")


def further_measures(summaries: Sequence[Summary]) -> list[Measure]:
    """Returns the measures that some arm has beside those that every comparison tells, as far as they are known."""
    keys = dict.fromkeys(key for s in summaries for key in s.measures)
    return [m for m in measures(dict.fromkeys(key.partition(".")[0] for key in keys)) if m.key in keys]


def _percent(mean: float, spread: float) -> str:
    return f"{100 * mean:.2f} ± {100 * spread:.2f} %"


def _signed(value: float) -> str:
    return _or_dash(value, f"{100 * value:+.2f}")


def _or_dash(value: float, text: str) -> str:
    return "–" if math.isnan(value) else text
