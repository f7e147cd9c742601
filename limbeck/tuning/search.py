"""Runs a search: every trial is a run folder of its own, so that a killed search continues where it was."""

from __future__ import annotations

import csv
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from limbeck.bench.run import run_one, worker_processes
from limbeck.errors import LimbeckError, MissingExtraError, RunFolderError, UnknownNameError, suggest
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import as_plain, load_recipe
from limbeck.recipes.schema import Recipe
from limbeck.tuning.space import Choice, Dimension, Range, applied, space_of

Goal = Literal["accuracy", "nll"]
_GOALS: dict[Goal, tuple[str, str, str]] = {
    "accuracy": ("accuracy", "top1", "maximize"),
    "nll": ("calibration", "nll", "minimize"),
}
_HELD_OUT = 0.2
_JOURNAL = "trials.log"


@dataclass(frozen=True)
class Trial:
    """One recipe that was tried.

    Attributes:
        number: the trial's number; 0 is the recipe as it was.
        values: what was chosen.
        value: what it reached on the held-out data; NaN where it failed.
        problem: what went wrong; empty where nothing did.
    """

    number: int
    values: Mapping[str, Any]
    value: float
    problem: str = ""


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        recipe: the file of the best recipe, judged on the data that the given one is judged on.
        trials: all trials, by number.
        best: the best of them.
        goal: what was sought.
        samples: held-out samples on which trials were judged.
    """

    recipe: Path
    trials: tuple[Trial, ...]
    best: Trial
    goal: Goal
    samples: int

    @property
    def gain(self) -> float:
        """How much better the best is than the recipe as it was, on the held-out data; positive is better."""
        sign = 1 if _GOALS[self.goal][2] == "maximize" else -1
        return sign * (self.best.value - self.trials[0].value)

    @property
    def noise(self) -> float:
        """Standard error of an accuracy on that many samples, for accuracy; NaN for other goals."""
        if self.goal != "accuracy":
            return math.nan
        p = self.trials[0].value
        return math.sqrt(max(p * (1 - p), 0.0) / self.samples)


def tune(
    recipe: str | Path | dict[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    trials: int = 20,
    out: str | Path | None = None,
    workers: int | None = None,
    goal: Goal = "accuracy",
    only: Sequence[str] = (),
    seed: int = 0,
    trust: bool = False,
) -> Tuned:
    """Searches temperature, weights and taps of a recipe with a tree-structured Parzen estimator (optuna).

    Trials are judged on a fifth of the training data, held out by content, unless the recipe holds out some already:
    the test data take no part. The first trial is the recipe as it is. The best of many noisy trials looks better than
    it is; run the recipe that is written, with several seeds, to know.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping or a loaded recipe.
        overrides: ``key=value`` strings.
        trials: number of trials, over all calls with one folder.
        out: folder of the search; ``runs/tune-<recipe>`` when None. Calls with one folder continue one search.
        workers: trials at a time, each on one thread; one a core when None.
        goal: ``accuracy``, or ``nll`` for the likelihood of the labels.
        only: names of the dimensions to search; all when empty.
        seed: seed of the search; that of the runs is the recipe's.
        trust: allow models that run the code they name.

    Raises:
        RecipeError: the recipe is malformed, or there is nothing to search.
        RunFolderError: the folder holds another search.
        LimbeckError: every trial failed; says why.
        MissingExtraError: optuna is not installed.
    """
    given = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    held = _held_out(given, goal)
    stage = build_stage(held, held.stages[-1], trust=trust, earlier=lambda name, model: None)
    models = {name: role.model for name, role in stage.roles.items() if role.model is not None}
    space = space_of(held, models, only)
    name = Path(str(recipe)).name.removesuffix(".yaml") if isinstance(recipe, (str, Path)) else "recipe"
    folder = Path("runs") / f"tune-{name}" if out is None else Path(out)
    _claim(folder, {"recipe": as_plain(held), "space": [_plain(d) for d in space], "goal": goal})
    study = _study(folder, goal, seed)
    if not study.trials:
        study.enqueue_trial({d.name: d.default for d in space})
    _run_trials(study, as_plain(held), space, folder, goal=goal, trials=trials, workers=workers, trust=trust)
    return _concluded(study, as_plain(given), space, folder, goal, len(stage.data.held))


def checked_goal(name: str) -> Goal:
    """Returns the goal of that name.

    Raises:
        UnknownNameError: there is none; proposes near matches.
    """
    for goal in _GOALS:
        if goal == name:
            return goal
    raise UnknownNameError(f"unknown goal '{name}'. {suggest(name, _GOALS)}")


def _held_out(recipe: Recipe, goal: Goal) -> Recipe:
    """The recipe of the trials: judged on held-out training data, by what the goal needs and nothing else."""
    plain = as_plain(recipe)
    for stage in plain["stages"]:
        stage["data"]["validation"] = stage["data"].get("validation") or _HELD_OUT
        stage["train"]["evaluate_every"] = 0
    plain["evaluate"] = list(dict.fromkeys(["accuracy", _GOALS[goal][0]]))
    return load_recipe(plain)


def _claim(folder: Path, search: dict[str, Any]) -> None:
    """Notes what a folder searches, or refuses it where it searches something else."""
    path = folder / "search.yaml"
    text = yaml.safe_dump(search, sort_keys=True, allow_unicode=True)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    elif path.read_text("utf-8") != text:
        raise RunFolderError(f"'{folder}' holds the search of another recipe, goal or space; give another folder")


def _plain(dimension: Dimension) -> dict[str, Any]:
    if isinstance(dimension, Choice):
        return {"name": dimension.name, "options": list(dimension.options)}
    return {"name": dimension.name, "low": dimension.low, "high": dimension.high}


def _study(folder: Path, goal: Goal, seed: int) -> Any:
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    journal = str(folder / _JOURNAL)
    storage = JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))
    study = optuna.create_study(study_name="search", storage=storage, direction=_GOALS[goal][2], load_if_exists=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A continued search draws on, where one seed would repeat the first draws; pending trials count as poor ones,
        # so that workers do not all try the same.
        study.sampler = optuna.samplers.TPESampler(
            seed=seed + len(study.trials), n_startup_trials=5, constant_liar=True, multivariate=True
        )
    return study


def _run_trials(
    study: Any,
    recipe: dict[str, Any],
    space: Sequence[Dimension],
    folder: Path,
    *,
    goal: Goal,
    trials: int,
    workers: int | None,
    trust: bool,
) -> None:
    from limbeck.report.progress import ProgressBar

    waiting = _pending(study, space, trials)
    with ProgressBar("trials") as bar, worker_processes(workers) as pool:
        at_once = workers or os.cpu_count() or 1
        running: dict[Future[str], int] = {}
        done = sum(t.state.is_finished() for t in study.trials)
        bar.update(done, max(trials, done))
        try:
            while True:
                while len(running) < at_once and (job := next(waiting, None)) is not None:
                    number, values = job
                    chosen = as_plain(load_recipe(applied(recipe, space, values)))
                    running[pool.submit(run_one, chosen, str(_trial_folder(folder, number)), trust)] = number
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    _tell(study, running.pop(future), future.result(), folder, goal)
                    done += 1
                    bar.update(done, max(trials, done))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _pending(study: Any, space: Sequence[Dimension], trials: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trials that an earlier call left unfinished, then new ones up to their number."""
    state = _optuna().trial.TrialState
    for trial in study.get_trials(states=[state.RUNNING]):
        yield trial.number, {**{d.name: d.default for d in space}, **trial.params}
    while sum(t.state != state.WAITING for t in study.trials) < trials:
        trial = study.ask()
        yield trial.number, {d.name: _suggested(trial, d) for d in space}


def _suggested(trial: Any, dimension: Dimension) -> Any:
    if isinstance(dimension, Range):
        return trial.suggest_float(dimension.name, dimension.low, dimension.high, log=True)
    return trial.suggest_categorical(dimension.name, list(dimension.options))


def _trial_folder(folder: Path, number: int) -> Path:
    return folder / "trials" / f"{number:03d}"


def _tell(study: Any, number: int, problem: str, folder: Path, goal: Goal) -> None:
    path = _trial_folder(folder, number)
    if problem:
        path.mkdir(parents=True, exist_ok=True)
        (path / "problem.txt").write_text(problem + "\n", "utf-8")
        study.tell(number, state=_optuna().trial.TrialState.FAIL)
        return
    evaluation, key, _ = _GOALS[goal]
    study.tell(number, float(json.loads((path / "results.json").read_text())[evaluation][key]))


def _concluded(
    study: Any, recipe: dict[str, Any], space: Sequence[Dimension], folder: Path, goal: Goal, samples: int
) -> Tuned:
    found = [_trial_of(trial, folder) for trial in study.trials if trial.state.is_finished()]
    sound = [trial for trial in found if trial.value == trial.value]
    if not sound:
        raise LimbeckError(f"every trial failed, the first one so: {found[0].problem if found else 'there was none'}")
    best = (max if _GOALS[goal][2] == "maximize" else min)(sound, key=lambda trial: trial.value)
    _write_table(found, space, folder / "trials.csv")
    path = folder / "best.yaml"
    text = yaml.safe_dump(applied(recipe, space, best.values), sort_keys=False, allow_unicode=True)
    path.write_text(
        f"# Trial {best.number} of {len(found)}, {goal} {best.value:.4f} on held-out data.\n{text}", "utf-8"
    )
    return Tuned(path, tuple(found), best, goal, samples)


def _trial_of(trial: Any, folder: Path) -> Trial:
    if trial.value is not None:
        return Trial(trial.number, dict(trial.params), float(trial.value))
    problem = _trial_folder(folder, trial.number) / "problem.txt"
    said = problem.read_text("utf-8").strip() if problem.exists() else "it was stopped"
    return Trial(trial.number, dict(trial.params), math.nan, said)


def _write_table(trials: Sequence[Trial], space: Sequence[Dimension], path: Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", *(d.name for d in space), "value", "problem"])
        for trial in trials:
            writer.writerow([trial.number, *(trial.values.get(d.name) for d in space), trial.value, trial.problem])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "tune", "a search over hyperparameters") from None
    return optuna
