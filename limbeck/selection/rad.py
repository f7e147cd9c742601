"""RAD: queries that pay off whichever labels the teacher gets wrong."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import NeedsError
from limbeck.functional.selection import robust_distribution, sample_without_replacement, uncertainty
from limbeck.hyperparameters import Fraction, NonNegative
from limbeck.selection.base import Choice, PoolSignals, Selector, selector
from limbeck.selection.uncertain import chance


@selector(
    "rad",
    title="Robust Active Distillation",
    authors="Cenk Baykal and Khoa Trinh and Fotis Iliopoulos and Gaurav Menghani and Erik Vee",
    paper="2210.01213",
    year=2023,
)
class RobustActiveDistillation(Selector):
    """Draws from the distribution with the largest gain that no choice of wrong answers can take away.

    Where the student is least certain the teacher is most often wrong (https://arxiv.org/abs/2210.01213), so the most
    uncertain samples are asked about less often than a margin would, and the easiest not at all. The teacher may be
    wrong on as many samples of the pool as its accuracy says. Where too few have any probability, those with the
    largest gains fill up.

    Args:
        gain: ``margin`` by the lead of the first guess, ``entropy``, or ``confidence`` of the first guess.
        teacher_accuracy: how often the teacher is right; measured on the labelled samples when None, which flatters a
            teacher that was trained on them.
        wrong_cost: what a wrong answer costs, as a multiple of what a right one brings.
    """

    def __init__(
        self,
        *,
        gain: Literal["margin", "entropy", "confidence"] = "margin",
        teacher_accuracy: Fraction | None = None,
        wrong_cost: NonNegative = 0.0,
    ) -> None:
        self.gain: Literal["margin", "entropy", "confidence"] = gain
        self.teacher_accuracy, self.wrong_cost = teacher_accuracy, wrong_cost

    def scores(self, pool: PoolSignals) -> Tensor:
        """Returns how much a right answer would bring."""
        return uncertainty(pool.given("logits").double(), gain=self.gain)

    def choose(self, scores: Tensor, pool: PoolSignals, count: int | None = None) -> Choice:
        """Returns ``count`` samples, in the order in which they were drawn.

        Raises:
            NeedsError: nothing is known of the teacher's accuracy.
        """
        accuracy = pool.teacher_accuracy if self.teacher_accuracy is None else self.teacher_accuracy
        if accuracy is None:
            raise NeedsError(
                "rad needs to know how often the teacher is right; write `{name: rad, teacher_accuracy: 0.9}`"
            )
        game = robust_distribution(scores, incorrect=round((1 - accuracy) * len(scores)), wrong_cost=self.wrong_cost)
        if not game.value > 0:
            warnings.warn("the teacher may be wrong on every sample worth asking about; drawing evenly", stacklevel=3)
        uniform = chance(pool, "rad").to(torch.float64)
        drawn = sample_without_replacement(game.distribution, count or 0, uniform, fallback=scores)
        return Choice.of(scores, drawn)
