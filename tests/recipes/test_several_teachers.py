"""Ensembles and routers of live models are judged and weighed as one live teacher is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from limbeck.evaluate import of_teacher
from limbeck.recipes.build import build_stage
from limbeck.recipes.check import check_recipe
from limbeck.recipes.doctor import forecast_memory
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import run_recipe

SMALL: dict[str, Any] = {"name": "llama", "layers": 1, "width": 32, "heads": 2}
LARGE: dict[str, Any] = {**SMALL, "layers": 3}


def language_recipe(tmp_path: Path, teacher: dict[str, Any]) -> dict[str, Any]:
    for name, text in (("a", "the cat sat on the mat. "), ("b", "0123456789 + 1 = 11; ")):
        (tmp_path / f"{name}.txt").write_text(text * 40)
    domains = {name: {"name": "text", "path": str(tmp_path / f"{name}.txt")} for name in ("a", "b")}
    return {
        "task": "causal-lm",
        "data": {"name": "domains", "limit": {"train": 8, "test": 4},
                 "options": {"tokenizer": "bytes", "context": 32, "test": 0.3, "domains": domains}},
        "roles": {"student": {"model": SMALL}, "teacher": teacher},
        "method": {"name": "word_kd"},
        "train": {"epochs": 1, "batch_size": 4, "lr": 0.01},
        "evaluate": ["token_loss", "token_agreement"],
    }  # fmt: skip


TEACHERS = {
    "ensemble": {"ensemble": [{"model": SMALL}, {"model": LARGE}]},
    "router": {"router": {"a": {"ensemble": [{"model": SMALL}]}, "b": {"model": LARGE}}},
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_several_live_teachers_are_judged_and_compared_with(tmp_path: Path, kind: str) -> None:
    results = run_recipe(language_recipe(tmp_path, TEACHERS[kind]), out=tmp_path / "run").results
    compared = results["token_agreement"]
    assert 0 < compared["kl_teacher_student"] < 2
    assert 0 <= compared["top1"] <= 1
    # Untrained, they know nothing of the text.
    assert of_teacher(results)["token_loss"]["loss"] == pytest.approx(math.log(257), abs=0.3)


def test_one_member_says_what_a_live_teacher_does(tmp_path: Path) -> None:
    trained = run_recipe(language_recipe(tmp_path, {"model": LARGE}) | {"seed": 3}, out=tmp_path / "teacher").folder
    weights = str(trained / "stages" / "train" / "student.safetensors")
    member = {"model": SMALL, "weights": weights}
    alone = run_recipe(language_recipe(tmp_path, member), out=tmp_path / "alone").results
    several = run_recipe(language_recipe(tmp_path, {"ensemble": [member, member]}), out=tmp_path / "two").results
    for name, value in of_teacher(alone)["token_loss"].items():
        assert of_teacher(several)["token_loss"][name] == pytest.approx(value, abs=1e-5)
    for name in ("kl_teacher_student", "top5"):
        assert several["token_agreement"][name] == pytest.approx(alone["token_agreement"][name], abs=1e-4)


def test_an_ensemble_on_images_is_compared_with(tmp_path: Path) -> None:
    recipe = {
        "data": {"name": "digits", "limit": {"train": 40, "test": 40}},
        "roles": {"student": {"model": "mlp"}, "teacher": {"ensemble": [{"model": "mlp"}, {"model": "mlp"}]}},
        "method": {"name": "kd"},
        "train": {"epochs": 1, "batch_size": 20},
        "evaluate": ["accuracy", "agreement", "cost"],
    }
    results = run_recipe(recipe, out=tmp_path / "run").results
    assert "top1" in results["agreement"]
    assert "top1" in of_teacher(results)["accuracy"]


@pytest.mark.parametrize("kind", TEACHERS)
def test_check_counts_the_weights_of_all_members(tmp_path: Path, kind: str) -> None:
    def weights(teacher: dict[str, Any]) -> int:
        loaded = load_recipe(language_recipe(tmp_path, teacher))
        return forecast_memory(build_stage(loaded, loaded.stages[0]).stage, vocabulary=257).weights["teacher"]

    assert weights(TEACHERS[kind]) == weights({"model": SMALL}) + weights({"model": LARGE})
    ((rows),) = check_recipe(language_recipe(tmp_path, TEACHERS[kind])).tables.values()
    told = dict(rows)
    assert "of 2 live models" in told["role teacher"]
    assert "weights of teacher" in told["memory"]
