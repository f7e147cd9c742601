"""The page and the table of the teacher-hacking lab."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from limbeck.engine.checkpoint import write_atomically
from limbeck.evaluate.teacher_hacking import Curves, Judgement
from limbeck.functional.teacher_hacking import Turn
from limbeck.recipes.hacking import FinishedLab, SourceCurves
from limbeck.report.figures.canvas import series
from limbeck.report.figures.language import golden_curves, proxy_against_golden, proxy_by_epoch
from limbeck.report.figures.palette import Look
from limbeck.report.page import render
from limbeck.report.sections import Cell, Column, Figure, Figures, Section, Table, Text
from limbeck.report.terminal import print_table

_GOLDEN, _PROXY = "distance to the oracle, nats", "distance to the teacher, nats"
_HEADS = (
    Column("Source", "Where the student's sequences came from.", numeric=False),
    Column("To the teacher", "Proxy: forward KL from the teacher, nats a sequence, after the last epoch."),
    Column("To the oracle", "Golden: forward KL from the oracle, nats a sequence, after the last epoch."),
    Column("Lowest", "Lowest distance to the oracle after any epoch."),
    Column("Epoch", "The epoch of the lowest distance."),
    Column("Rise", "Last over lowest distance to the oracle, minus 1."),
    Column("p", "Probability of such a rise by chance: paired over held-out prompts, corrected for the epochs."),
    Column("Hacking", "The oracle's curve turned while the teacher's fell.", numeric=False),
)


def verdicts(finished: FinishedLab) -> tuple[str, ...]:
    """Returns what the lab shows, a sentence a point."""
    hacking = [name for name, curve in finished.curves.items() if curve.hacking]
    ends = {name: curve.golden[-1] for name, curve in finished.curves.items()}
    best = min(ends, key=lambda name: ends[name])
    sentences = [
        f"Teacher hacking: {', '.join(hacking)}." if hacking else "No source led to teacher hacking.",
        f"{best} ends nearest to the oracle, at {ends[best]:.3g} nats a sequence; the teacher is "
        f"{finished.teacher_distance:.3g} from it, and the student began at {finished.start:.3g}.",
    ]
    if finished.starts_nearer:
        sentences.append(
            "The student began nearer to the oracle than the teacher is, so any faithful distillation takes it away "
            "from the oracle; a rise up to the teacher's own distance is convergence, not hacking."
        )
    return tuple(sentences)


def _row(name: str, curve: SourceCurves) -> tuple[Cell, ...]:
    lowest = min(curve.golden[1:])
    numbers = (curve.proxy[-1], curve.golden[-1], lowest)
    return (
        Cell(name),
        *(Cell(f"{value:.3g}", value) for value in numbers),
        Cell(str(curve.best_epoch), curve.best_epoch),
        Cell(f"{curve.rise:.1%}", curve.rise),
        Cell("–" if curve.p is None else f"{curve.p:.1g}", curve.p),
        Cell("yes" if curve.hacking else "no"),
    )


def show_lab(finished: FinishedLab) -> None:
    """Prints the table of a lab and what it shows."""
    grid = Grid(title=finished.about or finished.folder.name)
    for column in _HEADS:
        grid.add_column(column.title, justify="right" if column.numeric else "left")
    for name, curve in finished.curves.items():
        grid.add_row(*(cell.text for cell in _row(name, curve)))
    console = Console()
    print_table(console, grid)
    for sentence in verdicts(finished):
        console.print(sentence, soft_wrap=True, highlight=False)


def report_lab(finished: FinishedLab, out: Path | None = None) -> Path:
    """Writes a page about a lab: what it shows, the table, and the curves of both distances.

    Args:
        finished: the lab.
        out: the HTML file; ``report.html`` in its folder when None.

    Raises:
        MissingExtraError: the packages of ``limbeck[report]`` are not installed.
    """
    rows = tuple(_row(name, curve) for name, curve in finished.curves.items())
    caption = "Distances on held-out prompts, on sequences that oracle and teacher wrote once for all students."
    sections: list[Section] = [
        Text("", verdicts(finished), tone="lead"),
        Table("Results", _HEADS, rows, caption),
        Figures("Distances while training", _drawings(finished)),
    ]
    page = render(finished.about or finished.folder.name, sections, subtitle="Oracle, teacher and student")
    path = out or finished.folder / "report.html"
    write_atomically(path, page.encode())
    return path


def _drawings(finished: FinishedLab) -> tuple[Figure, ...]:
    lines = ("-", (0, (4, 2)), (0, (1.2, 1.4)), (0, (5, 1, 1, 1)))
    looks = {
        name: Look(number, series(number), "osD^v"[number % 5], lines[number % len(lines)])
        for number, name in enumerate(finished.curves)
    }
    curves = {name: _curves(curve) for name, curve in finished.curves.items()}
    level = (finished.teacher_distance, "the teacher")
    drawn = (
        golden_curves(curves, looks, level=level),
        proxy_by_epoch(curves, looks),
        proxy_against_golden(curves, looks),
    )
    return tuple(figure for figure in drawn if figure is not None)


def _curves(found: SourceCurves) -> tuple[Curves, Judgement]:
    """The curves with the student's beginning as epoch 0."""
    place = found.epochs.index(found.best_epoch)
    curves = Curves(found.epochs, found.proxy, found.golden, (), _PROXY, _GOLDEN)
    return curves, Judgement(Turn(found.hacking, place, found.rise), found.p, None)
