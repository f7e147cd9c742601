"""How a divergence is written, named and found: one small function of log-probabilities each.

Such a function takes log-probabilities of the target (teacher) and of the approximation (student), both ``[..., V]``,
and returns what every class contributes, ``[..., V]``; the divergence is the sum over the last dimension. That is all
a new one has to say: masking, temperature, vocabulary handling, chunks, truncated targets and their bounds come from
:mod:`limbeck.functional.token_losses` and :mod:`limbeck.functional.loss_head`. A function may also state its *slope*,
the derivative of the divergence by each log-probability of the approximation; where it does not, autograd finds it.

Natural logarithms throughout. No contribution has an epsilon, and where a distribution has no mass its side contributes
exactly zero, also when both logarithms are ``-inf``.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Contributions = Callable[..., Tensor]
"""``(log_p, log_q, **parameters) -> [..., V]``."""


@dataclass(frozen=True, eq=False)
class Divergence:
    """A divergence with its parameters fixed. The same name and parameters always give the same object.

    Attributes:
        name: its name.
        parameters: values of its parameters.
        contributions: what each class adds, from ``log_p`` and ``log_q`` ``[..., V]``.
        slope: derivative by ``log_q``, ``[..., V]``; None where autograd finds it.
        convex: whether a contribution is convex in the target's probability and depends on its own class only, which
            bounds from truncated targets need.
        cross_entropy: whether it is the cross-entropy with the target up to a part without gradient, so that drawn
            and partial targets serve it.
    """

    name: str
    parameters: Mapping[str, Any]
    contributions: Contributions
    slope: Contributions | None = None
    convex: bool = False
    cross_entropy: bool = False

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Returns the divergence of ``log_q`` ``[..., V]`` from ``log_p``, ``[...]`` in nats."""
        return self.contributions(log_p, log_q).sum(-1)


@dataclass(frozen=True)
class _Registered:
    function: Contributions
    slope: Contributions | None
    convex: bool
    cross_entropy: bool
    defaults: Mapping[str, Any] = field(default_factory=dict)


_DIVERGENCES: dict[str, _Registered] = {}


def register_divergence(
    name: str, *, slope: Contributions | None = None, convex: bool = False, cross_entropy: bool = False
) -> Callable[[Contributions], Contributions]:
    """Returns a decorator that makes a function of log-probabilities a divergence that recipes can name.

    Args:
        name: its name.
        slope: derivative of the divergence by ``log_q``, with the same arguments; found by autograd when None.
        convex: see :class:`Divergence`.
        cross_entropy: see :class:`Divergence`.

    Raises:
        ValueError: another function has that name, or a parameter has no default.

    Example:
        >>> @register_divergence("squared_difference")
        ... def squared_difference(log_p, log_q, *, scale=1.0):
        ...     return scale * (log_p.exp() - log_q.exp()) ** 2
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> divergence("squared_difference", scale=2.0)(p.log(), q.log())
        tensor(0.2500)
    """

    def decorate(function: Contributions) -> Contributions:
        taken = _DIVERGENCES.get(name)
        if taken is not None and taken.function.__qualname__ != function.__qualname__:
            raise ValueError(f"the divergence '{name}' is taken by {taken.function.__qualname__}")
        keywords = list(inspect.signature(function).parameters.values())[2:]
        bare = [p.name for p in keywords if p.default is inspect.Parameter.empty]
        if bare:
            raise ValueError(f"the divergence '{name}' needs a default for its parameter '{bare[0]}'")
        defaults = {p.name: p.default for p in keywords}
        _fixed.cache_clear()
        _DIVERGENCES[name] = _Registered(function, slope, convex, cross_entropy, defaults)
        return function

    return decorate


def divergence_names() -> list[str]:
    """Returns the names of all divergences."""
    importlib.import_module("limbeck.functional.log_divergences")
    return sorted(_DIVERGENCES)


def divergence(name: str, **parameters: Any) -> Divergence:
    """Returns the divergence called ``name`` with the given parameters.

    Raises:
        ValueError: no divergence has that name, or a parameter is unknown or out of range.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> divergence("forward_kl")(p.log(), q.log())
        tensor(0.1438)
    """
    return _fixed(name, tuple(sorted(parameters.items())))


@functools.lru_cache(maxsize=256)
def _fixed(name: str, given: tuple[tuple[str, Any], ...]) -> Divergence:
    parameters = dict(given)
    importlib.import_module("limbeck.functional.log_divergences")  # which registers those that come with limbeck
    if name not in _DIVERGENCES:
        near = difflib.get_close_matches(name, _DIVERGENCES, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(divergence_names())}"
        raise ValueError(f"unknown divergence '{name}'; {hint}")
    entry = _DIVERGENCES[name]
    unknown = [key for key in parameters if key not in entry.defaults]
    if unknown:
        known = ", ".join(entry.defaults) or "none"
        raise ValueError(f"the divergence '{name}' has no parameter '{unknown[0]}'; it has: {known}")
    settings = {**entry.defaults, **parameters}
    even = torch.full((1, 2), -math.log(2.0), dtype=torch.float64)
    entry.function(even, even, **settings)  # refuses what is out of range, here and not at the first step
    return Divergence(
        name,
        settings,
        functools.partial(entry.function, **settings),
        None if entry.slope is None else functools.partial(entry.slope, **settings),
        entry.convex,
        entry.cross_entropy,
    )
