"""Searches a student for a recipe's teacher and data, without training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from limbeck.data.subsets import limit
from limbeck.errors import RecipeError
from limbeck.functional.rank_correlation import kendall_tau, spearman_rho
from limbeck.recipes.load import as_plain, load_recipe
from limbeck.recipes.run import run_recipe
from limbeck.recipes.schema import Recipe
from limbeck.recipes.stage_data import build_data
from limbeck.storage import write_durably
from limbeck.students.search.evolve import Candidate, Evolution, Settings
from limbeck.students.search.score import Scorer
from limbeck.students.search.space import build_space


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        candidates: all scored students, the best first.
        recipe: file of the recipe with the best student.
    """

    candidates: list[Candidate]
    recipe: Path


def search_recipe(
    recipe: str | Path | dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    out: Path,
    space: str | dict[str, Any] = "residual",
    settings: Settings | None = None,
    batch: int = 64,
    repeats: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Finds a student for the last stage of a recipe and writes the recipe with that student.

    Args:
        recipe: a file, the name of a shipped recipe or a mapping.
        overrides: ``key=value`` strings.
        out: folder of ``recipe.yaml`` and ``scores.json``; a killed search continues from the scores there.
        space: see :func:`limbeck.students.search.space.build_space`.
        settings: how to search.
        batch: images that students and teacher are compared on, balanced over classes.
        repeats: initialisations that a score is the mean of.
        progress: called with the students scored and those to score.

    Raises:
        RecipeError: the recipe has no teacher model, or the space holds nothing within the budget.
    """
    loaded, chosen = load_recipe(recipe, overrides), settings or Settings()
    spec = loaded.stages[-1]
    teacher = spec.roles["teacher"].model if "teacher" in spec.roles else None
    if teacher is None:
        raise RecipeError("a search needs roles.teacher with a model, whose architecture students are compared with")
    data = build_data(spec.data, spec, loaded.seed, shuffle=False)
    chosen_source = limit(data.train, batch)
    shown = type(data.loader)(chosen_source, (), batch_size=len(chosen_source), shuffle=False)
    first = next(iter(shown.epoch(0)))
    scorer = Scorer(
        teacher, first["inputs"], first["labels"], num_classes=data.train.info.num_classes, repeats=repeats,
        seed=chosen.seed,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "scores.json"
    # Scores belong to one teacher, batch and seed; others are not taken over.
    origin = json.dumps([teacher, shown.fingerprint(), len(chosen_source), repeats, chosen.seed], sort_keys=True)
    before = json.loads(kept.read_text()) if kept.exists() else {}
    known: dict[str, Any] = before.get("scores", {}) if before.get("origin") == origin else {}

    def scored(text: str, scores: Any) -> None:
        known[text] = dict(scores)
        write_durably(kept, [json.dumps({"origin": origin, "scores": known}).encode()])
        if progress is not None:
            progress(len(known), chosen.candidates)

    history = Evolution(build_space(space), scorer, scorer.cost, chosen, known=dict(known), scored=scored).run()
    ranked = sorted(history, key=lambda c: -c.value)
    plain = with_student(loaded, ranked[0].spec)
    file = out / "recipe.yaml"
    write_durably(file, [yaml.safe_dump(plain, sort_keys=False).encode()])
    return Found(ranked, file)


def with_student(recipe: Recipe, spec: dict[str, Any]) -> dict[str, Any]:
    """Returns a recipe as plain data, with another student in its last stage."""
    plain = as_plain(recipe)
    student = dict(plain["stages"][-1]["roles"]["student"])
    student.pop("weights", None)
    plain["stages"][-1]["roles"]["student"] = {**student, "model": spec}
    return plain


def rank_correlations(
    recipe: str | Path | dict[str, Any], found: Found, count: int, *, out: Path, overrides: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Trains students spread over the ranking and returns how well each score orders their accuracy.

    Args:
        recipe: the recipe that was searched.
        found: what was found.
        count: students to train.
        out: folder of their runs.
        overrides: ``key=value`` strings.

    Returns:
        Kendall's tau and Spearman's rho by score, costs included: look whether a score says more than size does.
    """
    loaded = load_recipe(recipe, overrides)
    places = np.unique(np.linspace(0, len(found.candidates) - 1, count).round().astype(int))
    trained = [found.candidates[place] for place in places]
    accuracy = [
        run_recipe(with_student(loaded, c.spec), out=out / f"student{place}").results["accuracy"]["top1"]
        for place, c in zip(places, trained)
    ]
    target = torch.tensor(accuracy, dtype=torch.float64)
    columns = {name: [c.scores[name] for c in trained] for name in trained[0].scores}
    columns["value"] = [c.value for c in trained]
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
    return {
        name: {"kendall": kendall_tau(t, target).item(), "spearman": spearman_rho(t, target).item()}
        for name, t in tensors.items()
    }
