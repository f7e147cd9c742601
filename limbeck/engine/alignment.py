"""Gradients of terms that give way to the others: collected over a whole batch, then merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from limbeck.engine import distributed, sharding
from limbeck.engine.combine import combine
from limbeck.errors import RecipeError
from limbeck.functional.gradient_alignment import align_gradients
from limbeck.schedules import Progress, Weight


class Alignment:
    """Keeps the gradients of two groups of terms apart until a batch is complete.

    Whether they conflict is asked of the whole batch, so neither micro-batches nor processes change the answer.

    Args:
        parameters: everything that trains.
        yielding: names of the terms whose gradients give way.

    Raises:
        RecipeError: a parameter is sharded.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], yielding: frozenset[str]) -> None:
        if any(map(sharding.is_sharded, parameters)):
            raise RecipeError(
                "the method compares whole gradients, which sharded parameters do not have in one place; "
                "set train.sharding to ddp"
            )
        self._parameters, self._yielding = list(parameters), yielding
        self._sums: dict[bool, list[Tensor | None]] = {}

    def add(
        self, means: Mapping[str, Tensor], weights: Mapping[str, Weight], progress: Progress, scale: float = 1.0
    ) -> None:
        """Adds the gradients of a part of the batch, of its firm and of its yielding terms."""
        for gives_way in (False, True):
            names = frozenset(name for name in means if (name in self._yielding) == gives_way)
            if not names:
                continue
            loss = combine(means, weights, progress, names) * scale
            found = torch.autograd.grad(loss, self._parameters, retain_graph=not gives_way, allow_unused=True)
            before = self._sums.get(gives_way, [None] * len(found))
            self._sums[gives_way] = [b if f is None else f if b is None else b + f for b, f in zip(before, found)]

    def merge(self) -> None:
        """Puts the merged gradients of the batch into the parameters."""
        nothing: list[Tensor | None] = [None] * len(self._parameters)
        groups = [self._sums.get(gives_way, nothing) for gives_way in (False, True)]
        self._sums = {}
        if distributed.world_size() > 1:
            for group in groups:
                distributed.average(g for g in group if g is not None)
        for parameter, gradient in zip(self._parameters, align_gradients(*groups)):
            parameter.grad = gradient
