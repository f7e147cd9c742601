from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.errors import RecipeError
from limbeck.recipes.load import load_recipe
from limbeck.recipes.search import rank_correlations, search_recipe
from limbeck.students.search.evolve import Budget, Settings

SMALL = ["data.limit={train: 64, test: 32}", "train.epochs=1", "train.batch_size=32", "evaluate=[accuracy]"]


def test_a_search_writes_a_recipe_that_runs_and_correlates_scores_with_accuracy(tmp_path: Path) -> None:
    settings = Settings(candidates=3, population=2, budget=Budget(parameters=120_000))
    recipe = {
        "data": "digits", "roles": {"teacher": "resnet8", "student": "resnet8"}, "method": "kd",
    }  # fmt: skip
    found = search_recipe(recipe, SMALL, out=tmp_path, settings=settings, batch=16)
    assert found.candidates[0].value == max(c.value for c in found.candidates)
    written = load_recipe(str(found.recipe))
    assert written.stages[-1].roles["student"].model == found.candidates[0].spec
    again = search_recipe(recipe, SMALL, out=tmp_path, settings=settings, batch=16)
    assert again.candidates == found.candidates
    said = rank_correlations(recipe, found, 3, out=tmp_path / "runs", overrides=SMALL)
    assert {"relation", "semantic", "parameters", "macs", "value"} <= set(said)
    assert all(-1 <= v <= 1 for pair in said.values() for v in pair.values())


def test_a_recipe_without_a_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"roles\.teacher"):
        search_recipe({"data": "digits", "roles": {"student": "resnet8"}, "method": "none"}, out=tmp_path)
