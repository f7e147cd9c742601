"""The sections beyond accuracy: paired tests, robustness with its pictures, tables of what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from limbeck.report.arms import Arm, arms_of
from limbeck.report.beyond import beyond_sections
from limbeck.report.figures.corruptions import _line, accuracy_by_kind, by_kind, by_severity
from limbeck.report.figures.paired import differences
from limbeck.report.figures.palette import palette
from limbeck.report.run_page import report_runs
from limbeck.report.runs import read_run
from limbeck.report.sections import Figures, ImageGrid, Table
from tests.report.conftest import MakeRun
from tests.report.pages import read_page

KINDS = ("fog", "jpeg_compression", "impulse_noise")


def measured(folder: Path, base: float) -> Path:
    """Adds what `limbeck evaluate` leaves of corruptions, foreign data and rounding."""
    by_kind = {kind: [base - 0.1 * i, base - 0.1 * i - 0.2] for i, kind in enumerate(KINDS)}
    part = {"accuracy": base, "worst": base - 0.3, "clean": base, "by_kind": by_kind, "severities": [1, 5]}
    results = json.loads((folder / "results.json").read_text())
    results["corruptions"] = {**part, "teacher": {**part, "clean": base + 0.1}}
    results["ood"] = {"auroc": 0.9, "fpr95": 0.3}
    results["int8"] = {"weights_bytes": 20_000, "accuracy": base, "drop": 0.0}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def folders(make_run: MakeRun) -> list[Path]:
    return [measured(make_run("none", strength=0.5), 0.6), measured(make_run("kd", strength=2.5), 0.8)]


def arms(folders: list[Path]) -> list[Arm]:
    return arms_of([read_run(folder) for folder in folders])


def test_lines_and_dots_are_means_over_kinds_severities_and_seeds(folders: list[Path]) -> None:
    kd = next(arm for arm in arms(folders) if arm.name == "KD")
    assert _line(kd) == [(0, 0.8), (1, pytest.approx(0.7)), (5, pytest.approx(0.5))]
    assert accuracy_by_kind(kd) == {
        "fog": pytest.approx(0.7), "jpeg_compression": pytest.approx(0.6), "impulse_noise": pytest.approx(0.5),
    }  # fmt: skip
    both = replace(kd, results=(*kd.results, next(a for a in arms(folders) if a.name == "alone").results[0]))
    assert accuracy_by_kind(both)["fog"] == pytest.approx(0.6)
    assert _line(both)[0] == (0, pytest.approx(0.7))


def test_drawings_say_in_words_what_they_show(folders: list[Path]) -> None:
    found = arms(folders)
    severity, kind = by_severity(found, palette(found)), by_kind(found, palette(found))
    assert severity is not None
    assert "KD from 80% to 50%" in severity.alt
    assert kind is not None
    assert "JPEG compression: " in kind.alt
    assert "KD 60%" in kind.alt
    assert by_severity([], {}) is None
    assert by_kind([], {}) is None
    assert differences(found[0], [], {}) is None


def test_sections_hold_what_was_measured_and_nothing_else(folders: list[Path], make_run: MakeRun) -> None:
    pictures = np.full((1, 1, 28, 28), 128, np.uint8)
    sections = {s.title: s for s in beyond_sections(arms(folders), lambda index: pictures)}
    assert list(sections) == [
        "Against alone", "Robustness", "Size and memory", "Robustness to corruptions", "What the corruptions look like",
    ]  # fmt: skip
    table = sections["Robustness"]
    assert isinstance(table, Table)
    assert [c.title for c in table.columns] == [
        "Model", "Corrupted accuracy ↑", "Worst corruption ↑", "OOD AUROC ↑", "OOD FPR95 ↓",
    ]  # fmt: skip
    grid = sections["What the corruptions look like"]
    assert isinstance(grid, ImageGrid)
    shown = grid.groups[0].pictures
    assert [p.truth for p in shown] == ["as it is", "fog: 70%", "JPEG compression: 60%", "impulse noise: 50%"]
    assert len({p.png for p in shown}) == 3  # JPEG leaves a flat picture as it is
    assert shown[1].alt == "Corrupted: fog: 70%."
    assert [s.title for s in beyond_sections(arms([make_run("none", 3), make_run("kd", 3)]))] == ["Against alone"]
    large = np.full((1, 3, 224, 224), 128, np.uint8)
    assert "What the corruptions look like" not in {s.title for s in beyond_sections(arms(folders), lambda i: large)}


def test_the_paired_drawing_shows_the_test_of_the_predictions(folders: list[Path]) -> None:
    section = beyond_sections(arms(folders))[0]
    assert isinstance(section, Figures)
    figure = section.figures[0]
    assert "KD +" in figure.alt
    assert "p < 0.001" in figure.alt
    assert "150 samples" in figure.caption


def test_a_page_has_them(folders: list[Path], tmp_path: Path) -> None:
    page = read_page(report_runs(folders, tmp_path / "report.html").read_text())
    assert "What the corruptions look like" in page.text
    assert "Is the difference more than chance?" in page.text
    assert "Accuracy by kind of corruption" in page.text
