"""Difference sampling: documents that a large model knows and a small one does not."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from limbeck.functional.difference_sampling import gumbel_scores, likelihood_differences
from limbeck.hyperparameters import Fraction, Positive
from limbeck.selection.base import Choice, PoolSignals, Selector, selector
from limbeck.selection.uncertain import chance


@selector(
    "difference_sampling",
    title="MiniPLM: Knowledge Distillation for Pre-Training Language Models",
    authors="Yuxian Gu and Hao Zhou and Fandong Meng and Jie Zhou and Minlie Huang",
    paper="2410.17215",
    year=2024,
)
class DifferenceSampling(Selector):
    """Keeps the documents that the teacher finds more likely than a small reference does, by the largest margin.

    The teacher's knowledge goes into the choice of text (https://arxiv.org/abs/2410.17215); whoever learns from it
    needs no teacher. The reference should not have read the documents that it judges.

    Args:
        ratio: part of the documents that is kept.
        normalized: score the mean over a document's tokens, as the authors' code does; otherwise their sum, as the
            paper writes it, which prefers long documents.
        draw: ``top`` keeps the largest scores; ``gumbel`` draws without replacement, in proportion to the exponential
            of the score over ``temperature``.
        temperature: of the draw, nats.
        plain: part of what is kept that is drawn by chance from all documents and not by their scores, so that the
            student also reads ordinary text.
        folder: where the losses of documents are kept, so that several runs share them; the run's own when None.
    """

    unit = "documents"
    counted = False
    roles = ("teacher", "reference")

    def __init__(
        self,
        *,
        ratio: Fraction = 0.5,
        normalized: bool = True,
        draw: Literal["top", "gumbel"] = "top",
        temperature: Positive = 0.1,
        plain: Fraction = 0.0,
        folder: str | None = None,
    ) -> None:
        self.ratio, self.normalized, self.draw = ratio, normalized, draw
        self.temperature, self.plain, self.folder = temperature, plain, folder

    def kept(self, documents: int) -> int:
        """Returns how many of so many documents are kept."""
        return int(self.ratio * documents)

    def scores(self, pool: PoolSignals) -> Tensor:
        """Returns how much more likely the teacher finds each document, nats."""
        tokens = None if self.normalized else pool.given("tokens")
        return likelihood_differences(pool.given("loss.teacher"), pool.given("loss.reference"), tokens)

    def choose(self, scores: Tensor, pool: PoolSignals, count: int | None = None) -> Choice:
        """Returns the documents that are kept; of equal scores the first."""
        count = self.kept(len(scores))
        wanted = scores
        if self.draw == "gumbel":
            wanted = gumbel_scores(scores, chance(pool, "difference_sampling").to(scores), temperature=self.temperature)
        order = wanted.argsort(descending=True, stable=True)
        best, rest = order.tensor_split([count - round(self.plain * count)])
        if len(best) < count:
            lots = chance(pool, "plain").to(rest.device)[rest]
            best = torch.cat([best, rest[lots.argsort(stable=True)][: count - len(best)]])
        return Choice.of(scores, best)
