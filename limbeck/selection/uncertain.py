"""Selectors that every other one is measured against: chance, uncertainty, balance of classes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.functional.selection import uncertainty
from limbeck.selection.base import PoolSignals, Selector, selector


def chance(pool: PoolSignals, purpose: str) -> Tensor:
    """Returns ``[N]`` uniform numbers in [0, 1) that depend on (seed, purpose, round, sample) alone."""
    numbers = streams.uniform(pool.seed, f"select/{purpose}", pool.round, pool.index.numpy(), 1)[:, 0]
    return torch.from_numpy(np.ascontiguousarray(numbers))


@selector("random", title="Samples by chance")
class RandomSelector(Selector):
    """Picks by chance, each sample of the pool with the same probability."""

    def __call__(self, pool: PoolSignals, count: int) -> Tensor:
        """Returns ``count`` positions."""
        return chance(pool, "random").argsort(stable=True)[:count]


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

    def __call__(self, pool: PoolSignals, count: int) -> Tensor:
        """Returns ``count`` positions, the least certain first."""
        return uncertainty(pool.logits, gain=self.gain).argsort(stable=True, descending=True)[:count]


@selector("class_balanced", title="Samples of the classes that have the fewest labels")
class ClassBalancedSelector(Selector):
    """Picks by chance within predicted classes, one after the other from the class with the fewest labels so far."""

    def __call__(self, pool: PoolSignals, count: int) -> Tensor:
        """Returns ``count`` positions."""
        classes = pool.logits.shape[1]
        have = torch.bincount(pool.labels, minlength=classes)
        predicted, order = pool.logits.argmax(1), chance(pool, "class_balanced").argsort(stable=True)
        waiting = [[int(i) for i in order if int(predicted[i]) == c] for c in range(classes)]
        chosen: list[int] = []
        for _ in range(count):
            ready = [c for c in range(classes) if waiting[c]]
            scarce = min(ready, key=lambda c: int(have[c]))
            chosen.append(waiting[scarce].pop(0))
            have[scarce] += 1
        return torch.tensor(chosen)
