"""Selectors that every other one is measured against: chance, uncertainty, balance of classes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.functional.selection import uncertainty
from limbeck.selection.base import Choice, PoolSignals, Selector, selector


def chance(pool: PoolSignals, purpose: str) -> Tensor:
    """Returns ``[N]`` uniform numbers in [0, 1) that depend on (seed, purpose, round, sample) alone."""
    numbers = streams.uniform(pool.seed, f"select/{purpose}", pool.round, pool.given("index").numpy(), 1)[:, 0]
    return torch.from_numpy(np.ascontiguousarray(numbers))


@selector("random", title="Samples by chance")
class RandomSelector(Selector):
    """Picks by chance, each sample of the pool with the same probability."""

    def scores(self, pool: PoolSignals) -> Tensor:
        """Returns numbers by chance."""
        return -chance(pool, "random")


@selector(
    "uncertainty",
    title="A Sequential Algorithm for Training Text Classifiers",
    authors="David D. Lewis and William A. Gale",
    paper="cmp-lg/9407020",
    year=1994,
)
class UncertaintySelector(Selector):
    """Picks what the student is least certain of (Lewis and Gale, 1994, https://arxiv.org/abs/cmp-lg/9407020).

    Args:
        gain: ``margin`` by the lead of the first guess, ``entropy``, or ``confidence`` of the first guess.
    """

    def __init__(self, *, gain: Literal["margin", "entropy", "confidence"] = "entropy") -> None:
        self.gain: Literal["margin", "entropy", "confidence"] = gain

    def scores(self, pool: PoolSignals) -> Tensor:
        """Returns how little the student is certain of each sample."""
        return uncertainty(pool.given("logits"), gain=self.gain)


@selector("class_balanced", title="Samples of the classes that have the fewest labels")
class ClassBalancedSelector(Selector):
    """Picks by chance within predicted classes, one after the other from the class with the fewest labels so far."""

    def scores(self, pool: PoolSignals) -> Tensor:
        """Returns numbers by chance: the order within a class."""
        return -chance(pool, "class_balanced")

    def choose(self, scores: Tensor, pool: PoolSignals, count: int | None = None) -> Choice:
        """Returns ``count`` samples, each of the predicted class that had the fewest labels when it was taken."""
        logits = pool.given("logits")
        classes = logits.shape[1]
        have = torch.bincount(pool.given("labels"), minlength=classes)
        predicted, order = logits.argmax(1), scores.argsort(stable=True, descending=True)
        waiting = [[int(i) for i in order if int(predicted[i]) == c] for c in range(classes)]
        chosen: list[int] = []
        for _ in range(count or 0):
            ready = [c for c in range(classes) if waiting[c]]
            scarce = min(ready, key=lambda c: int(have[c]))
            chosen.append(waiting[scarce].pop(0))
            have[scarce] += 1
        return Choice.of(scores, torch.tensor(chosen, dtype=torch.int64))
