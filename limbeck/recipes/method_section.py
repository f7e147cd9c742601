"""From a recipe's ``method`` section, or what a Python caller gives in its place, to a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.errors import RecipeError
from limbeck.functional.logit_transforms import logit_transform
from limbeck.methods.base import LogitMethod, Method, build_method
from limbeck.methods.combined import Combined
from limbeck.recipes.weights import weight_from
from limbeck.schedules import Weight

MethodLike = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | Method
"""A method by name, by name and hyperparameters, several of those at once, or a method itself."""


def as_method(given: MethodLike) -> tuple[Method, dict[str, Weight]]:
    """Returns a method and the weights that were set with it, from what a Python caller may give.

    Raises:
        RecipeError: a name or a hyperparameter is unknown or out of range.
    """
    if isinstance(given, Method):
        return given, {}
    if isinstance(given, str):
        return make_method({"name": given})
    return make_method(given if isinstance(given, Mapping) else {"methods": given})


def make_method(spec: Mapping[str, Any]) -> tuple[Method, dict[str, Weight]]:
    """Returns a method and the weights that a recipe's ``method`` section sets.

    Args:
        spec: ``name``, hyperparameters, ``weights`` and ``logit_transform`` (a name, or a mapping of ``name`` and
            options); or ``methods``, a list of those with a ``weight`` each, to be used at once.

    Raises:
        RecipeError: a hyperparameter or the logit transform is unknown or out of range, or the method has no logits to
            transform.
    """
    if "methods" in spec:
        return _combined(spec), {}
    options = dict(spec)
    if "name" not in options:
        raise RecipeError("the method has no name; write `method: {name: kd}`")
    name, weights, transform = (
        str(options.pop("name")),
        options.pop("weights", {}),
        options.pop("logit_transform", None),
    )
    if not isinstance(weights, Mapping):
        raise RecipeError(
            f"method.weights should be a mapping from a term's name to its weight, for example {{ce: 1.0}}; "
            f"it is {weights!r}"
        )
    given = {str(term): weight_from(weight, f"method.weights.{term}") for term, weight in weights.items()}
    method = build_method(name, **{str(k): v for k, v in options.items()})
    if transform is not None:
        if not isinstance(method, LogitMethod):
            raise RecipeError(
                f"method '{name}' compares no logits, so logit_transform has nothing to change; remove it"
            )
        try:
            chosen = transform if isinstance(transform, Mapping) else {"name": transform}
            further = {str(key): value for key, value in chosen.items() if key != "name"}
            method.logit_transform = logit_transform(str(chosen.get("name", "")), **further)
        except ValueError as error:
            raise RecipeError(f"method '{name}': {error}") from None
    return method, given


def _combined(spec: Mapping[str, Any]) -> Method:
    entries, unknown = spec["methods"], sorted(set(spec) - {"methods"})
    if unknown:
        raise RecipeError(f"'{unknown[0]}' stands beside `methods`; give it to one of the methods in the list")
    if not isinstance(entries, (list, tuple)) or not entries:
        raise RecipeError("`methods` should be a list of methods, for example [kd, {name: at, weight: 0.5}]")
    members: dict[str, Method] = {}
    factors: dict[str, float] = {}
    for entry in entries:
        options = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(options, Mapping):
            raise RecipeError(f"an entry of `methods` is a name, or a mapping with a name; it is {entry!r}")
        factor = weight_from(options.get("weight", 1.0), "methods.weight")
        if callable(factor):
            raise RecipeError("`weight` in `methods` is a number; schedules belong to `weights` of single terms")
        member, weights = make_method({k: v for k, v in options.items() if k != "weight"})
        member.weights.update(weights)
        name = str(options.get("name"))
        label = next(
            free for n in range(1, len(entries) + 1) if (free := name if n == 1 else f"{name}{n}") not in members
        )
        members[label], factors[label] = member, factor
    return Combined(members, factors)
