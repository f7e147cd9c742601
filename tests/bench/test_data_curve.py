"""The data curve: nested parts of the training samples, with and without distillation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from limbeck.bench import data_curve as module
from limbeck.bench.data_curve import data_curve
from limbeck.bench.run import run_folder, run_one
from limbeck.bench.table import read_csv
from limbeck.errors import LimbeckError, RecipeError
from limbeck.recipes.load import as_plain
from limbeck.recipes.schema import Recipe

RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "limit": {"train": 200, "test": 50}},
    "roles": {"teacher": {"model": "mlp"}, "student": {"model": "mlp"}},
    "method": "kd",
    "train": {"epochs": 1, "batch_size": 32, "lr": 0.1},
    "evaluate": ["accuracy", "agreement", "calibration"],
}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(recipes: Mapping[tuple[str, int], Recipe], folder: Path, **options: Any) -> Iterator[tuple[str, str]]:
        for (label, seed), recipe in recipes.items():
            yield label, run_one(as_plain(recipe), str(run_folder(folder, label, seed)), False)

    monkeypatch.setattr(module, "run_recipes", run)


@pytest.mark.usefixtures("in_this_process")
def test_every_part_is_run_with_and_without_the_method(tmp_path: Path) -> None:
    page = data_curve(RECIPE, fractions=(0.1, 1.0), seeds=(0, 1), out=tmp_path)
    rows = read_csv(tmp_path / "results.csv")
    assert {(row.arm, row.method, row.seed) for row in rows} == {
        (f"{method} {count}", method, seed) for method in ("none", "kd") for count in (20, 200) for seed in (0, 1)
    }
    text = page.read_text()
    assert "20 samples" in text
    assert "Line plot: none: " in text


def test_equal_steps_train_longer_on_less() -> None:
    recipes, sizes = module._recipes(module.load_recipe(RECIPE), (0.1, 1.0), (0,), True, False)
    assert sizes == {"none 20": 20, "kd 20": 20, "none 200": 200, "kd 200": 200}
    assert recipes["kd 20", 0].stages[0].train.epochs == 10
    assert recipes["kd 200", 0].stages[0].train.epochs == 1
    assert recipes["kd 20", 0].stages[0].data.limit == {"train": 20, "test": 50}


def test_wrong_fractions_several_stages_and_failures_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fractions in ((), (0.0,), (1.5,)):
        with pytest.raises(RecipeError, match=r"in \(0, 1\]"):
            data_curve(RECIPE, fractions=fractions, out=tmp_path)
    with pytest.raises(RecipeError, match="one stage"):
        data_curve({**RECIPE, "stages": [{"name": "a"}, {"name": "b"}]}, out=tmp_path)
    monkeypatch.setattr(module, "run_recipes", lambda *_, **__: [("kd 200-seed0", "no luck")])
    with pytest.raises(LimbeckError, match=r"1 of 2 runs failed.*no luck"):
        data_curve(RECIPE, fractions=(1.0,), seeds=(0,), out=tmp_path)


def test_labels_can_be_scarce_where_samples_are_not() -> None:
    given = module.load_recipe(RECIPE)
    recipes, sizes = module._recipes(given, [0.25, 1.0], [0], False, True)
    whole = max(sizes.values())
    for (label, _), made in recipes.items():
        arm, count, data = label.split()[0], sizes[label], made.stages[0].data
        if arm == "none":
            assert (data.limit["train"], data.labelled) == (count, None)
        else:
            assert data.labelled == count
            assert len(module.load_split(data, "train")) == whole
    with pytest.raises(RecipeError, match="'dkd' has no use for samples without labels"):
        data_curve({**RECIPE, "method": "dkd"}, labels_alone=True)
