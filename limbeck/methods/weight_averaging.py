"""Stochastic weight averaging of a learner while it trains.

Reference:
    Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018,
    https://arxiv.org/abs/1803.05407
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.schedules import Progress


class WeightAverage(nn.Module):
    """Mean of a model's floating-point tensors at the end of each epoch from ``start`` on.

    Running statistics are averaged like the parameters, so no further pass over the data is needed. At the end of the
    run the mean takes the place of the model's own tensors. The sums are buffers, so a resumed run has them.

    Args:
        model: the model that trains.
        start: part of the run after which epochs count, in [0, 1).
    """

    def __init__(self, model: nn.Module, start: float) -> None:
        super().__init__()
        # In a tuple, so that the model is no part of this one.
        self._model = (model,)
        self.start = start
        self._names: dict[str, str] = {}
        for number, (name, tensor) in enumerate(self._tensors().items()):
            self._names[name] = f"mean{number}"
            self.register_buffer(self._names[name], torch.zeros_like(tensor))
        self.count: Tensor
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def _tensors(self) -> dict[str, Tensor]:
        return {n: t for n, t in self._model[0].state_dict().items() if t.is_floating_point()}

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Adds the model of an epoch that has just ended, and puts the mean in its place after the last one."""
        if progress.step % max(progress.steps_per_epoch, 1) or progress.fraction <= self.start:
            return
        self.count += 1
        for name, tensor in self._tensors().items():
            mean: Any = getattr(self, self._names[name])
            mean += (tensor - mean) / self.count
        if progress.fraction >= 1:
            for name, tensor in self._tensors().items():
                tensor.copy_(getattr(self, self._names[name]))
