"""What an epoch's line of metrics says of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from limbeck.engine.combine import combine
from limbeck.schedules import Progress, Weight, weight_at


class EpochMetrics:
    """Means over the steps of an epoch: the loss, its terms, and what each of them contributes by its weight."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}

    def add(self, means: Mapping[str, Tensor], weights: Mapping[str, Weight], progress: Progress) -> float:
        """Adds a step and returns its loss."""
        loss = float(combine(means, weights, progress))
        self._add("loss", "", loss)
        for name, mean in means.items():
            value = float(mean)
            self._add("terms", name, value)
            self._add("contributions", name, weight_at(weights[name], progress) * value)
        return loss

    def _add(self, kind: str, name: str, value: float) -> None:
        self._sums[f"{kind}/{name}"] = self._sums.get(f"{kind}/{name}", 0.0) + value

    def summary(self, steps: int) -> dict[str, Any]:
        """Returns ``loss``, ``terms`` and ``contributions`` of an epoch of so many steps, and begins the next one."""
        means: dict[str, dict[str, float]] = {"loss": {}, "terms": {}, "contributions": {}}
        for key, value in self._sums.items():
            kind, _, name = key.partition("/")
            means[kind][name] = value / steps
        self._sums = {}
        return {**means, "loss": means["loss"][""]}

    def state_dict(self) -> dict[str, float]:
        """Returns what a bit-exact continuation needs."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Takes over what :meth:`state_dict` returned."""
        self._sums = dict(state)
