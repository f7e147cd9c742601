"""Rounds of training and asking: what is asked of whom, what is trained on, and a kill in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from limbeck.engine.interruption import Interrupted
from limbeck.engine.reporter import Reporter
from limbeck.errors import RecipeError
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import reopen, run_recipe
from limbeck.recipes.schema import Recipe


def recipe_of(**active) -> Recipe:
    return load_recipe(
        {
            "data": {"name": "fashion-mnist-small", "limit": {"train": 60, "test": 40}, "labelled": 10},
            "roles": {"teacher": {"model": "mlp"}, "student": {"model": "mlp"}},
            "method": {"name": "kd"},
            "active": {"selector": "pcoreset", "queries": 5, "rounds": 2, **active},
            "train": {"epochs": 1, "batch_size": 20, "lr": 0.05},
            "evaluate": ["accuracy"],
        }
    )


class StopIn(Reporter):
    """Stands for a kill in the middle of a stage."""

    def __init__(self, stage: str) -> None:
        self.stage, self.running, self.trained = stage, "", []

    def stage_started(self, name, progress) -> None:
        self.running = name
        self.trained.append(name)

    def step_done(self, progress, loss) -> None:
        if self.running == self.stage:
            raise Interrupted("killed")


@pytest.mark.parametrize("ask", ["labels", "teacher"])
def test_labels_and_questions_are_counted_apart(tmp_path: Path, ask: str) -> None:
    selector = "pcoreset" if ask == "labels" else {"name": "rad", "teacher_accuracy": 0.8}
    found = run_recipe(recipe_of(ask=ask, selector=selector), out=tmp_path / "run").results["active"]
    labels, questions = found["labels"]["rounds"], found["teacher_queries"]["rounds"]
    if ask == "labels":
        assert [len(part) for part in labels] == [10, 5, 5]
        assert sorted(questions[0]) == list(range(60))
        assert found["teacher_queries"]["total"] == 60
    else:
        assert [len(part) for part in labels] == [10, 0, 0]
        assert [len(part) for part in questions] == [10, 5, 5]
    for parts in (labels, questions):
        every = [sample for part in parts for sample in part]
        assert len(set(every)) == len(every)
    assert len(found["accuracy_by_round"]) == 3
    assert json.loads((tmp_path / "run" / "active.json").read_text()) == found


def test_a_killed_run_goes_on_in_its_round_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = run_recipe(recipe_of(), out=tmp_path / "whole")
    stop = StopIn("round01")
    with pytest.raises(Interrupted):
        run_recipe(recipe_of(), out=tmp_path / "killed", reporter=stop)
    again = StopIn("nowhere")
    finished = run_recipe(recipe_of(), out=tmp_path / "killed", reporter=again)
    assert stop.trained == ["round00", "round01"]
    assert again.trained == ["round01", "round02"]
    assert finished.results == whole.results
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    _, built = reopen(tmp_path / "killed")
    assert built.stage.name == "round02"
    assert int((built.data.train.labels() >= 0).sum()) == 20


def test_rounds_train_on_what_was_asked_about_only(tmp_path: Path) -> None:
    run_recipe(recipe_of(ask="teacher", selector="random"), out=tmp_path / "run")
    _, built = reopen(tmp_path / "run")
    assert len(built.data.train) == 20
    assert int((built.data.train.labels() >= 0).sum()) == 10


@pytest.mark.parametrize(
    ("active", "message"),
    [
        ({"rounds": 20}, "the pool has 60 samples; ask for fewer"),
        ({"selector": "pcorset"}, "pcoreset"),
        ({"ask": "both"}, "ask"),
    ],
)
def test_errors_name_cause_and_fix(tmp_path: Path, active: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run_recipe(recipe_of(**active), out=tmp_path / "run")


def test_numbers_of_samples_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    plain = recipe_of().model_dump(exclude_none=True)
    del plain["active"]
    plain["stages"][0]["data"]["use_ids"] = [1, 60]
    with pytest.raises(RecipeError, match=r"use_ids names sample 60, but there are 60"):
        run_recipe(Recipe.model_validate(plain), out=tmp_path / "run")
    assert torch.is_grad_enabled()


def test_it_must_say_what_it_begins_with(tmp_path: Path) -> None:
    plain = recipe_of().model_dump(exclude_none=True)
    del plain["stages"][0]["data"]["labelled"]
    with pytest.raises(RecipeError, match="how many labels it begins with"):
        run_recipe(Recipe.model_validate(plain), out=tmp_path / "run")
