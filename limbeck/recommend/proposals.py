"""Three recipes for what somebody wants, on what evidence, and what the evidence leaves open."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from limbeck.bench.suite import arm_of, load_suite
from limbeck.bench.suite import shipped as shipped_suites
from limbeck.bench.table import Row, read_csv, shipped_results
from limbeck.data.text.source import texts
from limbeck.errors import LimbeckError, RecipeError, UnknownNameError
from limbeck.methods.base import methods
from limbeck.recipes.load import as_plain, load_recipe
from limbeck.recipes.schema import Recipe
from limbeck.recommend.evidence import BASELINES, Evidence, Wish, data_name, evidence_for, samples_of

_PROPOSED = 3
_TRIED = 12
_OF_LABELS = ("labelled", "unlabelled", "label_noise", "imbalance")
"""Keys of a data section that make labels few or wrong, or classes rare."""


@dataclass(frozen=True)
class Proposal:
    """A recipe that is proposed.

    Attributes:
        evidence: what speaks for it.
        recipe: the recipe as plain data.
        role: why it is among the three.
        reasons: what was measured, in sentences.
        path: where it was written; None where it was not.
    """

    evidence: Evidence
    recipe: dict[str, Any]
    role: str
    reasons: tuple[str, ...]
    path: Path | None = None

    @property
    def name(self) -> str:
        """The arm's label in the comparisons."""
        return self.evidence.arm


@dataclass(frozen=True)
class Recommendation:
    """What is proposed, and how far it can be trusted.

    Attributes:
        wish: what was asked for.
        proposals: at most three, the first the best supported.
        gaps: what no recorded comparison covers, in sentences.
        refused: methods that the evidence favours but that cannot be used here, with the reason.
    """

    wish: Wish
    proposals: tuple[Proposal, ...]
    gaps: tuple[str, ...]
    refused: Mapping[str, str]


def recommend(
    wish: Wish,
    *,
    results: Sequence[str | Path] = (),
    teacher_weights: str = "zoo",
    data: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    usable: Callable[[dict[str, Any]], None] | None = None,
) -> Recommendation:
    """Proposes three recipes from the comparisons that come with limbeck and from further ones.

    The first has the largest gain over plain KD that is left when its standard error is taken off; the second is the
    best of another family of methods; the third is plain KD, the least that anything has to beat, or the next best
    where KD is proposed already.

    Args:
        wish: models, data and budget.
        results: further tables of comparisons, as ``limbeck bench`` writes them.
        teacher_weights: weights of the teacher in the recipes: ``zoo``, a file, a run folder.
        data: further entries of the recipes' ``data`` section, such as ``path``.
        out: folder into which the recipes and ``evidence.yaml`` are written; nothing is when None.
        usable: raises a LimbeckError for a recipe that cannot work here; :func:`limbeck.recipes.check.check_recipe` by
            default, which builds it and tries a few steps.

    Raises:
        DataError: a table of results is no such table.
        UnknownNameError: no comparison is recorded at all.
        RecipeError: the data are text, for which nothing is proposed, or no method of the comparisons can be used here;
            says why.
    """
    if wish.data in texts:
        raise RecipeError(
            f"'{wish.data}' is text, and recipes are proposed for classifiers only; `limbeck explain METHOD` says how "
            "a method for language models did, and `limbeck bench` compares several on text of yours"
        )
    rows = [row for suite, table in shipped_results().items() for row in _comparable(suite, table)]
    rows += [row for path in results for row in read_csv(Path(path))]
    rows = [row for row in rows if not math.isnan(row.accuracy)]  # Comparisons of language models say nothing here.
    ranked = [e for e in evidence_for(wish, rows) if e.method not in BASELINES]
    if not ranked:
        raise UnknownNameError("no comparison with plain KD is recorded; run `limbeck bench` and give its results.csv")
    refused: dict[str, str] = {}
    try_out = usable or _check

    def works(evidence: Evidence) -> dict[str, Any] | None:
        try:
            recipe = _recipe_for(wish, evidence, teacher_weights, dict(data or {}))
            try_out(recipe)
        except LimbeckError as error:
            refused[evidence.arm] = str(error)
            return None
        return recipe

    chosen = _choose(ranked, works)
    if not chosen:
        raise RecipeError("no method of the comparisons can be used here. " + "; ".join(_first_of(refused)))
    proposals = tuple(Proposal(e, recipe, role, _reasons(e)) for e, recipe, role in chosen)
    found = Recommendation(wish, proposals, tuple(_gaps(wish, proposals, rows)), refused)
    return found if out is None else _written(found, Path(out))


def _comparable(suite: str, rows: Sequence[Row]) -> list[Row]:
    """Returns the runs of a shipped comparison that answer the question asked here: which method, all else equal.

    A comparison whose labels are few, bought or wrong, or whose classes are out of balance, asks another one, and so
    does one that trains a teacher of its own in every run; an arm may also be there to see what other data would do.
    """
    if suite not in shipped_suites():
        return list(rows)
    found = load_suite(suite)[1]
    if "stages" in found.recipe or _other_data(found.recipe):
        return []
    return [row for row in rows if not _other_data(found.arms.get(row.arm, {}), ("limit", "options"))]


def _other_data(recipe: Mapping[str, Any], also: Sequence[str] = ()) -> bool:
    """Says whether a recipe changes its labels or classes, or its data section has one of the keys ``also``."""
    data = recipe.get("data")
    changed = set(data) if isinstance(data, dict) else set()
    return recipe.get("active") is not None or bool(changed & {*_OF_LABELS, *also})


def _choose(
    ranked: Sequence[Evidence], works: Callable[[Evidence], dict[str, Any] | None]
) -> list[tuple[Evidence, dict[str, Any], str]]:
    chosen: list[tuple[Evidence, dict[str, Any], str]] = []
    tried: dict[str, dict[str, Any] | None] = {}

    def take(candidates: Sequence[Evidence], role: str) -> None:
        taken = {e.arm for e, _, _ in chosen}
        for evidence in candidates:
            if evidence.arm in taken or (len(tried) >= _TRIED and evidence.arm not in tried):
                continue
            recipe = tried[evidence.arm] if evidence.arm in tried else tried.setdefault(evidence.arm, works(evidence))
            if recipe is not None:
                chosen.append((evidence, recipe, role))
                return

    take(ranked, "best supported")
    if chosen:
        first = _family(chosen[0][0])
        take([e for e in ranked if _family(e) != first and e.arm != "kd"], "best of another kind")
    take([e for e in ranked if e.arm == "kd"], "the reference that others have to beat")
    while len(chosen) < _PROPOSED:
        before = len(chosen)
        take(ranked, "next best")
        if len(chosen) == before:
            break
    return chosen[:_PROPOSED]


def _family(evidence: Evidence) -> str:
    return str(methods[evidence.method].about.get("family", "")) if evidence.method in methods else ""


def _check(recipe: dict[str, Any]) -> None:
    from limbeck.recipes.check import check_recipe

    check_recipe(recipe)


def _recipe_for(wish: Wish, evidence: Evidence, weights: str, data: dict[str, Any]) -> dict[str, Any]:
    """The arm's recipe of the closest comparison, with the wished models, data and budget."""
    source = evidence.comparisons[0]
    recipe = as_plain(_recorded(source.suite, evidence))
    for stage in recipe["stages"]:
        # What the method needs of the data stays; the rest belonged to the recorded data set.
        needed = {key: stage["data"][key] for key in ("holdout", "views") if stage["data"].get(key)}
        stage["data"] = {"name": wish.data, **needed, **data} | ({"limit": wish.samples} if wish.samples else {})
        if wish.epochs:
            # Stages of one recipe share the epochs as they did in the comparison.
            total = sum(s["train"]["epochs"] for s in as_plain(_recorded(source.suite, evidence))["stages"])
            stage["train"]["epochs"] = max(1, round(stage["train"]["epochs"] * wish.epochs / total))
        for role in stage["roles"].values():
            # One of the two only: teacher and student may be of one model, or the old student the new teacher.
            if not _exchange(role, source.teacher, {"model": wish.teacher, "weights": weights}):
                _exchange(role, source.student, {"model": wish.student})
    recipe["about"] = (
        f"{wish.teacher} to {wish.student} on {wish.data} by {evidence.arm}, proposed by limbeck recommend"
    )
    recipe["seed"] = 0
    return as_plain(load_recipe(recipe))


def _exchange(role: dict[str, Any], model: str, by: dict[str, Any]) -> bool:
    """Puts another model into a role that has ``model``, without the old one's weights and taps; says whether."""
    named = role.get("model")
    name = named.get("name") if isinstance(named, dict) else named
    if name == model:
        for key in ("weights", "taps"):
            role.pop(key, None)
        role.update(copy.deepcopy(by))
    return name == model


def _recorded(suite: str, evidence: Evidence) -> Recipe:
    """The recipe with which an arm was run; for a comparison that is not shipped, the method with its defaults."""
    if suite in shipped_suites():
        recipes = load_suite(suite)[1].recipes()
        found = next((r for (label, _), r in recipes.items() if arm_of(label)[0] == evidence.arm), None)
        if found is not None:
            return found
    source = evidence.comparisons[0]
    return load_recipe(
        {
            "data": source.data.partition(" (")[0],
            "roles": {"teacher": {"model": source.teacher}, "student": {"model": source.student}},
            "method": evidence.method,
            "train": {"epochs": source.epochs},
        }
    )


def _reasons(evidence: Evidence) -> tuple[str, ...]:
    said = []
    for c in evidence.comparisons:
        over_none = (
            "" if c.gain_over_none != c.gain_over_none else f", {100 * c.gain_over_none:+.2f} over no distillation"
        )
        over_kd = "" if evidence.arm == "kd" else f"{100 * c.gain:+.2f} ± {100 * c.error:.2f} points over plain KD"
        gained = (over_kd + over_none).removeprefix(", ")
        said.append(
            f"{c.suite}: {c.teacher} to {c.student} on {c.data}, {c.epochs} epochs, {c.seeds} "
            f"seed{'s' if c.seeds != 1 else ''}: {gained} (closeness {c.closeness:.2f})"
        )
    return tuple(said)


def _gaps(wish: Wish, proposals: Sequence[Proposal], rows: Sequence[Row]) -> list[str]:
    """What the recorded comparisons do not tell about this wish."""
    gaps = []
    if not any(data_name(row) == wish.data for row in rows):
        known = ", ".join(sorted({data_name(row) for row in rows}))
        gaps.append(f"No comparison was made on {wish.data}; the figures are those of {known}.")
    if not any((row.teacher, row.student) == (wish.teacher, wish.student) for row in rows):
        gaps.append(f"No comparison was made of {wish.teacher} and {wish.student}.")
    seeds = min(c.seeds for p in proposals for c in p.evidence.comparisons)
    if seeds < 5:
        gaps.append(f"Figures rest on as few as {seeds} seeds; differences within their error are no differences.")
    epochs = sorted({c.epochs for p in proposals for c in p.evidence.comparisons})
    if wish.epochs and not epochs[0] / 2 <= wish.epochs <= epochs[-1] * 2:
        gaps.append(
            f"Recorded runs took {epochs[0]} to {epochs[-1]} epochs, not {wish.epochs}; orders change with length."
        )
    limits = sorted({n for row in rows if (n := samples_of(row)) is not None})
    if limits and (wish.samples is None or wish.samples > 2 * limits[-1]):
        gaps.append(f"Recorded runs had at most {limits[-1]} training samples.")
    gaps.append("Hyperparameters are those of the comparisons; `limbeck tune` searches for better ones.")
    if len(proposals) > 1 and proposals[0].evidence.gain - proposals[0].evidence.error <= 0:
        gaps.append("No method is better than plain KD by more than its standard error.")
    return gaps


def _first_of(refused: Mapping[str, str]) -> list[str]:
    return [f"{arm}: {reason}" for arm, reason in list(refused.items())[:_PROPOSED]]


def _written(found: Recommendation, out: Path) -> Recommendation:
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for number, proposal in enumerate(found.proposals, 1):
        path = out / f"{number}-{''.join(c if c.isalnum() else '_' for c in proposal.name)}.yaml"
        said = "".join(f"# {line}\n" for line in (f"{proposal.role}.", *proposal.reasons))
        path.write_text(said + yaml.safe_dump(proposal.recipe, sort_keys=False, allow_unicode=True), "utf-8")
        written.append(Proposal(proposal.evidence, proposal.recipe, proposal.role, proposal.reasons, path))
    facts = {
        "proposals": [{"recipe": str(p.path), "role": p.role, "evidence": list(p.reasons)} for p in written],
        "not_covered": list(found.gaps),
        "refused": dict(found.refused),
    }
    (out / "evidence.yaml").write_text(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=120), "utf-8")
    return Recommendation(found.wish, tuple(written), found.gaps, found.refused)
