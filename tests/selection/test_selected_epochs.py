"""Epochs whose samples are chosen by what the models say of the pool: which, in what order, and after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.data import as_source
from limbeck.data.loader import Loader
from limbeck.data.selected import SelectedLoader
from limbeck.engine.interruption import Interrupted
from limbeck.engine.reporter import Reporter
from limbeck.errors import NeedsError, RecipeError
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import run_recipe
from limbeck.selection.base import Choice, Selector, build_selector
from limbeck.signals import Signals
from limbeck.tasks.classification import Classification


class Brightest(Selector):
    """Shows samples whose first score exceeds a limit."""

    counted = False

    def __init__(self, limit: float) -> None:
        self.limit, self.asked = limit, []

    def scores(self, pool):
        self.asked.append(pool.fraction)
        return pool.given("logits")[:, 0]

    def choose(self, scores, pool, count=None):
        return Choice(scores, scores > self.limit)


def selected(limit: float, count: int = 10) -> tuple[SelectedLoader, Brightest]:
    values = torch.arange(count, dtype=torch.float32)
    source = as_source((torch.stack([values, -values], 1), torch.arange(count) % 2))
    loader, plain = Loader(source, (), batch_size=4, seed=1), Loader(source, (), batch_size=3, shuffle=False)
    rule = Brightest(limit)
    made = SelectedLoader(loader, plain, rule, Classification(), epochs=4, seed=1)
    student = nn.Linear(2, 2, bias=False)
    nn.init.eye_(student.weight)
    made.start(lambda: student, {"teacher": lambda batch: Signals(logits=batch["inputs"])})
    return made, rule


def shown(loader: SelectedLoader, epoch: int, start: int = 0) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader.epoch(epoch, start)]


def test_an_epoch_shows_the_chosen_samples_again_and_again() -> None:
    loader, rule = selected(4.5)
    batches = shown(loader, 0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    flat = [number for batch in batches for number in batch]
    assert set(flat) == {5, 6, 7, 8, 9}
    assert sorted(flat[:5]) == sorted(flat[5:]) == [5, 6, 7, 8, 9]
    assert shown(loader, 0, 1) == batches[1:]
    assert shown(loader, 1) != batches
    assert rule.asked == [0.0, 0.25]


def test_too_few_are_filled_up_with_those_wanted_most() -> None:
    loader, _ = selected(99.0)
    assert {number for batch in shown(loader, 0) for number in batch} == {6, 7, 8, 9}


def test_the_running_epoch_survives_a_restart() -> None:
    loader, _ = selected(4.5)
    batches = shown(loader, 0)
    again, rule = selected(0.0)
    again.load_state_dict(loader.state_dict())
    assert shown(again, 0, 1) == batches[1:]
    assert rule.asked == []


def test_who_cannot_be_asked_is_named() -> None:
    loader, _ = selected(1.0)
    with pytest.raises(NeedsError, match="no role 'teacher'"):
        loader.start(lambda: nn.Identity(), {})
    with pytest.raises(RecipeError, match="cutof"):
        build_selector({"name": "confident", "cutof": 1})


RECIPE = {
    "data": {"name": "fashion-mnist-small", "limit": {"train": 48, "test": 20}, "augment": []},
    "roles": {"teacher": {"model": "resnet8"}, "student": {"model": "small_cnn"}},
    "selection": {"name": "confident", "cutoff": 0.5},
    "transforms": ["mix_distribution"],
    "method": {"name": "kd3", "embedding": 8},
    "train": {"epochs": 2, "batch_size": 16, "lr": 0.05, "checkpoint_every": 1},
    "evaluate": ["accuracy"],
}


class StopAt(Reporter):
    """Stands for a kill in the middle of an epoch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_done(self, progress, loss) -> None:
        if progress.step == self.step:
            raise Interrupted("killed")


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    whole = run_recipe(recipe, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_recipe(recipe, out=tmp_path / "killed", reporter=StopAt(5))
    finished = run_recipe(recipe, out=tmp_path / "killed")
    assert finished.results == whole.results
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
