"""What of a recipe is searched, and how a choice is written into it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.anatomy import anatomy_of
from limbeck.errors import RecipeError, suggest
from limbeck.methods.base import Method, methods
from limbeck.recipes.method_section import make_method
from limbeck.recipes.schema import Recipe

_COOLEST, _HOTTEST = 1.0, 16.0
_FACTOR = 10.0
_LABEL_TERM = "ce"
_SUBSETS = {"all": slice(None), "last": slice(-1, None), "last two": slice(-2, None), "without first": slice(1, None)}


@dataclass(frozen=True)
class Range:
    """A positive number, searched on a logarithmic scale.

    Attributes:
        name: what it is called in tables.
        low: smallest value.
        high: largest value.
        default: the recipe's own.
        path: where it stands in the ``method`` section.
    """

    name: str
    low: float
    high: float
    default: float
    path: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """One of several taps.

    Attributes:
        name: what it is called in tables.
        options: names of the choices.
        default: the recipe's own.
        taps: module paths of a tap group, by role and choice.
        group: the tap group.
    """

    name: str
    options: tuple[str, ...]
    default: str
    taps: Mapping[str, Mapping[str, tuple[str, ...]]]
    group: str


Dimension = Range | Choice


def space_of(recipe: Recipe, models: Mapping[str, Any], only: Sequence[str] = ()) -> list[Dimension]:
    """Returns what can be searched in the last stage of a recipe.

    That is the method's ``temperature``; the weight of every term but that of the labels, against which the others are
    weighed, where it is a positive number; and which stages are tapped, where a method compares the stages of student
    and teacher and the recipe leaves open which.

    Args:
        recipe: the recipe.
        models: the modules of its roles, which tell what can be tapped.
        only: names of the dimensions to keep; all when empty.

    Raises:
        RecipeError: there is nothing to search, or a name in ``only`` is no dimension.
    """
    spec = recipe.stages[-1].method
    if "methods" in spec:
        raise RecipeError("several methods at once are not searched; search each alone, or set their weights by hand")
    method, given = make_method(spec)
    found = [*_temperature(method, spec), *_weights(method, given), *_taps(recipe, method, models)]
    if not found:
        raise RecipeError(f"'{spec['name']}' has no temperature, no weight and no taps that could be searched")
    for name in only:
        if name not in {d.name for d in found}:
            raise RecipeError(f"'{name}' is not searched. {suggest(name, [d.name for d in found])}")
    return [d for d in found if not only or d.name in only]


def applied(recipe: Mapping[str, Any], space: Sequence[Dimension], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a resolved recipe, as plain data, with chosen values in its last stage."""
    changed = copy.deepcopy(dict(recipe))
    stage = changed["stages"][-1]
    for dimension in space:
        if dimension.name not in values:
            continue
        value = values[dimension.name]
        if isinstance(dimension, Choice):
            for role, taps in dimension.taps.items():
                group = stage["roles"][role].setdefault("taps", {})
                group[dimension.group] = list(taps[str(value)])
            continue
        section = stage["method"]
        for part in dimension.path[:-1]:
            section = section.setdefault(part, {})
        section[dimension.path[-1]] = value
    return changed


def _temperature(method: Method, spec: Mapping[str, Any]) -> list[Dimension]:
    known = inspect.signature(methods[str(spec["name"])].part.__init__).parameters
    value = spec.get("temperature", known["temperature"].default) if "temperature" in known else None
    if not isinstance(value, (int, float)) or not _COOLEST <= value <= _HOTTEST:
        return []
    return [Range("temperature", _COOLEST, _HOTTEST, float(value), ("temperature",))]


def _weights(method: Method, given: Mapping[str, Any]) -> list[Dimension]:
    weights = {**method.weights, **given}
    numbers = {t: float(w) for t, w in weights.items() if isinstance(w, (int, float)) and w > 0}
    return [
        Range(f"weight of {term}", value / _FACTOR, value * _FACTOR, value, ("weights", term))
        for term, value in numbers.items()
        if term != _LABEL_TERM
    ]


def _taps(recipe: Recipe, method: Method, models: Mapping[str, Any]) -> list[Dimension]:
    group, roles = "stages", ("student", "teacher")
    spec = recipe.stages[-1].roles
    if any(role not in models or role not in spec or group not in method.needs.groups(role) for role in roles):
        return []
    if any(spec[role].taps and group in (spec[role].taps or {}) for role in roles):
        return []
    stages = {role: tuple(anatomy_of(models[role]).groups().get(group, ())) for role in roles}
    counts = {len(paths) for paths in stages.values()}
    if len(counts) != 1 or counts <= {0, 1, 2}:
        return []
    options = {name: {role: paths[part] for role, paths in stages.items()} for name, part in _SUBSETS.items()}
    # "last two" and "without first" are one choice where there are three stages.
    distinct = {str(taps): name for name, taps in reversed(options.items())}
    names = tuple(name for name in options if name in distinct.values())
    taps = {role: {name: options[name][role] for name in names} for role in roles}
    return [Choice("taps", names, "all", taps, group)]
