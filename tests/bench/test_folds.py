"""Comparisons that cross-validate, that build on a run of their own, and that measure more than accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import limbeck.bench.run
from limbeck.bench.page import findings
from limbeck.bench.run import run_folder, run_one, run_suite
from limbeck.bench.suite import Suite, arm_of, load_suite
from limbeck.bench.table import Row, read_csv, summarise
from limbeck.errors import LimbeckError, RecipeError
from limbeck.recipes.load import as_plain
from limbeck.recipes.schema import Recipe

TEACHER: dict[str, Any] = {"model": {"name": "mlp", "hidden": [16]}}
CROSSED: dict[str, Any] = {
    "folds": 2,
    "recipe": {
        "data": {"name": "vowel", "options": {"split_seed": 5}},
        "train": {"epochs": 1, "batch_size": 256, "optimizer": "adamw", "lr": 0.01},
        "stages": [
            {"name": "teacher", "roles": {"student": TEACHER}, "method": {"name": "focal", "average_from": 0.0}},
            {
                "name": "student",
                "roles": {"teacher": {"from_stage": "teacher"}, "student": {**TEACHER, "fresh": True}},
                "method": "kd",
            },
        ],
        "evaluate": ["accuracy", "agreement", {"name": "groups", "fewest": 2}],
    },
    "seeds": [0],
    "arms": {"softer": {"method": {"name": "kd", "temperature": 8.0}}},
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of their own, which every comparison of the command has, take seconds to start."""

    def run_here(recipes: dict[tuple[str, int], Recipe], folder: Path, **_: Any) -> Iterator[tuple[str, str]]:
        for (label, seed), recipe in recipes.items():
            yield f"{label}-seed{seed}", run_one(as_plain(recipe), str(run_folder(folder, label, seed)), False)

    monkeypatch.setattr(limbeck.bench.run, "run_recipes", run_here)


def suite(data: dict[str, Any]) -> Suite:
    return Suite.model_validate(data)


def test_every_arm_runs_on_every_fold_and_changes_the_last_stage_alone() -> None:
    recipes = suite(CROSSED).recipes()
    assert {arm_of(label) for label, _ in recipes} == {
        (arm, fold) for arm in ("none", "label_smoothing", "kd", "softer") for fold in (0, 1)
    }
    for (label, _), recipe in recipes.items():
        teacher, student = recipe.stages
        assert teacher.method_name == "focal"
        arm, fold = arm_of(label)
        assert student.method_name == ("kd" if arm == "softer" else arm)
        for stage in recipe.stages:
            assert stage.data.options == {"split_seed": 5, "fold": fold, "folds": 2}


def test_one_command_gives_mean_and_spread_over_folds(tmp_path: Path) -> None:
    path, out = tmp_path / "crossed.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump({**CROSSED, "arms": {}}))
    page = run_suite(str(path), out=out, workers=1)
    rows = read_csv(out / "results.csv")
    assert [(row.arm, row.fold) for row in rows] == [(a, f) for a in ("none", "label_smoothing", "kd") for f in (0, 1)]
    # Groups of a fold are speakers that nobody saw in training; the page tells the worst of them.
    assert all(0 <= row.measures["groups.worst"] <= row.accuracy for row in rows)
    summaries = {s.arm: s for s in summarise(rows)}
    assert (summaries["kd"].folds, summaries["kd"].seeds) == (2, 2)
    assert summaries["kd"].mean == pytest.approx(sum(r.accuracy for r in rows if r.arm == "kd") / 2)
    assert summaries["kd"].measures["groups.worst"].n == 2
    assert "2 folds" in findings(list(summaries.values()))[0]
    assert "Worst group" in page.read_text()


def row(arm: str, fold: int, accuracy: float) -> Row:
    nan = float("nan")
    return Row("s", "d", "t", "u", arm, arm, 0, 1, "test", accuracy, nan, nan, nan, nan, nan, "p", fold=fold)


def test_gains_are_taken_fold_by_fold() -> None:
    rows = [row("none", 0, 0.5), row("none", 1, 0.9), row("kd", 1, 0.8)]
    assert {s.arm: s.gain for s in summarise(rows)}["kd"] == pytest.approx(-0.1)


PREPARED: dict[str, Any] = {
    "prepare": {
        "first": {
            "data": {"name": "vowel"}, "roles": {"student": TEACHER}, "method": "none",
            "train": {"epochs": 1, "batch_size": 256}, "evaluate": ["accuracy"],
        }
    },
    "recipe": {
        "data": {"name": "vowel"},
        "roles": {"teacher": {**TEACHER, "weights": "$prepared/first"}, "student": TEACHER},
        "train": {"epochs": 1, "batch_size": 256},
        "evaluate": ["accuracy", "agreement"],
    },
    "seeds": [3, 4],
    "arms": {},
}  # fmt: skip


def test_what_arms_build_on_runs_once_and_before_them(tmp_path: Path) -> None:
    path, out = tmp_path / "prepared.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(PREPARED))
    run_suite(str(path), out=out, workers=1)
    rows = read_csv(out / "results.csv")
    assert len({row.teacher_accuracy for row in rows}) == 1
    assert {row.seed for row in rows} == {3, 4}
    done = list((out / "prepared" / "runs").iterdir())
    assert [folder.name for folder in done] == ["first-seed3"]


def test_what_cannot_be_prepared_or_crossed_is_explained(tmp_path: Path) -> None:
    wrong = {
        **PREPARED,
        "recipe": {**PREPARED["recipe"], "roles": {"teacher": {"model": "x", "weights": "$prepared/frist"}}},
    }
    with pytest.raises(RecipeError, match="Did you mean 'first'"):
        suite(wrong).recipes()
    with pytest.raises(RecipeError, match="cross-validation sets the data's fold"):
        suite({**PREPARED, "folds": 2, "recipe": {**PREPARED["recipe"], "data": "vowel"}}).recipes()
    broken = {**PREPARED, "prepare": {"first": {**PREPARED["prepare"]["first"], "method": "nonne"}}}
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(broken))
    with pytest.raises(LimbeckError, match=r"builds on failed, first-seed3: .*'none'"):
        run_suite(str(path), out=tmp_path / "out", workers=1)


@pytest.mark.parametrize("name", ["breast_cancer_kd_oct", "radio_skd"])
def test_students_alone_and_with_plain_kd_stand_beside_each_other(name: str) -> None:
    arms = {arm_of(label)[0] for label, _ in load_suite(name)[1].recipes()}
    assert {"none", "label_smoothing", "kd"} < arms
