"""The gradient of each loss term: how long it is, whether it agrees with the others, and weights that balance them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine import distributed
from limbeck.engine.settings import Balance, TrainSettings
from limbeck.errors import RecipeError, suggest
from limbeck.methods.base import Method
from limbeck.schedules import Progress, Weight, weight_at


class TermGradients:
    """Measures, every so many steps, the gradient that each term alone gives the student.

    A measurement is one more backward pass a term. ``norm`` is the length of a term's gradient times its weight,
    ``cosine`` that between it and the weighted gradients of all other terms: below zero, the term works against them.

    With a balance, the weight of every term but the first is such that its gradient is as long as the first one's,
    times its share. Lengths are smoothed over measurements, by their logarithms. A term whose own weight is zero for
    the moment stays off, and one without a gradient keeps its own weight. Where several processes train, lengths are
    means over processes.

    Args:
        parameters: those of the student.
        every: steps between measurements.
        balance: how terms are balanced; not at all when None.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], every: int, balance: Balance | None = None) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self._every, self._balance = every, balance
        self._lengths: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._measured = 0

    def due(self, progress: Progress) -> bool:
        """Whether this step is one to measure at."""
        return progress.step % self._every == 0

    def measure(self, means: Mapping[str, Tensor], weights: Mapping[str, Weight], progress: Progress) -> None:
        """Takes the gradients of the terms' means; their graph stays."""
        gradients = {name: self._gradient(mean) for name, mean in means.items()}
        processes = distributed.world_size()
        lengths = distributed.totals([float(g.norm()) / processes for g in gradients.values()])
        for name, length in zip(gradients, lengths):
            self._smooth(name, length)
        effective = self.weights(weights)
        weighted = {name: weight_at(effective[name], progress) * g for name, g in gradients.items()}
        total = torch.stack(list(weighted.values())).sum(0)
        self._measured += 1
        for name, own in weighted.items():
            self._add(f"norm/{name}", float(own.norm()))
            self._add(f"cosine/{name}", _cosine(own, total - own))

    def _gradient(self, mean: Tensor) -> Tensor:
        """Returns the gradient as one vector; zeros where the term does not depend on a parameter."""
        found: Sequence[Tensor | None] = [None] * len(self._parameters)
        if mean.requires_grad:
            found = torch.autograd.grad(mean, self._parameters, retain_graph=True, allow_unused=True)
        pairs = zip(self._parameters, found)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for p, g in pairs])

    def _smooth(self, name: str, length: float) -> None:
        if self._balance is None or not 0 < length < math.inf:
            return
        old, kept = self._lengths.get(name), self._balance.smoothing
        self._lengths[name] = length if old is None else math.exp(kept * math.log(old) + (1 - kept) * math.log(length))

    def _add(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value

    def weights(self, weights: Mapping[str, Weight]) -> Mapping[str, Weight]:
        """Returns the weights that count: the given ones, or balanced ones once something was measured."""
        if self._balance is None or not self._lengths:
            return weights
        first = next((name for name in weights if name in self._lengths), None)
        if first is None:
            return weights
        balanced = dict(weights)
        for name in weights:
            if name != first and name in self._lengths:
                factor = self._balance.shares.get(name, 1.0) * self._lengths[first] / self._lengths[name]
                balanced[name] = _follow(weights[first], weights[name], factor)
        return balanced

    def summary(self) -> dict[str, dict[str, float]]:
        """Returns the means since the last call, by term: ``norm`` and ``cosine``; nothing when none was measured."""
        means: dict[str, dict[str, float]] = {}
        for key, value in self._sums.items():
            kind, _, name = key.partition("/")
            means.setdefault(name, {})[kind] = value / self._measured
        self._sums, self._measured = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Returns what a bit-exact continuation needs."""
        return {"lengths": dict(self._lengths), "sums": dict(self._sums), "measured": self._measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` returned."""
        self._lengths, self._sums = dict(state["lengths"]), dict(state["sums"])
        self._measured = int(state["measured"])


def watch_for(
    settings: TrainSettings, method: Method, learners: Mapping[str, nn.Module], *, sharded: bool
) -> TermGradients | None:
    """Returns what measures the gradients of terms, where the settings ask for it.

    Raises:
        RecipeError: the student is sharded, the method does not minimise one sum of its terms, or a share is of no
            term.
    """
    balance, every = settings.balance, settings.gradient_metrics
    if balance is None and not every:
        return None
    if sharded:
        raise RecipeError(
            "gradients of single terms need the student in one place; set train.sharding to ddp, or remove "
            "train.balance and train.gradient_metrics"
        )
    if balance is not None and (len(method.players(learners)) > 1 or method.yielding()):
        raise RecipeError(
            f"{method.called} does not minimise one sum of its terms, so train.balance has nothing to "
            "balance; remove it"
        )
    for name in balance.shares if balance is not None else ():
        if name not in method.weights:
            raise RecipeError(f"train.balance.shares names no term '{name}'. {suggest(name, method.weights)}")
    return TermGradients(list(learners["student"].parameters()), balance.every if balance else every, balance)


def _follow(first: Weight, own: Weight, factor: float) -> Callable[[Progress], float]:
    def weight(progress: Progress) -> float:
        return factor * weight_at(first, progress) if weight_at(own, progress) > 0 else 0.0

    return weight


def _cosine(one: Tensor, other: Tensor) -> float:
    lengths = float(one.norm()) * float(other.norm())
    return float(one @ other) / lengths if lengths > 0 else 0.0
