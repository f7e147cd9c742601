"""Data with other labels than its own: some unknown, some wrong."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.data.hashing import source_fingerprint
from limbeck.data.source import Source, groups_of
from limbeck.errors import DataError, RecipeError


class Relabelled:
    """Another source with labels in place of its own.

    Args:
        source: the whole data set.
        labels: ``[N]`` label of each sample, ``UNLABELLED`` where it is not known.
    """

    def __init__(self, source: Source, labels: Tensor) -> None:
        self.info = source.info
        self.in_memory = source.in_memory
        self.random = source.random
        self.groups = groups_of(source)
        self._source = source
        self._labels = labels

    def __len__(self) -> int:
        return len(self._source)

    def fetch(self, index: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """Returns ``inputs`` and the new ``labels`` of samples ``index``."""
        rows = torch.from_numpy(np.asarray(index, dtype=np.int64))
        return {**self._source.fetch(index, epoch), "labels": self._labels[rows]}

    def labels(self) -> Tensor:
        """Label of every sample, ``UNLABELLED`` where it is not known."""
        return self._labels

    def content_hashes(self) -> np.ndarray:
        """A 64-bit hash of every sample."""
        return self._source.content_hashes()

    def fingerprint(self) -> str:
        """A hash of the whole data set: content, new labels, and order."""
        return source_fingerprint(self.content_hashes(), self._labels)


def noisy_labels(source: Source, fraction: float) -> Source:
    """Returns ``source`` with wrong labels on a part of its samples: symmetric noise, for studies of robustness.

    Each sample gets with probability ``fraction`` the label of another class, each of them as likely as the next. Which
    ones do follows from their content, so it is the same for every seed, and they are among those of a larger part.

    Raises:
        RecipeError: ``fraction`` is not in [0, 1].
        DataError: the data has no labels, or one class alone.

    Example:
        >>> from limbeck.data import as_source
        >>> source = as_source((torch.arange(8.0).view(8, 1), torch.tensor([0, 1, 2, 3] * 2)))
        >>> int((noisy_labels(source, 1.0).labels() == source.labels()).sum())
        0
    """
    if not 0 <= fraction <= 1:
        raise RecipeError(f"label_noise = {fraction}: give the part of the labels that is to be wrong, from 0 to 1")
    known, classes = source.labels(), source.info.num_classes
    if known is None or classes < 2:
        raise DataError(f"'{source.info.name}' has no labels of several classes, which could be wrong")
    chances = streams.uniform(0, "label noise", 0, source.content_hashes(), 2)
    steps = torch.from_numpy(1 + np.floor(chances[:, 1] * (classes - 1)).astype(np.int64))
    wrong = torch.from_numpy(chances[:, 0] < fraction)
    return Relabelled(source, torch.where(wrong, (known + steps) % classes, known))
