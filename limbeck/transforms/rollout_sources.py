"""Where the completions of a step come from, and what processes tell each other of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from limbeck import streams
from limbeck.errors import RecipeError
from limbeck.functional.off_policy import Origin, Threshold, fresh_share, origin, raised
from limbeck.hyperparameters import Fraction, Positive, validated
from limbeck.schedules import Progress, Ramp, Weight, weight_at
from limbeck.transforms.replay import ReplayBuffer

T = TypeVar("T")


class Adaptive:
    """A probability that grows whenever the held-out loss has risen, as DistiLLM's does.

    Args:
        start: the probability at first.
        margin: how much the loss must rise.
        step: what is then added.

    Reference:
        Ko et al., "DistiLLM", arXiv 2402.03898, section 3.2.
    """

    def __init__(self, *, start: Fraction = 0.0, margin: Positive = 0.1, step: Positive = 0.1) -> None:
        self.margin, self.step = margin, step
        self.threshold = Threshold(start)

    def __call__(self, progress: Progress) -> float:
        """Returns the probability."""
        return self.threshold.value

    def judged(self, loss: float) -> None:
        """Hears the held-out loss."""
        self.threshold = raised(self.threshold, loss, margin=self.margin, step=self.step)


Adaptive.__init__ = validated("probability.adaptive", Adaptive.__init__)  # type: ignore[method-assign]


def _ramp(
    *,
    first: Fraction,
    last: Fraction,
    shape: Literal["linear", "cosine"] = "linear",
    start: Fraction = 0.0,
    stop: Fraction = 1.0,
) -> Ramp:
    return Ramp(first, last, shape, start, stop)


_ramp_of = validated("probability", _ramp)
_ENDS = {"from": "first", "to": "last"}


def probability_of(given: float | Mapping[str, Any] | str) -> Weight:
    """Returns how often completions are written: a number, or a function of the progress.

    Args:
        given: a number; ``{from, to, shape, start, stop}``; ``adaptive``, or ``{adaptive: {start, margin, step}}``.

    Raises:
        RecipeError: it is none of them, or a value is out of range.
    """
    if given == "adaptive":
        return Adaptive()
    if not isinstance(given, Mapping):
        return float(given)
    if "adaptive" in given:
        options = given["adaptive"] or {}
        if len(given) > 1 or not isinstance(options, Mapping):
            raise RecipeError("write an adaptive probability as {adaptive: {start: 0.0, margin: 0.1, step: 0.1}}")
        return Adaptive(**options)
    return _ramp_of(**{_ENDS.get(key, key): value for key, value in given.items()})


class Sources:
    """Decides where completions come from, the same way in every process.

    Args:
        seed: seed of the run.
        probability: how often completions are written.
        unit: what is decided at once.
        replay: sequences of before.
    """

    def __init__(
        self, seed: int, probability: Weight, unit: Literal["batch", "sequence"], replay: ReplayBuffer | None
    ) -> None:
        self.seed, self.probability, self.unit, self.replay = seed, probability, unit, replay

    def origins(self, index: Sequence[int], epoch: int, progress: Progress) -> list[Origin]:
        """Returns where the completions of samples come from at a step."""
        if self.unit == "batch":
            step = np.array([progress.step])
            chances = streams.uniform(self.seed, "rollout/origin", 0, step, 1)[:, 0].repeat(len(index))
        else:
            chances = streams.uniform(self.seed, "rollout/origin", epoch, np.array(index), 1)[:, 0]
        share, room = 1.0, True
        if self.replay is not None:
            self.replay.prune(progress.step)
            share, room = fresh_share(self.replay.share, progress.fraction), not self.replay.full
        probability = min(weight_at(self.probability, progress), 1.0)
        return [origin(float(chance), probability, share=share, room=room) for chance in chances]


def rank() -> int:
    """This process's number."""
    return torch.distributed.get_rank() if _several() else 0


def exchanged(value: T) -> list[T]:
    """Returns the value of every process, in their order."""
    if not _several():
        return [value]
    box: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(box, value)
    return box


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
