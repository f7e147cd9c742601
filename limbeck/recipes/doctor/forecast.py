"""What a stage will need: memory by its parts, and time, from a step that is taken and thrown away."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.engine.optimization import build_optimizer
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.evaluate.memory import peak_bytes, weights_bytes
from limbeck.teachers.ensemble import Ensemble, models_of
from limbeck.teachers.router import Router

_STEPS = 4


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes that a stage holds at once.

    Attributes:
        weights: parameters and buffers of each role (of all members of several teachers), and of the method where it
            has any.
        gradients: of what trains.
        optimizer: what the optimizer remembers.
        activations: what autograd keeps of one step.
        step: the most that one step holds at once beside the above: activations, losses, work space.
        logits: what all logits of one batch would take at once; 0 where the task has no tokens.
    """

    weights: dict[str, int]
    gradients: int
    optimizer: int
    activations: int
    step: int
    logits: int = 0

    @property
    def total(self) -> int:
        """Everything at once."""
        return sum(self.weights.values()) + self.gradients + self.optimizer + self.step


def forecast_memory(stage: Stage, *, vocabulary: int = 0) -> MemoryForecast:
    """Returns what a stage holds at once, found by taking its first step.

    Args:
        stage: the stage; nothing of it changes.
        vocabulary: number of tokens, for what whole logits would take.
    """
    batch = stage.first_batch()
    trained = list(stage.parameters())
    gradients = sum(p.numel() * p.element_size() for p in trained)
    models = {role: found for role, observer in stage.observers.items() if (found := models_of(observer))}
    activations = _saved_bytes(stage)

    def step() -> None:
        stage.rehearse(batch)
        for parameter in trained:
            parameter.grad = None

    peak = peak_bytes(step, trained[0].device) - gradients
    labels = batch.get("labels")
    roles = sum(_distributions(observer) for observer in stage.observers.values())
    return MemoryForecast(
        weights={
            **{role: sum(map(weights_bytes, found)) for role, found in models.items()},
            **({"the method": own} if (own := weights_bytes(stage.method)) else {}),
        },
        gradients=gradients,
        optimizer=_optimizer_floats(stage.settings) * gradients,
        activations=activations,
        step=max(peak, activations),
        logits=4 * roles * vocabulary * labels.numel() if vocabulary and labels is not None else 0,
    )


def _distributions(observer: Any) -> int:
    """How many whole distributions a provider holds at once of each token: of a router's members one speaks."""
    if isinstance(observer, Ensemble):
        counts = [_distributions(member) for member in observer.members]
        return max(counts) if isinstance(observer, Router) else sum(counts)
    return len(models_of(observer))


def _optimizer_floats(settings: TrainSettings) -> int:
    """Returns how many numbers an optimizer remembers of each parameter, by letting it step once."""
    parameter = nn.Parameter(torch.zeros(8))
    parameter.grad = torch.ones(8)
    optimizer = build_optimizer([parameter], settings)
    optimizer.step()
    state: dict[str, Any] = optimizer.state[parameter]
    return sum(isinstance(v, Tensor) and v.numel() == parameter.numel() for v in state.values())


def _saved_bytes(stage: Stage) -> int:
    """Bytes that autograd keeps for the backward pass of one step, each storage once."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stage.terms(stage.first_batch())
    return sum(seen.values())


class StepTime(NamedTuple):
    """How long a step takes.

    Attributes:
        made: seconds of making its batch by transforms, of which rollouts are slow; 0 without transforms.
        trained: seconds of the step on it.
    """

    made: float
    trained: float


def step_time(stage: Stage) -> StepTime:
    """Returns how long a step takes here; the first of a few is left out."""
    times = []
    started = time.perf_counter()
    batch = stage.first_batch()
    made = time.perf_counter() - started if stage.transforms else 0.0
    for _ in range(_STEPS):
        started = time.perf_counter()
        stage.rehearse(batch)
        times.append(time.perf_counter() - started)
    return StepTime(made, median(times[1:]))
