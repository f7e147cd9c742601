"""Every shipped recipe loads, builds and trains a step; every method has one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.methods.base import methods
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe, shipped
from limbeck.recipes.schema import Recipe
from limbeck.report.explanation import recipes_by_method

SMALL = {"train": 64, "test": 32}


def small(recipe: Recipe, **role_changes: object) -> Recipe:
    """The recipe on a few samples, so that building it takes a moment; nothing else changes."""
    data = recipe.model_dump()
    for stage in data["stages"]:
        stage["data"]["limit"] = SMALL
        stage["train"]["batch_size"] = 32
        for role, change in role_changes.items():
            if role in stage["roles"]:
                stage["roles"][role] = change
    return Recipe.model_validate(data)


def untrained(name: str, model: nn.Module) -> None:
    """Stands for the weights of an earlier stage: the model keeps those it was made with."""


@pytest.mark.parametrize(
    "name", [n for n in shipped() if n.startswith("fashion_mnist_") and not n.endswith("_teacher")]
)
def test_a_shipped_recipe_trains(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    changes = {}
    if any(role.cache is not None for stage in recipe.stages for role in stage.roles.values()):
        changes["teacher"] = {"cache": str(write_cache("fashion_mnist_kd", tmp_path / "cache"))}
    recipe = small(recipe, **changes)
    for spec in recipe.stages:
        built = build_stage(recipe, spec, earlier=untrained)
        student = built.stage.learners["student"]
        before = copy.deepcopy(student.state_dict())
        built.stage.rehearse(built.stage.first_batch())
        assert any(not torch.equal(before[key], value) for key, value in student.state_dict().items())


def write_cache(name: str, out: Path) -> Path:
    from limbeck.recipes.cache import cache_recipe

    cache_recipe(name, ["data.limit={train: 64, test: 32}", "train.batch_size=32"], out=out, epochs=1)
    return out


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_says_what_it_is(name: str) -> None:
    from importlib import resources

    text = (resources.files("limbeck.recipes") / f"{name}.yaml").read_text("utf-8")
    assert text.startswith("# ")
    assert load_recipe(name).about
    assert len(text.splitlines()) <= 20


WITHOUT_SOURCE: set[str] = set()
"""Methods whose batches no source makes yet."""


def test_every_method_has_a_recipe() -> None:
    assert set(methods) - set(recipes_by_method()) == WITHOUT_SOURCE


@pytest.mark.parametrize("name", ["fashion_mnist_kd", "fashion_mnist_dkd", "fashion_mnist_crd"])
def test_recipes_of_one_pair_differ_in_the_method_only(name: str) -> None:
    sections: Callable[[str], object] = lambda n: load_recipe(n).stages[0].model_dump(exclude={"method"})  # noqa: E731
    assert sections(name) == sections("fashion_mnist_none")
