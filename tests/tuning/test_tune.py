"""The search over hyperparameters: what is searched, on which data, and that it continues where it was stopped."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.errors import MissingExtraError, RecipeError, RunFolderError, UnknownNameError
from limbeck.recipes.load import as_plain, load_recipe
from limbeck.students.loading import build_model
from limbeck.tuning import search, tune
from limbeck.tuning.search import _study, checked_goal
from limbeck.tuning.space import Choice, applied, space_of

RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "limit": {"train": 120, "test": 60}},
    "roles": {"teacher": {"model": "mlp"}, "student": {"model": "mlp"}},
    "method": {"name": "kd", "temperature": 4.0},
    "train": {"epochs": 1, "batch_size": 32, "lr": 0.1},
}


@contextlib.contextmanager
def _one_thread(workers: int | None = None) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "worker_processes", _one_thread)


def network() -> Any:
    return build_model("resnet8", num_classes=10, input_shape=(1, 28, 28))


def test_temperature_weights_and_taps_are_searched_around_the_recipes_own() -> None:
    space = {d.name: d for d in space_of(load_recipe(RECIPE), {})}
    assert set(space) == {"temperature", "weight of kd"}
    temperature, weight = space["temperature"], space["weight of kd"]
    assert (temperature.low, temperature.high, temperature.default) == (1, 16, 4)
    assert weight.low == pytest.approx(weight.default / 10)
    assert weight.high == pytest.approx(weight.default * 10)
    at = load_recipe({**RECIPE, "method": {"name": "at", "weights": {"at": 50.0}}})
    found = {d.name: d for d in space_of(at, {"student": network(), "teacher": network()})}
    assert found["weight of at"].default == 50
    taps = found["taps"]
    assert isinstance(taps, Choice)
    assert taps.options == ("all", "last", "last two")
    assert taps.taps["student"]["all"] == tuple(network().anatomy.groups()["stages"])
    assert taps.taps["teacher"]["last"] == taps.taps["teacher"]["all"][-1:]
    assert [d.name for d in space_of(at, {"student": network(), "teacher": network()}, ["taps"])] == ["taps"]


def test_what_cannot_be_searched_is_told() -> None:
    with pytest.raises(RecipeError, match="'none' has no temperature"):
        space_of(load_recipe({**RECIPE, "method": "none"}), {})
    with pytest.raises(RecipeError, match=r"'temprature' is not searched. Did you mean 'temperature'"):
        space_of(load_recipe(RECIPE), {}, ["temprature"])
    with pytest.raises(RecipeError, match="several methods"):
        space_of(load_recipe({**RECIPE, "method": {"methods": ["kd", "at"]}}), {})
    with pytest.raises(UnknownNameError, match="Did you mean 'accuracy'"):
        checked_goal("acuracy")


def test_chosen_values_are_a_recipe() -> None:
    recipe = load_recipe({**RECIPE, "method": "at"})
    space = space_of(recipe, {"student": network(), "teacher": network()})
    changed = load_recipe(applied(as_plain(recipe), space, {"weight of at": 7.0, "taps": "last"}))
    stage = changed.stages[-1]
    assert stage.method["weights"] == {"at": 7.0}
    assert len(stage.roles["student"].taps["stages"]) == 1
    assert applied(as_plain(recipe), space, {}) == as_plain(recipe)


@pytest.mark.usefixtures("in_this_process")
def test_a_search_judges_on_held_out_data_and_continues(tmp_path: Path) -> None:
    first = tune(RECIPE, trials=2, out=tmp_path, workers=1)
    assert [t.number for t in first.trials] == [0, 1]
    assert first.trials[0].values["temperature"] == pytest.approx(4.0)
    trial = yaml.safe_load((tmp_path / "trials" / "000" / "recipe.yaml").read_text())
    assert trial["stages"][0]["data"]["validation"] == 0.2
    assert trial["evaluate"] == ["accuracy"]
    # A search that was killed leaves a trial that is neither done nor failed.
    stopped = _study(tmp_path, "accuracy", 0).ask()
    assert stopped.number == 2
    before = (tmp_path / "trials" / "001" / "results.json").stat().st_mtime_ns
    again = tune(RECIPE, trials=4, out=tmp_path, workers=1)
    assert [t.number for t in again.trials] == [0, 1, 2, 3]
    assert (tmp_path / "trials" / "001" / "results.json").stat().st_mtime_ns == before
    assert again.trials[:2] == first.trials
    assert again.best.value == max(t.value for t in again.trials)
    assert again.gain == pytest.approx(again.best.value - again.trials[0].value)
    best = load_recipe(again.recipe)
    assert best.stages[-1].data.validation == 0
    assert best.stages[-1].method["temperature"] == pytest.approx(again.best.values["temperature"])
    with open(tmp_path / "trials.csv", newline="") as file:
        assert [line["trial"] for line in csv.DictReader(file)] == ["0", "1", "2", "3"]
    with pytest.raises(RunFolderError, match="another recipe, goal or space"):
        tune({**RECIPE, "seed": 9}, trials=4, out=tmp_path)


@pytest.mark.usefixtures("in_this_process")
def test_the_goal_may_be_the_likelihood_and_the_space_a_part(tmp_path: Path) -> None:
    found = tune(RECIPE, trials=3, out=tmp_path, workers=1, goal="nll", only=["temperature"])
    assert found.best.value == min(t.value for t in found.trials)
    assert all(set(t.values) == {"temperature"} for t in found.trials)
    assert all(1 <= t.values["temperature"] <= 16 for t in found.trials)
    assert len({t.values["temperature"] for t in found.trials}) == 3


@pytest.mark.usefixtures("in_this_process")
def test_failed_trials_are_told_and_do_not_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "run_one", lambda recipe, folder, trust: "no luck")
    with pytest.raises(Exception, match="every trial failed, the first one so: no luck"):
        tune(RECIPE, trials=2, out=tmp_path, workers=1)
    assert (tmp_path / "trials" / "001" / "problem.txt").read_text() == "no luck\n"


def test_optuna_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"limbeck\[tune\]"):
        tune(RECIPE, trials=1, out=tmp_path)
