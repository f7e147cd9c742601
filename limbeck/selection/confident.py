"""What student and teacher are jointly sure of, class by class."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional.web_images import Confident, confident_samples, teacher_share
from limbeck.hyperparameters import Fraction, NonNegative, Positive
from limbeck.selection.base import Choice, PoolSignals, Selector, selector

_PUBLISHED_EPOCHS = 240


@selector(
    "confident",
    title="Distribution Shift Matters for Knowledge Distillation with Webly Collected Images",
    authors="Jialiang Tang and Shuo Chen and Gang Niu and Masashi Sugiyama and Chen Gong",
    paper="2307.11469",
    year=2023,
)
class ConfidentSamples(Selector):
    """Shows the samples of a pool that fit the teacher's task (KD^3, https://arxiv.org/abs/2307.11469).

    The logits of both models are mixed, the teacher's at first and the student's alone from the middle of the run on,
    as the published 240 epochs have it. A sample is shown if its confidence exceeds the threshold of its class, which
    is lower for classes that are rarely predicted.

    Args:
        cutoff: threshold of the class that is predicted most.
        period: after how many of the published epochs the teacher's share would reach zero by itself.
        last: after how many of them the student decides alone.
    """

    counted = False
    roles = ("student", "teacher")

    def __init__(self, *, cutoff: Fraction = 0.95, period: Positive = 160.0, last: NonNegative = 120.0) -> None:
        self.cutoff, self.period, self.last = cutoff, period, last

    def scores(self, pool: PoolSignals) -> Tensor:
        """Returns the confidence in each sample."""
        return self._found(pool).confidence

    def choose(self, scores: Tensor, pool: PoolSignals, count: int | None = None) -> Choice:
        """Returns the samples whose confidence exceeds the threshold of their class."""
        return Choice(scores, self._found(pool).selected)

    def _found(self, pool: PoolSignals) -> Confident:
        share = teacher_share(pool.fraction * _PUBLISHED_EPOCHS, period=self.period, last=self.last)
        return confident_samples(pool.given("logits"), pool.given("teacher_logits"), share=share, cutoff=self.cutoff)
