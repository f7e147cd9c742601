"""Data efficiency: how accuracy grows with the training samples, with and without distillation."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.bench.run import run_folder, run_recipes
from limbeck.bench.table import Row, write_csv
from limbeck.engine.checkpoint import write_atomically
from limbeck.errors import LimbeckError, RecipeError
from limbeck.evaluate import Spread
from limbeck.methods.base import methods
from limbeck.recipes.load import as_plain, load_recipe
from limbeck.recipes.schema import Recipe
from limbeck.recipes.stage_data import load_split

ALONE = "none"


def data_curve(
    recipe: str | Path | dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    seeds: Sequence[int] = (0, 1, 2),
    equal_steps: bool = False,
    labels_alone: bool = False,
    out: str | Path | None = None,
    workers: int | None = None,
    trust: bool = False,
) -> Path:
    """Runs a recipe, and the same student without distillation, on parts of its training samples.

    Parts are balanced over classes and lie within each other. A killed call continues. Epochs stay as they are, so that
    a small part also means few steps, unless ``equal_steps`` asks for as many epochs more.

    With ``labels_alone`` only labels are scarce: the recipe keeps all samples, of which the others have no label, so
    that the teacher answers for them; the student alone has nothing but the labelled ones.

    Args:
        recipe: a file, the name of a shipped recipe or a mapping, with one stage.
        overrides: ``key=value`` strings.
        fractions: parts of the recipe's training samples, in (0, 1].
        seeds: seeds of every point.
        equal_steps: train on each part for about as many steps as on the whole.
        labels_alone: take labels away and not samples; the method must know what to do without them.
        out: folder of the runs, ``results.csv`` and ``results.html``; ``runs/data-curve-<recipe>`` when None.
        workers: runs at a time, each on one thread; one a core when None.
        trust: allow models that run the code they name.

    Returns:
        The page.

    Raises:
        RecipeError: the recipe is malformed or has several stages, a fraction is out of range, or the method has no use
            for samples without labels.
        LimbeckError: runs failed; those that worked are kept, and the message names the others.
    """
    given = load_recipe(recipe, overrides)
    name = Path(str(recipe)).name.removesuffix(".yaml") if isinstance(recipe, (str, Path)) else "recipe"
    folder = Path("runs") / f"data-curve-{name}" if out is None else Path(out)
    if labels_alone:
        _check_semi_supervised(given)
    recipes, sizes = _recipes(given, fractions, seeds, equal_steps, labels_alone)
    failures = {label: said for label, said in run_recipes(recipes, folder, workers=workers, trust=trust) if said}
    rows = [_row(name, label, seed, made, folder) for (label, seed), made in recipes.items()]
    done = [row for row in rows if row is not None]
    write_csv(done, folder / "results.csv")
    page = write_curve(name, done, sizes, folder / "results.html")
    if failures:
        said = "; ".join(f"{label}: {problem}" for label, problem in sorted(failures.items()))
        raise LimbeckError(f"{len(failures)} of {len(recipes)} runs failed ({said}). The others are in '{page}'")
    return page


def _recipes(
    given: Recipe, fractions: Sequence[float], seeds: Sequence[int], equal_steps: bool, labels_alone: bool
) -> tuple[dict[tuple[str, int], Recipe], dict[str, int]]:
    """Recipe by label and seed, and the training samples of each label."""
    if len(given.stages) != 1:
        raise RecipeError("a data curve is made of recipes with one stage")
    wrong = [f for f in fractions if not 0 < f <= 1]
    if wrong or not fractions or not seeds:
        raise RecipeError(f"give at least one seed and parts of the data in (0, 1], not {list(fractions)}")
    spec = given.stages[0]
    whole = len(load_split(spec.data, "train"))
    limits = dict(spec.data.limit) if isinstance(spec.data.limit, dict) else {}
    arms = dict.fromkeys([ALONE, spec.method_name])
    recipes: dict[tuple[str, int], Recipe] = {}
    sizes: dict[str, int] = {}
    for fraction in dict.fromkeys(fractions):
        count = max(1, round(fraction * whole))
        for arm in arms:
            plain = copy.deepcopy(as_plain(given))
            stage = plain["stages"][0]
            unlabelled = labels_alone and arm != ALONE
            if unlabelled:
                stage["data"]["labelled"] = count
            else:
                stage["data"]["limit"] = {**limits, "train": count}
            if arm == ALONE:
                stage["method"] = {"name": ALONE}
            if equal_steps and not unlabelled:
                stage["train"]["epochs"] = round(spec.train.epochs / fraction)
            label = f"{arm} {count}"
            sizes[label] = count
            for seed in seeds:
                recipes[label, seed] = load_recipe({**plain, "seed": seed})
    return recipes, sizes


def _check_semi_supervised(recipe: Recipe) -> None:
    for name in recipe.stages[0].method_names:
        if name != ALONE and not methods[name].part.semi_supervised:
            known = [entry.name for entry in methods.entries() if entry.part.semi_supervised]
            raise RecipeError(
                f"'{name}' has no use for samples without labels; take labels away from a method that has, such as "
                f"{', '.join(known[:5])}, or leave labels_alone out"
            )


def _row(name: str, label: str, seed: int, recipe: Recipe, folder: Path) -> Row | None:
    run = run_folder(folder, label, seed)
    if not (run / "results.json").exists():
        return None
    seconds = run / "seconds.json"
    results = json.loads((run / "results.json").read_text())
    return Row.of(name, label, seed, recipe, results, json.loads(seconds.read_text()) if seconds.exists() else None)


def write_curve(name: str, rows: Sequence[Row], sizes: dict[str, int], path: Path) -> Path:
    """Writes the page of a data curve and returns its path.

    Args:
        name: what the curve is of.
        rows: its runs, whose arms are ``<method> <samples>``.
        sizes: training samples by arm.
        path: the HTML file.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
        RunFolderError: the page cannot be written.
    """
    from limbeck.report.figures.data_curve import curve
    from limbeck.report.page import render
    from limbeck.report.sections import Figures, Section

    points: dict[str, dict[int, Spread]] = {}
    for label in dict.fromkeys(row.arm for row in rows):
        spread = Spread.of(row.accuracy for row in rows if row.arm == label)
        if spread is not None:
            points.setdefault(label.rpartition(" ")[0], {})[sizes[label]] = spread
    figure = curve(points)
    sections: list[Section] = [Figures("Accuracy by training samples", (figure,))] if figure is not None else []
    sections.append(_table(points))
    write_atomically(path, render(f"Data efficiency of {name}", sections).encode())
    return path


def _table(points: dict[str, dict[int, Spread]]) -> Any:
    from limbeck.report.arms import ACCURACY
    from limbeck.report.sections import Cell, Column, Table

    counts = sorted({count for line in points.values() for count in line})
    columns = (Column("Student", numeric=False), *(Column(f"{count} samples") for count in counts))
    rows = tuple(
        (Cell(arm), *(Cell(ACCURACY.text(line.get(c)), line[c].mean if c in line else None) for c in counts))
        for arm, line in points.items()
    )
    return Table("Accuracy", columns, rows, "Mean ± standard deviation over seeds; last epoch.")
