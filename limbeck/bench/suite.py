"""What a comparison is: one pair of models on one data set, several methods, several seeds."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, Field

from limbeck.bench.terms import ACCURACY, ALWAYS, Terms, terms_of
from limbeck.errors import RecipeError, UnknownNameError, suggest
from limbeck.evaluate import planned
from limbeck.hyperparameters import WholeNumber, validated_model
from limbeck.recipes.load import STAGE_KEYS, laid_over, load_recipe, with_overrides
from limbeck.recipes.schema import Recipe

_FOLD = " fold "
_PREPARED = "$prepared/"


def label_of(arm: str, fold: int | None) -> str:
    """Returns what the runs of an arm, and of a fold of the data where there are folds, are called.

    Example:
        >>> label_of("kd", None), label_of("kd", 2)
        ('kd', 'kd fold 2')
    """
    return arm if fold is None else f"{arm}{_FOLD}{fold}"


def arm_of(label: str) -> tuple[str, int | None]:
    """Returns the arm and the fold of what :func:`label_of` made."""
    arm, found, fold = label.rpartition(_FOLD)
    return (arm, int(fold)) if found else (label, None)


class Suite(BaseModel):
    """A comparison. Each arm changes the method of the common recipe, and may change other sections.

    Where the common recipe has several stages, an arm changes the last one, unless it names stages of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    about: str = Field("", description="one line for people")
    recipe: dict[str, Any] = Field(description="what all arms share: data, roles, train, evaluate")
    seeds: tuple[WholeNumber, ...] = Field((0, 1, 2), min_length=1, description="seeds of every arm")
    folds: Annotated[int, Ge(2)] | None = Field(
        None,
        description="cross-validation: every arm and seed runs once for each fold, with the data's options fold and "
        "folds",
    )
    baselines: tuple[str, ...] = Field(
        ALWAYS,
        min_length=1,
        description="arms that every arm is held against: the first is a student that learns alone, the last is plain "
        "distillation",
    )
    criterion: str = Field(
        ACCURACY, description="key of the measure that ranks arms, such as token_loss.loss; an evaluation takes it"
    )
    columns: tuple[str, ...] | None = Field(
        None, description="keys of the further measures that tables show; all that the evaluations take when absent"
    )
    prepare: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="recipes that run once before the arms, each of which may build on those before it; "
        "`$prepared/NAME` is the folder of such a run, in weights for example",
    )
    arms: dict[str, dict[str, Any]] = Field(
        description="by label: `method` (the one called like the arm when absent), and sections that differ"
    )

    @property
    def terms(self) -> Terms:
        """How the comparison judges.

        Raises:
            RecipeError: no evaluation takes the criterion or a column.
        """
        return terms_of(self.criterion, self.baselines, self.columns)

    def recipes(self, prepared: Mapping[str, Path] | None = None) -> dict[tuple[str, int], Recipe]:
        """Returns the recipe of each arm, and fold where there are any, by label (:func:`label_of`) and seed.

        Args:
            prepared: the run folder of each recipe of ``prepare``; folders of these names when None.

        Raises:
            RecipeError: an arm is no recipe, or does not take the criterion; the message names the arm and the key.
        """
        where = {name: Path(name) for name in self.prepare} if prepared is None else prepared
        arms: dict[str, dict[str, Any]] = {**{label: {} for label in self.baselines}, **self.arms}
        folds = [None] if self.folds is None else range(self.folds)
        return {
            (label_of(name, fold), seed): self._recipe(name, _in_place(arm, where), seed, fold, where)
            for name, arm in arms.items()
            for fold in folds
            for seed in self.seeds
        }

    def preparations(self, prepared: Mapping[str, Path] | None = None) -> list[dict[tuple[str, int], Recipe]]:
        """Returns the recipes that run before the arms, by name and the comparison's first seed.

        Each may build on those that stand before it; the entries of the list run one after another.

        Args:
            prepared: the run folder of each; folders of these names when None.

        Raises:
            RecipeError: one is no recipe, or names what does not stand before it; the message names it.
        """
        where = {name: Path(name) for name in self.prepare} if prepared is None else prepared
        turns: dict[str, int] = {}
        found: list[dict[tuple[str, int], Recipe]] = []
        for name, data in self.prepare.items():
            known = {earlier: where[earlier] for earlier in turns}
            used: set[str] = set()
            try:
                recipe = load_recipe({"seed": self.seeds[0], **_in_place(data, known, used)})
            except RecipeError as error:
                raise RecipeError(f"prepare '{name}': {error}") from None
            turns[name] = max((turns[earlier] + 1 for earlier in used), default=0)
            if turns[name] == len(found):
                found.append({})
            found[turns[name]][name, self.seeds[0]] = recipe
        return found

    def _recipe(
        self, name: str, arm: dict[str, Any], seed: int, fold: int | None, prepared: Mapping[str, Path]
    ) -> Recipe:
        data = _in_place(copy.deepcopy(self.recipe), prepared)
        if not {"method", "methods", "stages"} & set(arm):
            arm = {**arm, "method": {"name": name}}
        changed = {key: value for key, value in arm.items() if key in STAGE_KEYS}
        rest = {key: value for key, value in arm.items() if key not in changed}
        try:
            if fold is not None and "data" in changed:  # the folds of all stages are those of the same data
                data = {**data, **laid_over({"data": data.get("data")}, {"data": changed.pop("data")})}
            if "stages" in data and "stages" not in rest:
                data["stages"] = [*data["stages"][:-1], laid_over(data["stages"][-1], changed)]
                data.update(rest)
            else:
                _change(data, {**changed, **rest})
            if fold is not None:
                _choose_fold(data, fold, self.folds)
            recipe = load_recipe({**data, "seed": seed})
            self._check_criterion(recipe)
            return recipe
        except RecipeError as error:
            raise RecipeError(f"arm '{name}': {error}") from None

    def _check_criterion(self, recipe: Recipe) -> None:
        evaluation = self.criterion.partition(".")[0]
        if evaluation not in planned(recipe.evaluate):
            raise RecipeError(
                f"the comparison ranks arms by {self.criterion}, but the recipe does not evaluate it; add "
                f"{evaluation} to `evaluate`, or choose another `criterion`"
            )


def _change(data: dict[str, Any], arm: dict[str, Any]) -> None:
    """Lays an arm's sections over the common recipe; those that describe more than one thing are merged."""
    for key, value in arm.items():
        inherited = data.get(key)
        merge = isinstance(value, dict) and isinstance(inherited, dict) and key in ("train", "roles", "data")
        data[key] = {**inherited, **value} if merge else value  # type: ignore[dict-item]


def _choose_fold(data: dict[str, Any], fold: int, folds: int | None) -> None:
    """Sets the fold of the data, which all stages share."""
    given = data.get("data")
    if not isinstance(given, dict) or any("data" in stage for stage in data.get("stages", ())):
        raise RecipeError("a cross-validation sets the data's fold, so all stages share `data: {name: ...}`")
    data["data"] = {**given, "options": {**given.get("options", {}), "fold": fold, "folds": folds}}


def _in_place(value: Any, prepared: Mapping[str, Path], used: set[str] | None = None) -> Any:
    """Puts run folders where ``$prepared/NAME`` stands, and adds the names to ``used``."""
    if isinstance(value, dict):
        return {key: _in_place(entry, prepared, used) for key, entry in value.items()}
    if isinstance(value, list):
        return [_in_place(entry, prepared, used) for entry in value]
    if not isinstance(value, str) or not value.startswith(_PREPARED):
        return value
    name = value.removeprefix(_PREPARED)
    if name not in prepared:
        raise RecipeError(f"'{value}' names nothing that this comparison prepares before it. {suggest(name, prepared)}")
    if used is not None:
        used.add(name)
    return str(prepared[name])


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


def shipped_terms(name: str) -> Terms:
    """Returns how a shipped comparison judges; the usual terms where no shipped suite has that name."""
    return load_suite(name)[1].terms if name in shipped() else terms_of(ACCURACY)


def arms_prepared_by(method: str, name: str) -> set[str]:
    """Returns the arms of a shipped comparison that a method prepares: it runs in a stage before their last one.

    Args:
        method: name of the method.
        name: name of the comparison; no arm is found where no shipped suite has that name.
    """
    if name not in shipped():
        return set()
    suite = load_suite(name)[1]
    arms: dict[str, dict[str, Any]] = {**{label: {} for label in suite.baselines}, **suite.arms}
    shared = suite.recipe.get("stages", [])
    return {
        label
        for label, arm in arms.items()
        if any(_method_of(stage) == method for stage in arm.get("stages", shared)[:-1])
    }


def _method_of(stage: Mapping[str, Any]) -> str | None:
    """Returns the name of the method of a stage as it stands in a file; None where it names none, or several."""
    method = stage.get("method")
    return method.get("name") if isinstance(method, dict) else method
