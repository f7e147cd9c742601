"""What a comparison is: one pair of models on one data set, several methods, several seeds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from limbeck.errors import RecipeError, UnknownNameError, suggest
from limbeck.hyperparameters import WholeNumber, validated_model
from limbeck.recipes.load import load_recipe, with_overrides
from limbeck.recipes.schema import Recipe

ALWAYS = ("none", "label_smoothing", "kd")
"""Arms that every comparison has, so that a gain is always seen next to what it costs nothing to have."""


class Suite(BaseModel):
    """A comparison. Each arm changes the method of the common recipe, and may change other sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    about: str = Field("", description="one line for people")
    recipe: dict[str, Any] = Field(description="what all arms share: data, roles, train, evaluate")
    seeds: tuple[WholeNumber, ...] = Field((0, 1, 2), min_length=1, description="seeds of every arm")
    arms: dict[str, dict[str, Any]] = Field(
        description="by label: `method` (the one called like the arm when absent), and sections that differ"
    )

    def recipes(self) -> dict[tuple[str, int], Recipe]:
        """Returns the recipe of each arm and seed.

        Raises:
            RecipeError: an arm is no recipe; the message names the arm and the key.
        """
        arms: dict[str, dict[str, Any]] = {**{label: {} for label in ALWAYS}, **self.arms}
        return {(label, seed): self._recipe(label, arm, seed) for label, arm in arms.items() for seed in self.seeds}

    def _recipe(self, label: str, arm: dict[str, Any], seed: int) -> Recipe:
        data = copy.deepcopy(self.recipe)
        if not {"method", "methods", "stages"} & set(arm):
            data["method"] = {"name": label}
        for key, value in arm.items():
            inherited = data.get(key)
            merge = isinstance(value, dict) and isinstance(inherited, dict) and key in ("train", "roles", "data")
            data[key] = {**inherited, **value} if merge else value  # type: ignore[dict-item]
        try:
            return load_recipe({**data, "seed": seed})
        except RecipeError as error:
            raise RecipeError(f"arm '{label}': {error}") from None


def shipped() -> list[str]:
    """Names of the suites that come with limbeck."""
    return sorted(
        p.name.removesuffix(".yaml")
        for p in (resources.files("limbeck.bench") / "suites").iterdir()
        if p.name.endswith(".yaml")
    )


def load_suite(where: str, overrides: Sequence[str] = ()) -> tuple[str, Suite]:
    """Returns the name of a suite and the suite itself, from a file or by the name of a shipped one.

    Raises:
        UnknownNameError: there is no such file and no such shipped suite.
        RecipeError: the file is not a suite, or an arm in it is no recipe.
    """
    path = Path(where)
    name = path.name.removesuffix(".yaml")
    if path.is_file():
        text = path.read_text("utf-8")
    elif name in shipped():
        text = (resources.files("limbeck.bench") / "suites" / f"{name}.yaml").read_text("utf-8")
    else:
        raise UnknownNameError(f"no suite file '{where}' and no shipped suite of that name. {suggest(name, shipped())}")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"the suite '{where}' is not plain YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"the suite '{where}' should be a mapping with the keys recipe, seeds and arms")
    return name, validated_model(Suite, with_overrides(data, overrides), f"suite '{where}'")
