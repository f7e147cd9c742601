"""Grouping of runs, and what may be said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limbeck.evaluate import Spread, measures
from limbeck.report.arms import Arm, arms_of, kind_of
from limbeck.report.comparison import (
    comparison_sections,
    gain,
    highlights,
    points,
    results_table,
    verdict,
)
from limbeck.report.runs import read_run
from tests.report.conftest import MakeRun


def arm(name: str, kind: Any, *accuracies: float, seeds: tuple[int, ...] = (), **more: Any) -> Arm:
    results = tuple({"accuracy": {"top1": value}, **more} for value in accuracies)
    return Arm(name, kind, results, seeds=seeds or tuple(range(len(accuracies))))


TEACHER = arm("teacher big", "teacher", 0.95)


def test_runs_that_differ_in_the_seed_are_one_arm(make_run: MakeRun) -> None:
    folders = [make_run("kd", 1), make_run("none", 0), make_run("kd", 0)]
    arms = arms_of([read_run(folder) for folder in folders])
    assert [(a.name, a.kind, len(a.results)) for a in arms] == [
        ("teacher resnet20", "teacher", 1),
        ("alone", "baseline", 1),
        ("KD", "distilled", 2),
    ]
    assert arms[2].seeds == (0, 1)
    assert arms[2].accuracy == Spread.of(r["accuracy"]["top1"] for r in arms[2].results)
    assert arms[0].role == "teacher"


def test_arms_of_one_method_are_named_by_what_differs(make_run: MakeRun) -> None:
    folders = [make_run("kd", 0, options={"temperature": t}, suffix=f"-{t}") for t in (1, 4)]
    names = {a.name for a in arms_of([read_run(folder) for folder in folders]) if a.kind == "distilled"}
    assert names == {"KD · temperature 1", "KD · temperature 4"}


def test_teachers_of_different_runs_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    first, second = make_run("kd"), make_run("kd", suffix="-other")
    text = (second / "recipe.yaml").read_text().replace("resnet20", "resnet56")
    (second / "recipe.yaml").write_text(text)
    names = {a.name for a in arms_of([read_run(folder) for folder in (first, second)])}
    assert {"teacher resnet20", "teacher resnet56"} <= names
    assert {n for n in names if n.startswith("KD")} == {"KD · model resnet20", "KD · model resnet56"}


def test_kinds_come_from_the_registry() -> None:
    assert kind_of("none") == kind_of("label_smoothing") == "baseline"
    assert kind_of("kd") == kind_of("a method nobody knows") == "distilled"


def test_a_gain_is_taken_seed_by_seed() -> None:
    # The seeds differ a lot, the arms always by 0.01.
    other, student = arm("alone", "baseline", 0.70, 0.80, 0.90), arm("KD", "distilled", 0.71, 0.81, 0.91)
    difference = gain(student, other)
    assert difference is not None
    assert difference.mean == pytest.approx(0.01)
    assert difference.std == pytest.approx(0.0, abs=1e-12)
    assert difference.n == 3


def test_a_gain_over_other_seeds_is_a_difference_of_means() -> None:
    other = arm("alone", "baseline", 0.70, 0.80, seeds=(7, 8))
    student = arm("KD", "distilled", 0.81, 0.91, seeds=(0, 1))
    difference = gain(student, other)
    assert difference is not None
    assert difference.mean == pytest.approx(0.11)
    spread = student.accuracy
    assert spread is not None
    assert difference.std == pytest.approx(spread.std * 2**0.5)


def test_points_have_a_sign() -> None:
    assert points(Spread(0.012, 0.0, 1)) == "+1.20 points"
    assert points(Spread(-0.012, 0.001, 3)) == "−1.20 ± 0.10 points"


def test_the_verdict_claims_no_more_than_the_seeds_allow() -> None:
    alone = arm("alone", "baseline", 0.80, 0.81, 0.82)
    clear = verdict([TEACHER, alone, arm("KD", "distilled", 0.85, 0.86, 0.87)])
    assert "+5.00 ± 0.00 points" in clear
    assert "more accurate by more than the spread" in clear
    assert "closes 36% of the gap" in clear
    within = verdict([TEACHER, alone, arm("KD", "distilled", 0.81, 0.815, 0.82)])
    assert "within the spread of the seeds" in within
    assert "shows no difference" in within
    worse = verdict([TEACHER, alone, arm("KD", "distilled", 0.70, 0.71, 0.72)])
    assert "less accurate by more than the spread" in worse
    assert "closes" not in worse
    single = verdict([arm("alone", "baseline", 0.80), arm("KD", "distilled", 0.9)])
    assert "With one seed there is no telling" in single
    assert "No student trained alone" in verdict([arm("KD", "distilled", 0.9)])
    assert "No distilled student" in verdict([alone])
    many = [alone, *(arm(name, "distilled", 0.85, 0.86) for name in "ABC")]
    assert verdict(many).startswith("A, on this data the best of 3 distilled students, reaches 85.50 ± 0.71 %")


def test_the_verdict_compares_no_different_models() -> None:
    alone = arm("alone", "baseline", 0.80, 0.81, cost={"parameters": 10})
    student = arm("KD", "distilled", 0.90, 0.91, cost={"parameters": 20})
    assert "different models, so this is not the effect of distillation" in verdict([alone, student])


def test_a_seed_without_accuracy_does_not_shift_the_others() -> None:
    other = arm("alone", "baseline", 0.70, 0.80, 0.90)
    student = Arm("KD", "distilled", ({}, *arm("", "distilled", 0.81, 0.91).results), seeds=(0, 1, 2))
    difference = gain(student, other)
    assert difference is not None
    assert difference.mean == pytest.approx(0.86 - 0.80)
    paired = gain(
        Arm("KD", "distilled", student.results[1:], seeds=(1, 2)), arm("a", "baseline", 0.80, 0.90, seeds=(1, 2))
    )
    assert paired is not None
    assert paired.mean == pytest.approx(0.01)


def test_the_best_student_is_marked_and_the_teacher_is_not() -> None:
    arms = [TEACHER, arm("alone", "baseline", 0.80), arm("KD", "distilled", 0.90), arm("AT", "distilled", 0.85)]
    table = results_table("Results", arms, measures(["accuracy"]))
    assert table is not None
    best = {row[0].text: row[1].best for row in table.rows}
    assert best == {"teacher big": False, "alone": False, "KD": True, "AT": False}
    assert [column.title for column in table.columns] == ["Model", "Accuracy ↑", "Over alone"]
    assert table.rows[2][2].text == "+10.00"
    assert "One seed each" in table.caption


def test_of_a_cost_the_smaller_is_better_and_equal_ones_are_not_marked() -> None:
    small, large = {"cost": {"parameters": 10}}, {"cost": {"parameters": 1000}}
    arms = [arm("A", "distilled", 0.8, **large), arm("B", "distilled", 0.8, **small)]
    table = results_table("Cost", arms, measures(["cost"]))
    assert table is not None
    assert [row[1].best for row in table.rows] == [False, True]
    same = results_table("Cost", [arms[0], arm("C", "distilled", 0.8, **large)], measures(["cost"]))
    assert same is not None
    assert [row[1].best for row in same.rows] == [False, False]


def test_students_of_equal_cost_share_a_row(make_run: MakeRun) -> None:
    arms = arms_of([read_run(f) for f in (make_run("kd"), make_run("none"), make_run("none", 1))])
    table = next(s for s in comparison_sections(arms) if s.title == "Cost")
    assert [row[0].text for row in table.rows] == ["teacher resnet20", "alone, KD"]  # type: ignore[union-attr]


def test_highlights_compare_with_the_student_alone_and_the_teacher() -> None:
    teacher = arm("teacher", "teacher", 0.95, cost={"parameters": 1_000_000})
    alone = arm("alone", "baseline", 0.80, 0.82)
    student = arm("KD", "distilled", 0.85, 0.87, cost={"parameters": 50_000}, agreement={"top1": 0.9})
    found = highlights([teacher, alone, student])
    assert found is not None
    assert [item.value for item in found.items] == ["86.00 ± 1.41 %", "+5.00 ± 0.00 points", "90.00 ± 0.00 %", "20×"]
    assert highlights([teacher, alone]) is None
    assert results_table("Results", []) is None
