"""A comparison as a page: what wins, by how much, and whether the seeds can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.bench.columns import Fact, called, facts_of
from limbeck.bench.table import Row, Summary, apart, of_teacher, summarise
from limbeck.bench.terms import ACCURACY, Terms, terms_of
from limbeck.engine.checkpoint import write_atomically
from limbeck.report.arms import Arm, kind_of, ordered
from limbeck.report.figures.palette import palette
from limbeck.report.figures.ranking import ranking
from limbeck.report.page import render
from limbeck.report.sections import Cell, Column, Figure, Figures, Section, Table, Text


def write_page(name: str, about: str, rows: Sequence[Row], path: Path, terms: Terms | None = None) -> Path:
    """Writes the page of a comparison and returns its path.

    Args:
        name: name of the comparison.
        about: what it compares, in a line.
        rows: its runs.
        path: the HTML file.
        terms: how it judges; by accuracy when None.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
        RunFolderError: the page cannot be written.
    """
    terms = terms or terms_of(ACCURACY)
    summaries = summarise(rows, terms)
    sections: list[Section] = [Text("What was compared", tuple(_compared(about, rows, terms)))]
    if summaries:
        figure = _ranking(rows, terms)
        sections += [Text("What it says", tuple(findings(summaries)))]
        sections += [Figures(terms.criterion.title, (figure,))] if figure is not None else []
        sections += [_table(name, summaries)]
    write_atomically(path, render(f"Comparison {name}", sections, subtitle=about).encode())
    return path


def findings(summaries: Sequence[Summary]) -> list[str]:
    """Returns what a comparison says, in sentences that claim no more than its seeds allow."""
    by_arm = {s.arm: s for s in summaries}
    best = summaries[0]
    terms = best.terms
    title, figures = terms.criterion.title.lower(), terms.text(best.mean, best.spread, several=best.seeds > 1)
    if all(s.seeds == 1 for s in summaries):
        return [f"Best {title}: {best.arm}, {figures}. One seed does not tell how much of a difference is chance."]
    what = f"runs, {best.folds} folds each" if best.folds else "seed" if best.seeds == 1 else "seeds"
    said = [f"Best mean {title}: {best.arm}, {figures} over {best.seeds} {what}."]
    for name in dict.fromkeys((terms.first, terms.last)):
        base = by_arm.get(name)
        if base is None:
            continue
        others = [s for s in summaries if s is not base]
        better = [s.arm for s in others if apart(s, base) > 0]
        worse = [s.arm for s in others if apart(s, base) < 0]
        figures = terms.text(base.mean, base.spread, several=base.seeds > 1)
        said.append(
            f"Against {called(name)} ({figures}): {_named(better)} better "
            f"and {_named(worse)} worse by more than two standard errors of the difference; "
            "the other arms cannot be told from it."
        )
    return said


def _named(arms: Sequence[str]) -> str:
    if not arms:
        return "no arm is"
    return f"{', '.join(sorted(arms))} {'is' if len(arms) == 1 else 'are'}"


def _compared(about: str, rows: Sequence[Row], terms: Terms) -> list[str]:
    if not rows:
        return [about, "No run has finished yet."]
    first = rows[0]
    key, title = of_teacher(terms.criterion.key), terms.criterion.title.lower()
    teacher = [r.value(key) for r in rows if not math.isnan(r.value(key))]
    how_good = f" ({title} {terms.text(teacher[0], several=False)})" if teacher else ""
    seeds = sorted({r.seed for r in rows})
    folds = sorted({r.fold for r in rows if r.fold is not None})
    crossed = (
        f" Every arm and seed was run once for each of {len(folds)} folds of the data; they share training samples, so "
        "the spread over them is somewhat smaller than that over data drawn anew."
        if folds
        else ""
    )
    return [
        f"Data {first.data}; teacher {first.teacher}{how_good}; student {first.student}; "
        f"judged on the {first.split} data.",
        f"Seeds {', '.join(map(str, seeds))}. With a seed, every arm starts from the same weights and sees "
        f"the same samples in the same order. Figures are those of the last epoch. "
        f"Measured on {first.processor}.{crossed}",
    ]


def _ranking(rows: Sequence[Row], terms: Terms) -> Figure | None:
    arms: dict[str, list[Row]] = {}
    for row in rows:
        arms.setdefault(row.arm, []).append(row)
    made = ordered(
        Arm(
            name=name,
            kind=kind_of(runs[0].method),
            results=tuple(_nested(terms.criterion.key, r.value(terms.criterion.key)) for r in runs),
            seeds=tuple(r.seed for r in runs),
        )
        for name, runs in arms.items()
    )
    return ranking(made, palette(made), terms.criterion)


def _nested(key: str, value: float) -> dict[str, Any]:
    """Puts a value where the results of a run have it."""
    first, dot, rest = key.partition(".")
    return {first: _nested(rest, value) if dot else value}


def _table(name: str, summaries: Sequence[Summary]) -> Table:
    best = summaries[0].mean
    facts = facts_of(summaries)
    columns = [Column("Arm", numeric=False), *(Column(fact.title, fact.explanation) for fact in facts)]
    timed = any(not math.isnan(s.seconds) for s in summaries)
    columns += [Column("Seconds", "Duration of a run on one thread, two runs at a time.")] if timed else []
    rows = tuple(
        (
            Cell(s.arm),
            *(_cell(fact, s, best=n == 0 and s.mean == best) for n, fact in enumerate(facts)),
            *([Cell(_or_dash(s.seconds, f"{s.seconds:.0f}"), s.seconds)] if timed else []),
        )
        for s in summaries
    )
    again = f"limbeck bench {name} --arm '{summaries[0].arm}'"
    note = f"Sorted by {summaries[0].terms.criterion.title.lower()}. One row is run again by its name: {again}."
    return Table("All arms", tuple(columns), rows, note)


def _cell(fact: Fact, summary: Summary, *, best: bool) -> Cell:
    return Cell(fact.text(summary), fact.value(summary), best=best)


def _or_dash(value: float, text: str) -> str:
    return "–" if math.isnan(value) else text
