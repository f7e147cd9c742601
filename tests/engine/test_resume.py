"""A run that is killed at any moment and continued ends with the same bits as one that was never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import limbeck.recipes.run
from limbeck.engine.reporter import Reporter
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import evaluate_run, run_recipe
from limbeck.recipes.schema import Recipe
from limbeck.schedules import Progress

COMMON: dict[str, Any] = {
    "data": {"name": "fashion-mnist-small", "limit": {"train": 200, "test": 60}},
    "roles": {"teacher": {"model": "small_cnn"}, "student": {"model": "small_cnn"}},
    "train": {"epochs": 3, "batch_size": 32, "lr": 0.05, "checkpoint_every": 2},
    "evaluate": ["accuracy", "agreement"],
    "seed": 3,
}
KINDS: dict[str, dict[str, Any]] = {
    "kd": {"method": "kd"},
    "crd, whose memories move": {"method": {"name": "crd", "negatives": 16, "embedding": 8}},
    "two methods, balanced by their gradients": {
        "methods": ["kd", {"name": "at", "weights": {"at": {"from": 1000.0, "to": 100.0}}}],
        "train": {**COMMON["train"], "balance": {"every": 3}},
    },
    "a moving average as teacher": {
        "method": "kd",
        "roles": {"teacher": {"ema": {"of": "student", "decay": 0.9}}, "student": {"model": "small_cnn"}},
    },
    "two learners with adamw": {
        "method": "dml",
        "roles": {"peer": {"model": "small_cnn"}, "student": {"model": "small_cnn"}},
        "train": {**COMMON["train"], "optimizer": "adamw", "lr": 0.01, "checkpoint_every": 3},
    },
    "two stages, dropout and micro-batches": {
        "train": {**COMMON["train"], "micro_batches": 2},
        "stages": [
            {"name": "first", "method": "none", "roles": {"student": {"model": {"name": "mlp", "dropout": 0.3}}}},
            {
                "name": "second",
                "method": "born_again",
                "roles": {
                    "teacher": {"from_stage": "first"},
                    "student": {"model": {"name": "mlp", "dropout": 0.3}, "fresh": True},
                },
            },
        ],
    },
}
# Five kinds with at least four kills each are twenty; a kill at a random time may come after the end and count for
# nothing.
KILLS_AT_STEPS, KILLS_AT_TIMES = 4, 2


class KilledAt(Reporter):
    """Kills its process after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step_done(self, progress: Progress, loss: float) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(action: Callable[[], object]) -> int:
    """Runs ``action`` in a forked process and returns its number; imports are paid once."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return child


def left_behind(folder: Path) -> dict[str, bytes]:
    names = ("metrics.jsonl", "student.safetensors", "results.json", "predictions.safetensors", "recipe.yaml")
    return {name: (folder / name).read_bytes() for name in names}


def was_killed(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def killed_and_continued(recipe: Recipe, folder: Path, seconds: float, chance: random.Random) -> int:
    """Runs ``recipe`` with kills at random steps and at random times, and returns how many hit."""
    hits = 0
    for _ in range(KILLS_AT_STEPS):
        reporter = KilledAt(chance.randint(1, 4))
        hits += was_killed(in_child(lambda r=reporter: run_recipe(recipe, out=folder, reporter=r)))
    for _ in range(KILLS_AT_TIMES):
        child = in_child(lambda: run_recipe(recipe, out=folder))
        time.sleep(chance.uniform(0.05, 0.6 * seconds))
        os.kill(child, signal.SIGKILL)
        hits += was_killed(child)
    assert not was_killed(in_child(lambda: run_recipe(recipe, out=folder)))
    return hits


@pytest.mark.parametrize("kind", KINDS)
def test_killed_run_ends_like_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    recipe = load_recipe({**COMMON, **KINDS[kind]})
    started = time.perf_counter()
    assert not was_killed(in_child(lambda: run_recipe(recipe, out=tmp_path / "whole")))
    seconds = time.perf_counter() - started
    hits = killed_and_continued(recipe, tmp_path / "killed", seconds, random.Random(kind))
    assert hits >= KILLS_AT_STEPS
    assert left_behind(tmp_path / "killed") == left_behind(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_run_that_is_killed_before_its_student_is_judged_is_judged_alike(kind: str, tmp_path: Path) -> None:
    """The stage is done by then, and its models come from what it left."""
    recipe = load_recipe({**COMMON, **KINDS[kind]})

    def killed() -> None:
        limbeck.recipes.run._conclude = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        run_recipe(recipe, out=tmp_path / "killed")

    assert was_killed(in_child(killed))
    for name in ("whole", "killed"):
        assert not was_killed(in_child(lambda name=name: run_recipe(recipe, out=tmp_path / name)))
    assert left_behind(tmp_path / "killed") == left_behind(tmp_path / "whole")
    before = (tmp_path / "whole" / "results.json").read_bytes()
    assert not was_killed(in_child(lambda: evaluate_run(tmp_path / "whole")))
    assert json.loads((tmp_path / "whole" / "results.json").read_text()) == json.loads(before)


def test_other_seed_ends_differently(tmp_path: Path) -> None:
    for seed in (0, 1):
        run_recipe({**COMMON, **KINDS["kd"], "seed": seed}, out=tmp_path / str(seed))
    assert left_behind(tmp_path / "0")["student.safetensors"] != left_behind(tmp_path / "1")["student.safetensors"]


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    from limbeck.engine.interruption import Interrupted

    class AskedToStop(Reporter):
        def step_done(self, progress: Progress, loss: float) -> None:
            if progress.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    recipe = load_recipe({**COMMON, **KINDS["kd"]})
    with pytest.raises(Interrupted, match="after step 5 of 21; run the same command to continue"):
        run_recipe(recipe, out=tmp_path / "run", reporter=AskedToStop())
    run_recipe(recipe, out=tmp_path / "run")
    run_recipe(recipe, out=tmp_path / "whole")
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "whole")


def test_finished_run_is_returned_not_repeated(tmp_path: Path) -> None:
    recipe = load_recipe({**COMMON, **KINDS["kd"]})
    first = run_recipe(recipe, out=tmp_path / "run")
    stamp = (tmp_path / "run" / "student.safetensors").stat().st_mtime_ns
    assert run_recipe(recipe, out=tmp_path / "run").results == first.results
    assert (tmp_path / "run" / "student.safetensors").stat().st_mtime_ns == stamp
