"""Which evaluations are to run, with which options."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ConfigDict, create_model

from limbeck.errors import RecipeError
from limbeck.evaluate.base import Evaluation, evaluations
from limbeck.hyperparameters import validated_model
from limbeck.registry import Entry

Wanted = str | Mapping[str, Any]
"""An evaluation by name, or as a mapping of ``name`` and options."""


def planned(wanted: Sequence[Wanted]) -> dict[str, dict[str, Any]]:
    """Returns the checked options of each evaluation that is wanted, by name and in order.

    Raises:
        UnknownNameError: no evaluation has that name; proposes near matches.
        RecipeError: an option is unknown or out of its range, or an evaluation is named twice.

    Example:
        >>> planned(["accuracy", {"name": "bootstrap", "resamples": 200}])
        {'accuracy': {}, 'bootstrap': {'resamples': 200}}
    """
    plan: dict[str, dict[str, Any]] = {}
    for entry in wanted:
        options = {"name": entry} if isinstance(entry, str) else {str(k): v for k, v in entry.items()}
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise RecipeError(f"an evaluation is a name or a mapping like {{name: ood, data: digits}}, not {entry!r}")
        if name in plan:
            raise RecipeError(f"the evaluation '{name}' is named twice; give it once, with all its options")
        plan[name] = _checked(evaluations[name], options)
    return plan


def with_options(arguments: Sequence[str]) -> list[Wanted]:
    """Turns ``["accuracy", "ood.data=digits"]`` into evaluations with their options; an option names its evaluation.

    Raises:
        RecipeError: an option is not written ``evaluation.option=value``.

    Example:
        >>> with_options(["accuracy", "ood.data=digits", "ood.samples=100"])
        [{'name': 'accuracy'}, {'name': 'ood', 'data': 'digits', 'samples': 100}]
    """
    plan: dict[str, dict[str, Any]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        name, dot, option = key.partition(".")
        entry = plan.setdefault(name, {"name": name})
        if not equals and not dot:
            continue
        if not equals or not option:
            raise RecipeError(f"an option is written evaluation.option=value, like ood.data=digits; got '{argument}'")
        try:
            entry[option] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise RecipeError(f"the value of '{argument}' is not plain YAML") from None
    return list(plan.values())


def _checked(entry: Entry[Evaluation], options: dict[str, Any]) -> dict[str, Any]:
    """Returns the given options, with the types that the evaluation asks for."""
    hints = typing.get_type_hints(entry.part, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(entry.part).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    model = create_model(entry.name, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)
    values = validated_model(model, options, f"evaluation '{entry.name}'")
    return {name: getattr(values, name) for name in options}
