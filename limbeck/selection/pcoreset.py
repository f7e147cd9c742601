"""PCoreSet: samples that cover the space of the student's probabilities."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from limbeck.functional.selection import k_center_greedy, uncovered
from limbeck.selection.base import Choice, PoolSignals, Selector, selector


@selector(
    "pcoreset",
    title="PCoreSet: Effective Active Learning through Knowledge Distillation from Vision-Language Models",
    authors="Seongjae Kang and Dong Bok Lee and Hyungjoon Jang and Dongseop Kim and Sung Ju Hwang",
    paper="2506.00910",
    year=2025,
)
class PCoreSet(Selector):
    """Picks what the student's predictions on labelled samples cover least (https://arxiv.org/abs/2506.00910).

    A greedy k-center in the space of class probabilities: a teacher's predictions cluster there, and so do those of
    the student that learns from it.

    Args:
        metric: ``euclidean`` as the authors have it, or ``cosine``.
    """

    def __init__(self, *, metric: Literal["euclidean", "cosine"] = "euclidean") -> None:
        self.metric: Literal["euclidean", "cosine"] = metric

    def scores(self, pool: PoolSignals) -> Tensor:
        """Returns how far each sample is from the labelled ones."""
        return uncovered(pool.given("logits").softmax(1), pool.given("labelled").softmax(1), metric=self.metric)

    def choose(self, scores: Tensor, pool: PoolSignals, count: int | None = None) -> Choice:
        """Returns ``count`` samples, the farthest from all before it first."""
        points = pool.given("logits").softmax(1)
        cover = k_center_greedy(points, pool.given("labelled").softmax(1), count or 0, metric=self.metric)
        return Choice.of(scores, cover.picked)
