"""What the command shows while it works and when it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from limbeck.engine.reporter import Reporter
from limbeck.report.terminal import print_table
from limbeck.schedules import Progress as StageProgress

if TYPE_CHECKING:
    from pathlib import Path

    from limbeck.evaluate.paired import Paired
    from limbeck.recipes.check import Checked
    from limbeck.recipes.doctor import Finding
    from limbeck.recipes.run import FinishedRun
    from limbeck.recommend import Recommendation
    from limbeck.tuning import Tuned

_SECONDS_BETWEEN_UPDATES = 0.1
_TRIALS_SHOWN = 10


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"), console=console,
    )  # fmt: skip


class ConsoleReporter(Reporter):
    """Progress bars of stages, with the loss and the accuracy of the last evaluation.

    Args:
        console: where to draw; standard error when None.
        quiet: draw nothing.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._progress = _bar(console or Console(stderr=True, quiet=quiet))
        self._task: Any = None
        self._accuracy = self._rate = ""
        self._shown = 0.0

    def __enter__(self) -> ConsoleReporter:
        """Starts to draw."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops to draw."""
        self._progress.stop()

    def note(self, message: str) -> None:
        """Prints the message above the bars."""
        self._progress.console.print(message, highlight=False, soft_wrap=True)

    def stage_started(self, name: str, progress: StageProgress) -> None:
        """Adds a bar, filled as far as the stage had come."""
        total = progress.steps_per_epoch * progress.epochs
        self._accuracy = ""
        self._task = self._progress.add_task(name, total=total, completed=progress.step, note="")

    def measured(self, rates: Mapping[str, float]) -> None:
        """Notes how fast a rollout writes."""
        speed = rates.get("tokens_per_second")
        self._rate = "" if speed is None else f"  {speed:.0f} tokens/s written"

    def step_done(self, progress: StageProgress, loss: float) -> None:
        """Moves the bar, not more often than an eye can follow."""
        now = time.monotonic()
        if now - self._shown >= _SECONDS_BETWEEN_UPDATES:
            self._shown = now
            self._progress.update(
                self._task, completed=progress.step, note=f"loss {loss:.4g}{self._accuracy}{self._rate}"
            )

    def epoch_done(self, record: Mapping[str, Any]) -> None:
        """Notes the accuracy where the epoch was evaluated."""
        evaluation = record.get("evaluation", {})
        shown = {name: value for name, value in evaluation.items() if isinstance(value, float)}
        self._accuracy = "".join(f"  {name} {value:.3f}" for name, value in shown.items())
        self._progress.update(self._task, completed=record["step"], note=f"loss {record['loss']:.4g}{self._accuracy}")


class ProgressBar:
    """One bar for work that is counted: ``update(done, total)``."""

    def __init__(self, description: str) -> None:
        self._progress = _bar(Console(stderr=True))
        self._task = self._progress.add_task(description, total=None, note="")

    def __enter__(self) -> ProgressBar:
        """Starts to draw."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops to draw."""
        self._progress.stop()

    def update(self, done: int, total: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=done, total=total)


def show_results(finished: FinishedRun) -> None:
    """Prints the results of a run, student beside teacher where there is one."""
    from limbeck.evaluate import measures, of_teacher

    results = finished.results
    teacher = of_teacher(results)
    table = Table(
        title=f"{results.get('method', 'student')}, seed {results.get('seed', 0)}, {results.get('split', 'test')} data"
    )
    table.add_column("measure")
    table.add_column("student", justify="right")
    if teacher:
        table.add_column("teacher", justify="right")
    for measure in measures(results):
        row = [measure.text(measure.read(source)) for source in ([results, teacher] if teacher else [results])]
        table.add_row(measure.title, *row)
    console = Console()
    print_table(console, table)
    console.print(f"run folder: {finished.folder}", soft_wrap=True)


def show_paired(folder: Path, against: Path, found: Paired) -> None:
    """Prints how two students compare on the same samples."""
    level = f"{found.difference.level:.0%}"
    rows = (
        ("accuracy", f"{found.accuracy[0]:.2%}", f"{found.accuracy[1]:.2%}"),
        ("right alone", str(found.test.first_only), str(found.test.second_only)),
    )
    table = Table(title=f"{found.samples} samples, the same for both")
    for heading in ("", str(folder), str(against)):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    print_table(console, table)
    console.print(
        f"accuracy {100 * found.difference.value:+.2f} points, {level} interval {100 * found.difference.low:+.2f} to "
        f"{100 * found.difference.high:+.2f}; NLL {found.nll.value:+.4f}, {found.nll.low:+.4f} to "
        f"{found.nll.high:+.4f}; both name one class on {found.agreement:.1%}",
        soft_wrap=True,
    )
    console.print(found.verdict, soft_wrap=True)


def show_recommendation(found: Recommendation) -> None:
    """Prints what is proposed, on what evidence, and what the evidence does not cover."""
    console = Console()
    for number, proposal in enumerate(found.proposals, 1):
        console.print(f"{number}. {proposal.name}, {proposal.role}", style="bold", highlight=False)
        for reason in proposal.reasons:
            console.print(f"   {reason}", soft_wrap=True, highlight=False)
        if proposal.path is not None:
            console.print(f"   limbeck run {proposal.path}", soft_wrap=True, highlight=False)
    console.print("What this does not rest on:", style="bold")
    for gap in found.gaps:
        console.print(f"   {gap}", soft_wrap=True, highlight=False)
    for arm, reason in found.refused.items():
        console.print(f"   {arm} was passed over: {reason}", soft_wrap=True, highlight=False, markup=False)


def show_tuned(found: Tuned) -> None:
    """Prints the trials of a search, best first, and how far the best is above the recipe as it was."""
    names = list(dict.fromkeys(name for trial in found.trials for name in trial.values))
    table = Table(title=f"{len(found.trials)} trials, {found.goal} on {found.samples} held-out samples")
    for heading in ("trial", *names, found.goal):
        table.add_column(heading, justify="right")
    ranked = sorted(found.trials, key=lambda t: (t.value != t.value, -t.value if found.goal == "accuracy" else t.value))
    for trial in ranked[:_TRIALS_SHOWN]:
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in (trial.values.get(n, "") for n in names)]
        label = f"{trial.number} (as it was)" if trial.number == 0 else str(trial.number)
        table.add_row(label, *values, f"{trial.value:.4f}" if trial.value == trial.value else "failed")
    console = Console()
    print_table(console, table)
    noise = f"; the standard error of one accuracy is {found.noise:.4f}" if found.noise == found.noise else ""
    console.print(
        f"the best is {found.gain:.4f} better than the recipe as it was{noise}. "
        f"The best of many trials flatters itself: run it with several seeds\nlimbeck run {found.recipe}",
        soft_wrap=True,
        highlight=False,
    )


def show_check(checked: Checked) -> None:
    """Prints what ``limbeck check`` found."""
    console = Console()
    for title, rows in checked.tables.items():
        table = Table(title=title, show_header=False)
        for row in rows:
            table.add_row(*row)
        print_table(console, table)
        if checked.findings.get(title):
            print_table(console, _findings_table(checked.findings[title]))
    console.print(checked.verdict, soft_wrap=True)


_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def _findings_table(findings: Sequence[Finding]) -> Table:
    table = Table("", "found", "evidence", "fix", title="what the doctor found", show_lines=True)
    for f in findings:
        table.add_row(Text(f.severity, style=_COLOURS[f.severity]), Text(f.what), Text(f.evidence), Text(f.fix))
    return table
