"""Which samples of a data set are contrasted with one: drawn by class, alike after a resume and on every rank."""

from __future__ import annotations

import numpy as np

from limbeck import streams
from limbeck.errors import NeedsError

_CACHED_NUMBERS = 1 << 15


class ContrastSampler:
    """Draws samples of other classes, or of the same class, with replacement.

    Every draw is a function of (seed, epoch, sample), so there is no state to save.

    Args:
        labels: ``[N]`` class of every training sample.
        seed: seed of the run.

    Raises:
        NeedsError: all samples are of one class, so nothing contrasts.

    Example:
        >>> sampler = ContrastSampler(np.array([0, 1, 0, 1, 1]), seed=0)
        >>> set(sampler.negatives(0, np.array([0]), 64)[0].tolist()) == {1, 3, 4}
        True
    """

    def __init__(self, labels: np.ndarray, *, seed: int) -> None:
        self._classes, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if len(self._classes) < 2:
            raise NeedsError("contrast needs training samples of at least two classes, but all are of one")
        self._class_of = members
        self._by_class = np.argsort(members, kind="stable")
        self._count = counts
        self._start = np.cumsum(counts) - counts
        self._seed = seed

    def negatives(self, epoch: int, index: np.ndarray, draws: int) -> np.ndarray:
        """Returns ``[B, draws]`` samples of other classes than those of ``index`` ``[B]``."""
        # A few rows at a time, so that the numbers stay in the processor's cache: two to three times as fast.
        rows = max(_CACHED_NUMBERS // draws, 1)
        blocks = [self._negatives(epoch, index[a : a + rows], draws) for a in range(0, len(index), rows)]
        return np.concatenate(blocks) if blocks else np.empty((0, draws), dtype=np.int64)

    def _negatives(self, epoch: int, index: np.ndarray, draws: int) -> np.ndarray:
        own = self._class_of[index][:, None]
        others = len(self._class_of) - self._count[own]
        place = self._drawn("negatives", epoch, index, draws, others)
        return self._by_class[place + self._count[own] * (place >= self._start[own])]

    def positives(self, epoch: int, index: np.ndarray) -> np.ndarray:
        """Returns ``[B]`` samples of the same classes as ``index``, possibly the same samples."""
        own = self._class_of[index][:, None]
        place = self._drawn("positives", epoch, index, 1, self._count[own])
        return self._by_class[place + self._start[own]][:, 0]

    def _drawn(self, purpose: str, epoch: int, index: np.ndarray, draws: int, high: np.ndarray) -> np.ndarray:
        """Integers in ``[0, high)`` with a bound for each row."""
        numbers = streams.uniform(self._seed, f"contrast {purpose}", epoch, index, draws)
        return np.minimum((numbers * high).astype(np.int64), high - 1)
