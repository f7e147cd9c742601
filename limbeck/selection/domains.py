"""Domain discrepancy: more of the domains in which a student lags behind its teacher."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from limbeck.functional.domain_weights import domain_weights, perplexity_ratios
from limbeck.hyperparameters import Count, Fraction
from limbeck.selection.base import Choice, PoolSignals, Selector, selector


@selector(
    "domain_discrepancy",
    title="DDK: Distilling Domain Knowledge for Efficient Large Language Models",
    authors="Jiaheng Liu and Chenchen Zhang and Jinyang Guo and Yuanxing Zhang and Haoran Que and Ken Deng and others",
    paper="2407.16154",
    year=2024,
)
class DomainDiscrepancy(Selector):
    """Weights domains by the ratio of the student's to the teacher's perplexity (https://arxiv.org/abs/2407.16154).

    The weights multiply from one time to the next, over a floor that no domain falls below.

    Args:
        every: optimizer steps after which the weights are worked out anew. The first so many steps read domains in
            the proportions of the data.
        smoothing: part of the mixture that follows the weights; the rest is even. 0 is an even mixture for ever.
        draw: ``chance`` draws the domain of every row; ``shares`` gives each domain its exact part of the rows.
    """

    unit = "domains"
    counted = False
    roles = ("student", "teacher")

    def __init__(
        self, *, every: Count = 1000, smoothing: Fraction = 0.5, draw: Literal["chance", "shares"] = "chance"
    ) -> None:
        self.every, self.smoothing, self.draw = every, smoothing, draw

    def scores(self, pool: PoolSignals) -> Tensor:
        """Returns the ratio of perplexities in each domain."""
        return perplexity_ratios(pool.given("loss.student"), pool.given("loss.teacher"))

    def choose(self, scores: Tensor, pool: PoolSignals, count: int | None = None) -> Choice:
        """Returns the part of each domain; they add up to 1."""
        return Choice(scores, domain_weights(scores, pool.share, smoothing=self.smoothing))
