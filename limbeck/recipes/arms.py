"""Comparisons in one file: what the arms share, what each changes, and the teacher caches that they read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from limbeck.engine.stage import Reporter
from limbeck.errors import RecipeError
from limbeck.hyperparameters import Count, WholeNumber, validated_model
from limbeck.recipes.cache import cache_recipe
from limbeck.recipes.load import as_plain, laid_over, load_recipe, with_overrides
from limbeck.recipes.run import default_folder, run_recipe
from limbeck.recipes.schema import Recipe

_HERE = "$cache/"


class CacheSpec(BaseModel):
    """A teacher cache that is written before the arms run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str = Field("teacher", description="the role of the shared recipe that is cached")
    codec: str = Field("topk", description="as for `limbeck cache`")
    k: Count = Field(32, description="tokens kept by `topk`")
    draws: Count = Field(40, description="tokens drawn by `sampled`")
    independent: bool = Field(False, description="whether `sampled` draws each token by itself, as published")


class Arms(BaseModel):
    """Runs that differ in little: ``shared`` is a recipe, and each arm lays its own sections over it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = Field("", description="one line for people")
    seeds: tuple[WholeNumber, ...] = Field((0,), min_length=1, description="seeds of every arm")
    caches: dict[str, CacheSpec] = Field(
        default_factory=dict, description="caches by name; an arm reads one as `$cache/NAME`"
    )
    shared: dict[str, Any] = Field(description="what all arms have in common: task, data, roles, method, train")
    arms: dict[str, dict[str, Any]] = Field(min_length=1, description="by label: the sections that differ")


@dataclass(frozen=True)
class FinishedArms:
    """What a comparison left behind.

    Attributes:
        folder: its folder.
        about: what it is.
        runs: run folders by arm, one a seed.
        seconds: what each arm took, by arm and seed, and each cache, by ``cache NAME``; what was done before is left
            out.
    """

    folder: Path
    about: str
    runs: Mapping[str, tuple[Path, ...]]
    seconds: Mapping[str, float]


def holds_arms(data: Mapping[str, Any]) -> bool:
    """Whether a file is a comparison and not one recipe."""
    return "arms" in data


def run_arms(
    data: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    name: str,
    out: str | Path | None = None,
    trust: bool = False,
    reporter: Reporter | None = None,
) -> FinishedArms:
    """Writes the caches, then runs arm after arm, seed after seed; a killed call continues.

    Args:
        data: what the file holds.
        overrides: ``key=value`` strings, such as ``seeds=[0]`` or ``shared.train.epochs=1``.
        name: what the file is called.
        out: folder of all runs and caches; ``runs/<name>-<hash>`` when None.
        trust: allow models that run the code they name.
        reporter: shows progress.

    Raises:
        LimbeckError: an arm is no recipe, or something went wrong; what is finished is kept.
    """
    arms = validated_model(Arms, with_overrides(data, overrides), f"comparison '{name}'")
    folder = default_folder(name, arms.model_dump(mode="json")) if out is None else Path(out)
    recipes = {
        (label, seed): _recipe(arms, label, _with_caches(own, arms, folder), seed)
        for seed in arms.seeds
        for label, own in arms.arms.items()
    }
    seconds = _Clock(folder / "seconds.json")
    for cache, spec in arms.caches.items():
        with seconds.measuring(f"cache {cache}", _cache_path(folder, cache) / "cache.json"):
            _say(reporter, _write(arms, cache, spec, folder, trust))
    for (label, seed), recipe in recipes.items():
        path = _run_path(folder, label, seed)
        _say(reporter, f"arm {label}, seed {seed}")
        with seconds.measuring(f"{label}-seed{seed}", path / "results.json"):
            run_recipe(recipe, out=path, trust=trust, reporter=reporter)
    runs = {label: tuple(_run_path(folder, label, seed) for seed in arms.seeds) for label in arms.arms}
    return FinishedArms(folder, arms.about, runs, seconds.known)


def arms_to_check(data: Mapping[str, Any], overrides: Sequence[str] = (), *, name: str) -> dict[str, Recipe]:
    """Returns the recipe of every arm, first seed, before anything is written.

    Where an arm reads a cache that is not there yet, the role stands that the cache will be made of.

    Raises:
        RecipeError: an arm is no recipe; the message names it.
    """
    arms = validated_model(Arms, with_overrides(data, overrides), f"comparison '{name}'")
    live = {f"{_HERE}{cache}": arms.shared.get("roles", {}).get(spec.role) for cache, spec in arms.caches.items()}
    found = {}
    for label, own in arms.arms.items():
        roles = {
            role: live.get(str(given.get("cache")), given) if isinstance(given, dict) else given
            for role, given in own.get("roles", {}).items()
        }
        sections = {**own, "roles": roles} if roles else own
        found[label] = _recipe(arms, label, _with_caches(sections, arms, Path()), arms.seeds[0])
    return found


def _say(reporter: Reporter | None, message: str) -> None:
    if reporter is not None:
        reporter.note(message)


def _write(arms: Arms, name: str, spec: CacheSpec, folder: Path, trust: bool) -> str:
    return cache_recipe(
        {**arms.shared, "seed": arms.seeds[0]},
        out=_cache_path(folder, name),
        codec=spec.codec,
        k=spec.k,
        draws=spec.draws,
        independent=spec.independent,
        role=spec.role,
        trust=trust,
    )


def _recipe(arms: Arms, label: str, own: Mapping[str, Any], seed: int) -> Recipe:
    try:
        recipe = load_recipe({**laid_over(arms.shared, own), "seed": seed})
    except RecipeError as error:
        raise RecipeError(f"arm '{label}': {error}") from None
    # The resolved form is what a run folder keeps; it must say everything by itself.
    return load_recipe(as_plain(recipe))


def _with_caches(value: Any, arms: Arms, folder: Path) -> Any:
    """Puts folders where an arm names a cache of this comparison."""
    if isinstance(value, Mapping):
        return {key: _with_caches(entry, arms, folder) for key, entry in value.items()}
    if isinstance(value, str) and value.startswith(_HERE):
        name = value.removeprefix(_HERE)
        if name not in arms.caches:
            raise RecipeError(f"'{value}' names no cache of this comparison; it has {sorted(arms.caches) or 'none'}")
        return str(_cache_path(folder, name))
    return value


def _cache_path(folder: Path, name: str) -> Path:
    return folder / "caches" / name


def _run_path(folder: Path, label: str, seed: int) -> Path:
    return folder / f"{label}-seed{seed}"


class _Clock:
    """Remembers how long things took that were not there before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        self._what, self._done, self._started = "", False, 0.0

    def measuring(self, what: str, product: Path) -> _Clock:
        self._what, self._done = what, product.exists()
        return self

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and not self._done:
            self.known[self._what] = time.perf_counter() - self._started
            self._path.write_text(json.dumps(self.known, indent=1) + "\n")
