"""In what order an epoch shows the samples: a function of (seed, epoch) alone."""

from __future__ import annotations

import numpy as np

from limbeck import streams
from limbeck.errors import RecipeError


class PairedOrder:
    """Batches with a fixed number of labelled samples; an epoch shows every unlabelled sample once.

    Labelled samples are gone through again and again, each time in a new order, across epochs. Within a batch they are
    spread evenly, so that processes and micro-batches get their share.

    Args:
        labelled: ``[N]`` bool, which samples have a label.
        batch_size: samples of one batch.
        labelled_per_batch: how many of them have a label.
        seed: seed of the order.

    Raises:
        RecipeError: a batch would hold labelled, or unlabelled, samples only, or the data does.
    """

    def __init__(self, labelled: np.ndarray, batch_size: int, labelled_per_batch: int, seed: int) -> None:
        if not 0 < labelled_per_batch < batch_size:
            raise RecipeError(
                f"labelled_per_batch = {labelled_per_batch}: a batch of {batch_size} should hold samples of both kinds"
            )
        self._labelled, self._rest = np.flatnonzero(labelled), np.flatnonzero(~labelled)
        if not len(self._labelled) or not len(self._rest):
            raise RecipeError(
                "labelled_per_batch needs data of which a part is labelled; keep the labels of a part, "
                "`data: {labelled: 0.1}`"
            )
        self._own, self._others, self._seed = labelled_per_batch, batch_size - labelled_per_batch, seed

    @property
    def steps(self) -> int:
        """Number of batches an epoch; in the last one there may be fewer unlabelled samples."""
        return -(-len(self._rest) // self._others)

    def __len__(self) -> int:
        """Number of samples that an epoch shows, repetitions included."""
        return len(self._rest) + self.steps * self._own

    def order(self, epoch: int) -> np.ndarray:
        """Returns the numbers of the samples of an epoch, batch after batch."""
        rest = self._rest[streams.permutation(self._seed, "order/unlabelled", epoch, len(self._rest))]
        batches = []
        for step in range(self.steps):
            others = rest[step * self._others : (step + 1) * self._others]
            batches.append(_spread(self._next_labelled(epoch * self.steps + step), others))
        return np.concatenate(batches)

    def _next_labelled(self, number: int) -> np.ndarray:
        """Returns the labelled samples of batch ``number``, counted over all epochs."""
        places = number * self._own + np.arange(self._own)
        rounds = places // len(self._labelled)
        orders = {
            int(r): streams.permutation(self._seed, "order/labelled", int(r), len(self._labelled))
            for r in np.unique(rounds)
        }
        chosen = [orders[int(r)][place % len(self._labelled)] for r, place in zip(rounds, places)]
        return self._labelled[np.asarray(chosen)]


def _spread(few: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Returns both, the few at even distances."""
    total = len(few) + len(many)
    here = np.zeros(total, bool)
    here[np.arange(len(few)) * total // len(few)] = True
    mixed = np.empty(total, np.int64)
    mixed[here], mixed[~here] = few, many
    return mixed
