"""From what a recipe or a Python caller says to a reward."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from limbeck.errors import RecipeError, UnknownNameError
from limbeck.rewards.base import Callback, Judged, Reward, rewards

RewardLike = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | Reward | Callable[..., float]
"""A name, a name with options, several of those with weights, a reward, or a function."""


class Weighted(Reward):
    """The weighted sum of several rewards.

    Args:
        members: rewards with their weights, in order.

    Example:
        >>> total = build_reward(["maths", {"name": "format", "weight": 0.2}])
        >>> total(Judged("2 + 2 =", "<think>two and two</think><answer>4</answer>", {"answer": "4"}))
        1.2
    """

    def __init__(self, members: Sequence[tuple[Reward, float]]) -> None:
        self.members = tuple(members)
        self.name = " + ".join(member.name for member, _ in self.members)
        self.columns = tuple(dict.fromkeys(column for member, _ in self.members for column in member.columns))

    def __call__(self, sample: Judged) -> float:
        """Returns the sum."""
        return sum(weight * member(sample) for member, weight in self.members)


def build_reward(given: RewardLike, *, trust: bool = False) -> Reward:
    """Returns a reward.

    Args:
        given: a name; a mapping of ``name`` and options; a list of those, each with a ``weight``, to be added up; in
            Python also a :class:`~limbeck.rewards.base.Reward` or a function ``(prompt, completion, record)``. The
            name ``python:package.module:function`` stands for such a function.
        trust: allow ``python:`` functions, which run the code they name.

    Raises:
        UnknownNameError: no reward has that name.
        RecipeError: an option is unknown or out of range, or the function needs trust.
    """
    if isinstance(given, Reward):
        return given
    if isinstance(given, str):
        return _named(given, {}, trust)
    if isinstance(given, Mapping):
        options = {str(key): value for key, value in given.items()}
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise RecipeError(f"a reward is written {{name: maths}}, but this says {dict(given)!r}")
        return _named(name, options, trust)
    if isinstance(given, Sequence):
        return _weighted(given, trust)
    return Callback(given)


def _named(name: str, options: dict[str, Any], trust: bool) -> Reward:
    if name.startswith("python:"):
        if options:
            raise RecipeError(f"the reward '{name}' takes no options, but has {sorted(options)}")
        return Callback(_imported(name, trust), name)
    if "weight" in options:
        raise RecipeError(f"reward '{name}': a weight belongs to a reward in a list; write reward: [{{name: {name}}}]")
    return rewards[name].part(**options)


def _weighted(entries: Sequence[Any], trust: bool) -> Reward:
    if not entries:
        raise RecipeError("the list of rewards is empty; name at least one, for example [maths]")
    members = []
    for entry in entries:
        options = dict(entry) if isinstance(entry, Mapping) else entry
        weight = options.pop("weight", 1.0) if isinstance(options, dict) else 1.0
        if not isinstance(weight, (int, float)) or isinstance(weight, bool):
            raise RecipeError(f"the weight of a reward is a number, but it is {weight!r}")
        members.append((build_reward(options, trust=trust), float(weight)))
    return Weighted(members)


def _imported(name: str, trust: bool) -> Callable[..., float]:
    if not trust:
        raise RecipeError(
            f"the reward '{name}' would run the code it names. If you trust that code, say so: --trust on the command "
            "line, trust=True in Python"
        )
    module_name, _, function = name.removeprefix("python:").partition(":")
    try:
        found: Callable[..., float] = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownNameError(f"the reward '{name}' cannot be imported: {error}") from None
    return found
