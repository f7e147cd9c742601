"""Tables on terminals of any width: every figure is there in whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from limbeck.bench.columns import facts_of
from limbeck.cli import main
from limbeck.methods.base import methods
from limbeck.recipes.run import FinishedRun
from limbeck.report.catalogue import show_method
from limbeck.report.explanation import explain
from limbeck.report.progress import show_results
from limbeck.report.terminal import print_table

WIDTHS = pytest.mark.parametrize("width", [60, 80, 120])


def printed(table: Table, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        print_table(console, table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, lines)) <= width
    return lines


@WIDTHS
@pytest.mark.parametrize("box", [True, False])
def test_no_figure_is_cut_and_every_row_has_its_name(width: int, box: bool) -> None:
    table = Table(title="results") if box else Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("arm")
    table.add_column("about")
    heads = [f"measure {n}" for n in range(8)]
    for head in heads:
        table.add_column(head, justify="right")
    figures = {arm: [f"{10 * n + k}.25 ± 10.12 %" for n in range(8)] for k, arm in enumerate(("kd", "a_longer_name"))}
    for arm, own in figures.items():
        table.add_row(arm, "words that wrap where the terminal has no room for all of them", *own)
    lines = printed(table, width)
    for arm, own in figures.items():
        row = " ".join(line for line in lines if arm in line)
        assert [figure for figure in own if figure not in row] == []
    text = " ".join(lines)
    assert [head for head in heads if head not in text] == []
    assert "…" not in text
    assert text.count("results") == (1 if box else 0)
    # The further tables are parts of the first, not tables of everything.
    assert text.count("measure 0") == 1


def test_a_table_that_fits_stays_in_one_piece() -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("name")
    table.add_column("accuracy", justify="right")
    table.add_row("kd", "91.75 ± 2.40 %")
    assert printed(table, 80) == ["name        accuracy", "kd    91.75 ± 2.40 %"]


@pytest.mark.parametrize("width", [80, 120])
def test_what_is_said_of_methods_has_all_figures(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    seen = 0
    for name in methods:
        found = explain(name)
        show_method(name)
        said = capsys.readouterr().out
        assert "…" not in said, name
        lost = [term.weight for term in found.terms if len(term.weight) < 20 and term.weight not in said]
        for option in found.hyperparameters:
            lost += [n for n in re.findall(r"\d[\d.e-]*", f"{option.default} {option.values}") if n not in said]
        for result in found.measured:
            for fact in facts_of(result.summaries):
                seen += len(result.summaries)
                lost += [text for arm in result.summaries if (text := fact.text(arm)) not in said]
        assert lost == [], name
    assert seen > 100


@pytest.mark.parametrize("listed", ["methods", "models", "recipes", "data", "bench"])
def test_lists_cut_nothing_at_eighty_letters(
    listed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(width: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        with pytest.raises(SystemExit):
            main([listed])
        return sorted(set(capsys.readouterr().out.split()))

    narrow = words(80)
    assert not [word for word in narrow if "…" in word]
    assert [word for word in words(400) if word not in narrow and len(word) <= 20] == []


def test_results_of_a_run_are_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "34")
    results = {"accuracy": {"top1": 0.9123, "top5": 0.9987, "teacher": {"top1": 0.9345, "top5": 0.9991}}}
    show_results(FinishedRun(Path("runs/a"), {**results, "method": "kd", "seed": 0, "split": "test"}))
    said = capsys.readouterr().out
    assert all(figure in said for figure in ("91.23 %", "93.45 %"))
    assert "…" not in said
