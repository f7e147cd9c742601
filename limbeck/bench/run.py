"""Runs a comparison: every arm and seed is a run folder of its own, so a killed comparison continues."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from limbeck.bench.page import write_page
from limbeck.bench.suite import Suite, arm_of, load_suite
from limbeck.bench.table import Row, write_csv
from limbeck.errors import LimbeckError, UnknownNameError, suggest
from limbeck.recipes.load import as_plain
from limbeck.recipes.schema import Recipe

_SHOWN = 3


def run_suite(
    where: str,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    arms: Sequence[str] = (),
    workers: int | None = None,
    trust: bool = False,
) -> Path:
    """Runs what is missing of a comparison and writes its table and page.

    Args:
        where: a suite file or the name of a shipped suite.
        overrides: ``key=value`` strings, such as ``recipe.train.epochs=2`` or ``seeds=[0]``.
        out: folder of the runs, ``results.csv`` and ``results.html``; ``runs/bench-<suite>`` when None.
        arms: labels of the arms to run; all when empty. The table shows whatever has finished.
        workers: runs at a time, each on one thread; one a core when None.
        trust: allow models that run the code they name.

    Returns:
        The page.

    Raises:
        UnknownNameError: the comparison has no such arm.
        LimbeckError: the suite is malformed, or arms failed; those that worked are kept, and the message names the
            others.
    """
    name, suite = load_suite(where, overrides)
    terms = suite.terms
    folder = out or Path("runs") / f"bench-{name}"
    _check_arms(suite, arms)
    recipes = suite.recipes(_prepare(suite, folder, workers=workers, trust=trust))
    chosen = {key: recipe for key, recipe in recipes.items() if not arms or arm_of(key[0])[0] in arms}
    failures: dict[str, str] = {}
    for label, problem in run_recipes(chosen, folder, workers=workers, trust=trust):
        if problem:
            failures[label] = problem
    rows = [
        row
        for (label, seed), recipe in recipes.items()
        if (row := _row(name, label, seed, recipe, folder, suite.criterion)) is not None
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows, folder / "results.csv")
    page = write_page(name, suite.about, rows, folder / "results.html", terms)
    if failures:
        shown = sorted(failures.items())[:_SHOWN]
        said = "; ".join(f"{label}: {problem}" for label, problem in shown)
        said += f"; and {len(failures) - len(shown)} more" if len(failures) > len(shown) else ""
        raise LimbeckError(f"{len(failures)} of {len(chosen)} runs failed ({said}). The others are in '{page}'")
    return page


def _check_arms(suite: Suite, arms: Sequence[str]) -> None:
    known = [*suite.baselines, *suite.arms]
    for arm in arms:
        if arm not in known:
            raise UnknownNameError(f"the comparison has no arm '{arm}'. {suggest(arm, known)}")


def _prepare(suite: Suite, folder: Path, *, workers: int | None, trust: bool) -> dict[str, Path]:
    """Runs what the arms build on and returns its folders.

    Raises:
        LimbeckError: one of them failed, without which there is nothing to compare.
    """
    within = folder / "prepared"
    places = {name: run_folder(within, name, suite.seeds[0]) for name in suite.prepare}
    for recipes in suite.preparations(places):
        for name, problem in run_recipes(recipes, within, workers=workers, trust=trust):
            if problem:
                raise LimbeckError(f"what the comparison builds on failed, {name}: {problem}")
    return places


def run_folder(folder: Path, label: str, seed: int) -> Path:
    """Returns where an arm's run with a seed is."""
    return folder / "runs" / f"{label}-seed{seed}"


def run_recipes(
    recipes: Mapping[tuple[str, int], Recipe], folder: Path, *, workers: int | None = None, trust: bool = False
) -> Iterator[tuple[str, str]]:
    """Runs what is missing, several at a time, each on one thread with a progress bar over all.

    Args:
        recipes: recipe by label and seed.
        folder: its ``runs`` folder holds a run folder each.
        workers: runs at a time; one a core when None.
        trust: allow models that run the code they name.

    Yields:
        The name of each run that ended, and what went wrong or an empty string.
    """
    from limbeck.report.progress import ProgressBar

    with ProgressBar("runs") as bar, worker_processes(workers) as pool:
        jobs: dict[Future[str], str] = {}
        # Seed by seed, so that an interrupted comparison holds whole seeds.
        for label, seed in sorted(recipes, key=lambda key: key[1]):
            job = pool.submit(run_one, as_plain(recipes[label, seed]), str(run_folder(folder, label, seed)), trust)
            jobs[job] = f"{label}-seed{seed}"
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                bar.update(done, len(jobs))
                yield jobs[job], job.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def worker_processes(workers: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Gives processes for runs: one thread each, and none outlives this process.

    Args:
        workers: number of processes; one a core when None.
    """
    with (
        _one_thread_each(),
        # Spawned, not forked: a forked PyTorch may hang on the locks of its parent's threads.
        ProcessPoolExecutor(
            workers or os.cpu_count() or 1,
            mp_context=get_context("spawn"),
            initializer=_end_with,
            initargs=(os.getpid(),),
        ) as pool,
    ):
        yield pool


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Gives the processes that start meanwhile one thread each, so that they do not compete for cores."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _end_with(parent: int) -> None:
    """Ends this process soon after ``parent``, so that a killed comparison leaves nobody who holds its folders."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_one(recipe: dict[str, object], folder: str, trust: bool) -> str:
    """Runs a recipe in this process; returns what went wrong, or an empty string.

    Args:
        recipe: a resolved recipe as plain data.
        folder: the run folder; an interrupted run in it continues.
        trust: allow models that run the code they name.
    """
    from limbeck.recipes.run import run_recipe

    try:
        started = time.perf_counter()
        finished = (Path(folder) / "results.json").exists()
        run_recipe(recipe, out=Path(folder), trust=trust)
        if not finished:
            (Path(folder) / "seconds.json").write_text(json.dumps(time.perf_counter() - started))
    except LimbeckError as error:
        return str(error)
    return ""


def _row(suite: str, label: str, seed: int, recipe: Recipe, folder: Path, criterion: str) -> Row | None:
    run = run_folder(folder, label, seed)
    if not (run / "results.json").exists():
        return None
    seconds = run / "seconds.json"
    return Row.of(
        suite,
        label,
        seed,
        recipe,
        json.loads((run / "results.json").read_text()),
        json.loads(seconds.read_text()) if seconds.exists() else None,
        criterion,
    )
