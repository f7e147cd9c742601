"""Data of which only a part keeps its labels, for semi-supervised methods."""

from __future__ import annotations

import numpy as np
import torch

from limbeck import streams
from limbeck.data.relabelled import Relabelled
from limbeck.data.source import Source
from limbeck.data.subsets import balanced, subset
from limbeck.errors import DataError, RecipeError
from limbeck.signals import UNLABELLED


def labels_of_only(source: Source, labelled: np.ndarray) -> Source:
    """Returns ``source`` with the labels of the samples numbered ``labelled``; those of the others are ``UNLABELLED``.

    Raises:
        DataError: the data has no labels.
    """
    known = source.labels()
    if known is None:
        raise DataError(f"'{source.info.name}' has no labels of which a part could be kept")
    chosen = torch.from_numpy(np.asarray(labelled, dtype=np.int64))
    return Relabelled(source, torch.full_like(known, UNLABELLED).index_copy(0, chosen, known[chosen]))


def keep_labels(source: Source, amount: int | float) -> Source:
    """Returns ``source`` with the labels of only so many samples, as equal a number of each class as there is.

    The choice is the same for every seed, and lies within that of a larger amount.

    Args:
        source: the whole data set.
        amount: a number of samples, from 1 on; or a part of the data, below 1.

    Raises:
        RecipeError: the amount leaves no label.
        DataError: the data has no labels.

    Example:
        >>> from limbeck.data import as_source
        >>> source = as_source((torch.zeros(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])))
        >>> sorted(keep_labels(source, 2).labels().tolist())
        [-100, -100, -100, -100, 0, 1]
    """
    count = int(amount) if amount >= 1 else round(amount * len(source))
    if count < 1:
        raise RecipeError(f"labelled = {amount} of {len(source)} samples leaves no label; give a larger part")
    if count >= len(source):
        return source
    keys = streams.words(0, "labelled", 0, np.arange(len(source)), 1)[:, 0]
    return labels_of_only(source, balanced(source.labels(), len(source), count, keys))


def labelled_only(source: Source) -> Source:
    """Returns the samples that have a label: all of a data set that is labelled throughout.

    Raises:
        RecipeError: none has.

    Example:
        >>> from limbeck.data import as_source
        >>> source = as_source((torch.zeros(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])))
        >>> labelled_only(keep_labels(source, 2)).labels().tolist()
        [0, 1]
    """
    labels = source.labels()
    if labels is None:
        raise RecipeError("the data has no labels, so dropping the samples without one leaves nothing")
    numbers = torch.nonzero(labels != UNLABELLED).flatten().numpy()
    if len(numbers) == 0:
        raise RecipeError("no sample has a label; keep the labels of a part, `data: {labelled: 0.1}`")
    return source if len(numbers) == len(source) else subset(source, numbers)
