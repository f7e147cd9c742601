"""Cross-validation in which the samples of one group, a patient or a speaker, are never divided."""

from __future__ import annotations

import numpy as np

from limbeck import streams
from limbeck.errors import DataError


def grouped_folds(groups: np.ndarray, labels: np.ndarray, folds: int, *, seed: int = 0) -> np.ndarray:
    """Returns the fold of each sample; all samples of a group are in the same one.

    Groups are dealt out in random order, those of each class by themselves, so that every fold has about the same part
    of each class. A group's class is the one most of its samples have.

    Args:
        groups: ``[N]`` name or number of each sample's group.
        labels: ``[N]`` class of each sample.
        folds: number of folds.
        seed: seed of the order.

    Returns:
        ``[N]`` int64 in [0, folds).

    Raises:
        DataError: there are fewer groups than folds, or groups and labels differ in number.

    Example:
        >>> grouped_folds(np.asarray(["a", "a", "b", "b"]), np.asarray([0, 0, 1, 1]), 2).tolist() in (
        ...     [0, 0, 1, 1], [1, 1, 0, 0])
        True
    """
    if len(groups) != len(labels):
        raise DataError(f"there are {len(groups)} groups but {len(labels)} labels; give one of each for a sample")
    names, members = np.unique(groups, return_inverse=True)
    if not 1 < folds <= len(names):
        raise DataError(f"{len(names)} groups cannot be divided into {folds} folds")
    classes, own = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(counts, (members, own), 1)
    order = np.lexsort((streams.permutation(seed, "folds", 0, len(names)), counts.argmax(1)))
    fold = np.empty(len(names), np.int64)
    # One round over all folds after the other, without a break between classes, keeps folds equally large.
    fold[order] = np.arange(len(names)) % folds
    return fold[members]
