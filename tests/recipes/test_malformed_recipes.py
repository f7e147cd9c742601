"""Recipes that cannot work are refused with a sentence that names the place: never a traceback, never a silent run."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.cli import main
from limbeck.errors import RecipeError
from limbeck.recipes.cache import cache_recipe
from limbeck.recipes.load import load_recipe
from limbeck.recipes.schema import DataSpec, Recipe, RoleSpec

GOOD: dict[str, Any] = {
    "about": "a recipe that works",
    "seed": 1,
    "task": "classification",
    "data": {"name": "digits", "limit": 60, "augment": [{"name": "crop", "padding": 1}]},
    "roles": {
        "teacher": {"model": {"name": "mlp", "hidden": [32]}, "taps": {"pooled": ["head@in"]}},
        "student": {"model": "mlp"},
    },
    "method": {"name": "dkd", "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "weights": {"ce": 1.0}},
    "transforms": [],
    "train": {"epochs": 1, "batch_size": 16, "lr": 0.1, "optimizer": "sgd", "schedule": "cosine"},
    "evaluate": ["accuracy", "agreement"],
}
# Values that are wrong wherever they stand.
WRONG = (-7.5, "no such thing", [[[]]], {"no": {"such": "key"}}, float("nan"), float("inf"))
# Places where one of them is right after all, and what is optional.
FREE_TEXT = {("about",)}
RAW = {
    "empty": b"",
    "a list": b"- data: digits\n",
    "a number": b"42\n",
    "not YAML": b"data: [digits\n",
    "binary": bytes(range(256)),
    "half an umlaut": b"about: \xc3\n",
    "a tab": b"data:\n\tname: digits\n",
    "a date that is none": b"seed: 2026-13-45\n",
    "a key twice": b"seed: 1\nseed: 2\n",
    "aliases": b"a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "a Python object": b"seed: !!python/object/apply:os.system ['touch hacked']\n",
    "a Python name": b"method: !!python/name:os.system ''\n",
    "a Python module": b"method: !!python/module:subprocess ''\n",
    "a new object": b"seed: !!python/object/new:os.system ['touch hacked']\n",
    "a set": b"roles: !!set {student}\n",
    "deep nesting": b"[" * 5000,
    "a deep mapping": b"data: " + b"{a: " * 2000 + b"1" + b"}" * 2000,
}


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested data, parents before children."""
    if path:
        yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def with_value(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(GOOD)
    at(changed, path[:-1])[path[-1]] = value
    return changed


def misspelt(path: tuple[Any, ...], chance: random.Random) -> dict[str, Any]:
    changed = copy.deepcopy(GOOD)
    parent, key = at(changed, path[:-1]), str(path[-1])
    spot = chance.randrange(len(key))
    parent[key[:spot] + "q" + key[spot + 1 :]] = parent.pop(path[-1])
    return changed


def mutants() -> dict[str, dict[str, Any]]:
    chance = random.Random(0)
    found: dict[str, dict[str, Any]] = {}
    for path in places(GOOD):
        name = ".".join(map(str, path))
        if isinstance(path[-1], str):
            found[f"{name} misspelt"] = misspelt(path, chance)
        if path in FREE_TEXT:
            found[f"{name} = a list"] = with_value(path, [1])
            continue
        for value in WRONG:
            found[f"{name} = {value}"] = with_value(path, value)
    for path in (("data",), ("data", "name"), ("roles",), ("roles", "student"), ("roles", "teacher"), ("method",)):
        changed = copy.deepcopy(GOOD)
        del at(changed, path[:-1])[path[-1]]
        found[f"without {'.'.join(path)}"] = changed
    return found


MUTANTS = mutants()
# Mutants that are recipes after all: an unused role by another name, and a tap group of one's own that nobody reads.
HARMLESS = {
    "roles.teacher.taps misspelt",
}


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs ``limbeck check`` on a recipe that cannot work and returns what it says."""
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(path)])
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert said.startswith("limbeck: ")
    assert "Traceback" not in said
    assert len(said) > 40
    return said


def test_the_recipe_itself_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    main_ended_well(["check", str(path)])
    assert "the recipe works" in capsys.readouterr().out


def main_ended_well(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code


def test_there_are_more_than_a_hundred() -> None:
    assert len(MUTANTS) + len(RAW) >= 150


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mutant.yaml"
    path.write_text(yaml.safe_dump(MUTANTS[name]))
    refused(path, capsys)


@pytest.mark.parametrize("name", RAW)
def test_file_that_is_no_recipe_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "raw.yaml"
    path.write_bytes(RAW[name])
    refused(path, capsys)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lr", "key=value"),
        ("=3", "key=value"),
        ("train.lr=[", "not plain YAML"),
        ("train.lrr=0.1", "Did you mean 'lr'"),
        ("trian.lr=0.1", "Did you mean 'train'"),
        ("seed.deep=1", "has no keys"),
        ("evaluate.7=accuracy", "no position '7'"),
        ("evaluate.x=accuracy", "no position 'x'"),
        ("method.temprature=2", "Did you mean 'temperature'"),
        ("method=dkkd", "Did you mean 'dkd'"),
        ("data=digitz", "Did you mean 'digits'"),
        ("roles.student.model=resnet9", "Did you mean"),
        ("evaluate=[accurracy]", "Did you mean 'accuracy'"),
        ("train.balance={share: {dkd: 0.5}}", "Did you mean 'shares'"),
        ("roles.studnt=mlp", "nothing asks for the role 'studnt'. Did you mean 'student'"),
        ("train.optimizer=sgdd", "Did you mean 'sgd'"),
        ("train.optimizer={name: sgd, momentun: 0.9}", "Did you mean 'momentum'"),
        ("task=clasification", "Did you mean 'classification'"),
        ("roles.student.model=python:os:system", "--trust"),
        ("method.weights={cee: 1}", "Did you mean 'ce'"),
        ("transforms=[mixupp]", "Did you mean 'mixup'"),
        ("data.augment=[flop]", "Did you mean 'flip'"),
        ("method.logit_transform=standardise", "standardize"),
        ("method.logit_transform={name: standardize, eps: -1}", "0 or more"),
        ("method.logit_transform={name: standardize, epsilon: 1}", "known: eps"),
    ],
)
def test_mistake_is_explained(override: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(path), override])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in " ".join(error.split())
    assert "Traceback" not in error


def test_stage_of_one_is_not_called_stage_zero() -> None:
    with pytest.raises(RecipeError, match=r"'train\.lr'") as caught:
        load_recipe({**GOOD, "train": {"lr": -1}})
    assert "stages" not in str(caught.value)


def test_later_stages_inherit_from_the_first() -> None:
    recipe = load_recipe(
        {
            **{key: GOOD[key] for key in ("data", "roles")},
            "stages": [
                {"method": {"name": "kd", "temperature": 2.0}, "train": {"epochs": 3, "lr": 0.2}},
                {"train": {"epochs": 5}},
                {"method": {"temperature": 3.0}},
                {"method": "dkd"},
            ],
        }
    )
    assert isinstance(recipe, Recipe)
    assert [s.name for s in recipe.stages] == ["stage1", "stage2", "stage3", "stage4"]
    assert [(s.train.epochs, s.train.lr) for s in recipe.stages] == [(3, 0.2), (5, 0.2), (3, 0.2), (3, 0.2)]
    assert [s.method for s in recipe.stages][1:] == [
        {"name": "kd", "temperature": 2.0},
        {"name": "kd", "temperature": 3.0},
        {"name": "dkd"},
    ]
    assert all(isinstance(s.data, DataSpec) and isinstance(s.roles["student"], RoleSpec) for s in recipe.stages)


def test_given_mapping_is_left_alone() -> None:
    given = copy.deepcopy(GOOD)
    load_recipe(given, ["train.lr=0.5", "method.temperature=1.0"])
    assert given == GOOD


def test_no_cache_is_written_that_the_recipe_could_not_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'mixup' changes samples after their augmentation.*transforms=\[\]"):
        cache_recipe({**GOOD, "transforms": [{"name": "mixup"}]}, out=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
