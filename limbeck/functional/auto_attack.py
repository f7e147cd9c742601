"""APGD, the gradient attack of AutoAttack, whose step size follows its own progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional.attacks import UNIT_RANGE, Amount, Classifier, ascent, into_box

LabelledObjective = Callable[[Tensor, Tensor], Tensor]
"""Logits ``[B, C]`` and labels ``[B]`` to what an attack maximises for each sample, ``[B]``."""

_MOMENTUM = 0.75
_FIRST, _LEAST, _SHRINK = 0.22, 0.06, 0.03


class APGDResult(NamedTuple):
    """What an attack found.

    Attributes:
        adversarial: the last point at which a sample was misclassified; where there was none, the starting point.
        best: the point of the largest objective.
        robust: ``[B]`` true where no point was misclassified.
        objective: ``[B]`` the largest objective.
    """

    adversarial: Tensor
    best: Tensor
    robust: Tensor
    objective: Tensor


def checkpoints(steps: int) -> list[int]:
    """Returns after how many steps progress is judged: intervals that shrink from 22 to 6 per cent of all steps.

    Example:
        >>> checkpoints(100)
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    length, least, shrink = (max(int(part * steps), 1) for part in (_FIRST, _LEAST, _SHRINK))
    found, at = [], length
    while at <= steps:
        found.append(at)
        length = max(length - shrink, least)
        at += length
    return found


def apgd(
    classify: Classifier,
    objective: LabelledObjective,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: Amount,
    steps: int = 100,
    start: Tensor | None = None,
    bounds: tuple[Amount, Amount] = UNIT_RANGE,
    rho: float = 0.75,
) -> APGDResult:
    r"""Auto-PGD within an :math:`L_\infty` box.

    Every step goes :math:`x_k + s\,\mathrm{sign}(\nabla L)`, put back into the box, with a share of 3/4, and on with
    the last move with a share of 1/4. The step starts at ``2 eps``. At each of :func:`checkpoints` it is halved, and
    the search restarts from the best point, for samples whose objective grew in no more than ``rho`` of the steps
    since, or whose best objective did not change although the step was not halved last time.

    Args:
        classify: inputs to logits.
        objective: what to maximise, for example :func:`limbeck.functional.attacks.dlr` without reduction.
        inputs: ``[B, ...]``.
        labels: ``[B]`` class indices.
        eps: half the side of the box.
        steps: number of steps.
        start: where to begin; see :func:`random_start`. ``inputs`` when None.
        bounds: smallest and largest value of an input.
        rho: part of the steps that must have raised the objective.

    Returns:
        The adversarial points and which samples resisted.

    Raises:
        ValueError: ``steps`` is not positive.

    Deviations: the authors' code compares the first step's objective with 0 where the paper compares it with the
    starting point's; here it is the latter.

    References:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", arXiv 2003.01690, algorithm 1.

    Example:
        >>> from limbeck.functional.attacks import margin
        >>> from functools import partial
        >>> loss = partial(margin, reduction="none")
        >>> apgd(lambda x: x, loss, torch.tensor([[0.5, 0.4]]), torch.tensor([0]), eps=0.1, steps=5).robust
        tensor([False])
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, but should be positive")
    search = _Search(classify, objective, inputs.detach(), labels, eps, bounds)
    search.begin(inputs.detach() if start is None else into_box(start.detach(), inputs.detach(), eps, bounds))
    judged, last = set(checkpoints(steps)), 0
    for step in range(1, steps + 1):
        search.advance(first=step == 1)
        if step in judged:
            search.judge(step - last, rho)
            last = step
    return APGDResult(search.adversarial, search.best, search.robust, search.best_value)


def random_start(inputs: Tensor, noise: Tensor, eps: Amount) -> Tensor:
    """Returns ``inputs`` plus ``noise`` stretched, sample by sample, until it touches the box.

    Args:
        inputs: ``[B, ...]``.
        noise: the same shape, uniform in [-1, 1].
        eps: half the side of the box.
    """
    largest = noise.flatten(1).abs().amax(1).view(-1, *(1,) * (noise.dim() - 1))
    return inputs + eps * noise / torch.where(largest > 0, largest, torch.ones_like(largest))


class _Search:
    """Where every sample's search stands."""

    def __init__(
        self,
        classify: Classifier,
        objective: LabelledObjective,
        inputs: Tensor,
        labels: Tensor,
        eps: Amount,
        bounds: tuple[Amount, Amount],
    ) -> None:
        self._classify, self._labels, self._inputs = classify, labels, inputs
        self._objective = lambda logits: objective(logits, labels)
        self._eps, self._bounds = eps, bounds
        self._values: list[Tensor] = []
        self._step = 2 * eps * torch.ones_like(inputs)

    def begin(self, start: Tensor) -> None:
        self.point = self._previous = start
        self.adversarial = start.clone()
        self.best, self.robust = start.clone(), torch.ones_like(self._labels, dtype=torch.bool)
        self._gradient, value = self._look()
        self._best_gradient, self.best_value = self._gradient.clone(), value.clone()
        self._value_then = value.clone()
        self._halved_then = torch.ones_like(self.robust)

    def advance(self, *, first: bool) -> None:
        """Takes one step."""
        inputs, point = self._inputs, self.point
        ahead = into_box(point + self._step * self._gradient.sign(), inputs, self._eps, self._bounds)
        if not first:
            moved = point + _MOMENTUM * (ahead - point) + (1 - _MOMENTUM) * (point - self._previous)
            ahead = into_box(moved, inputs, self._eps, self._bounds)
        self._previous, self.point = point, ahead
        self._gradient, value = self._look()
        self._keep_best(value)

    def _look(self) -> tuple[Tensor, Tensor]:
        """Returns gradient and objective at the point, and notes who is misclassified."""
        gradient, value, logits = ascent(self._classify, self._objective, self.point)
        fooled = logits.argmax(1) != self._labels
        self.robust = self.robust & ~fooled
        self.adversarial = torch.where(_rows(fooled, self.point), self.point, self.adversarial)
        self._values.append(value)
        return gradient, value

    def _keep_best(self, value: Tensor) -> None:
        better = value > self.best_value
        rows = _rows(better, self.point)
        self.best = torch.where(rows, self.point, self.best)
        self._best_gradient = torch.where(rows, self._gradient, self._best_gradient)
        self.best_value = torch.where(better, value, self.best_value)

    def judge(self, length: int, rho: float) -> None:
        """Halves the step and returns to the best point where the last ``length`` steps brought too little."""
        recent = torch.stack(self._values[-length - 1 :])
        wandering = (recent[1:] > recent[:-1]).sum(0) <= rho * length
        stuck = ~self._halved_then & (self._value_then >= self.best_value)
        halve = wandering | stuck
        rows = _rows(halve, self.point)
        self._step = torch.where(rows, self._step / 2, self._step)
        self.point = torch.where(rows, self.best, self.point)
        self._gradient = torch.where(rows, self._best_gradient, self._gradient)
        self._halved_then, self._value_then = halve, self.best_value.clone()


def _rows(flags: Tensor, like: Tensor) -> Tensor:
    return flags.view(-1, *(1,) * (like.dim() - 1))
