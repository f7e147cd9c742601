"""Parts of a data set: class-balanced subsets and held-out samples, chosen the same way every time."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.data.arrays import ArraySource
from limbeck.data.hashing import source_fingerprint
from limbeck.data.source import Source, groups_of
from limbeck.errors import DataError, RecipeError


class Subset:
    """Chosen samples of another source, numbered anew from 0.

    Args:
        source: the whole data set.
        chosen: numbers of the chosen samples, in the order they get.
    """

    in_memory = False

    def __init__(self, source: Source, chosen: np.ndarray) -> None:
        if len(chosen) == 0:
            raise DataError(f"a subset of '{source.info.name}' would be empty")
        self.info = source.info
        self.in_memory = source.in_memory
        self.random = source.random
        self.groups = _chosen_groups(source, chosen)
        self._source = source
        self._chosen = np.asarray(chosen, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._chosen)

    def fetch(self, index: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """Returns ``inputs`` and ``labels`` of samples ``index`` of the subset."""
        return self._source.fetch(self._chosen[index], epoch)

    def labels(self) -> Tensor | None:
        """Label of every sample of the subset."""
        labels = self._source.labels()
        return None if labels is None else labels[torch.from_numpy(self._chosen)]

    def content_hashes(self) -> np.ndarray:
        """A 64-bit hash of every sample of the subset."""
        return self._source.content_hashes()[self._chosen]

    def fingerprint(self) -> str:
        """A hash of the subset: content, labels and order."""
        return source_fingerprint(self.content_hashes(), self.labels())


def subset(source: Source, chosen: np.ndarray) -> Source:
    """Returns the chosen samples of ``source``, copied where they lie in memory."""
    part = Subset(source, chosen)
    if not isinstance(source, ArraySource):
        return part
    rows = source.fetch(chosen, 0)
    return ArraySource(rows["inputs"], rows.get("labels"), source.info, groups=_chosen_groups(source, chosen))


def _chosen_groups(source: Source, chosen: np.ndarray) -> dict[str, np.ndarray]:
    return {name: members[chosen] for name, members in groups_of(source).items()}


def balanced(labels: Tensor | None, total: int, count: int, keys: np.ndarray) -> np.ndarray:
    """Chooses ``count`` of ``total`` samples with as equal a number of each class as there is, in increasing order.

    Of each class the samples with the smallest ``keys`` ``[total]`` are taken, so a smaller choice lies within a
    larger one. Classes with too few samples give all they have, and the others fill up.
    """
    if count >= total:
        return np.arange(total)
    classes = np.zeros(total, np.int64) if labels is None else labels.cpu().numpy()
    order = np.lexsort((np.arange(total), keys, classes))
    starts = np.flatnonzero(np.r_[True, np.diff(classes[order]) != 0])
    rank_in_class = np.arange(total) - np.repeat(starts, np.diff(np.r_[starts, total]))
    # First of every class, then second of every class, and so on.
    rounds = np.lexsort((classes[order], rank_in_class))
    return np.sort(order[rounds[:count]])


def limit(source: Source, count: int) -> Source:
    """Returns a class-balanced subset of at most ``count`` samples.

    It is the same for every seed, and lies within that of a larger ``count``.

    Raises:
        RecipeError: ``count`` is not positive.
    """
    if count < 1:
        raise RecipeError(f"limit = {count}: give at least 1 sample, or leave limit out")
    if count >= len(source):
        return source
    keys = streams.words(0, "limit", 0, np.arange(len(source)), 1)[:, 0]
    return subset(source, balanced(source.labels(), len(source), count, keys))


def long_tailed(source: Source, factor: float) -> Source:
    """Returns a subset whose classes, in the order of their numbers, have exponentially fewer samples.

    Class ``c`` of ``C`` keeps ``n / factor ** (c / (C - 1))`` samples, where ``n`` is the size of the smallest class:
    the first class has ``factor`` times as many as the last. The choice is the same for every seed.

    Args:
        source: the whole data set, with labels.
        factor: the imbalance factor, from 1 on.

    Raises:
        RecipeError: ``factor`` is below 1.
        DataError: the data has no labels of several classes.

    Reference:
        Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", arXiv 1901.05555, section 5.1.

    Example:
        >>> from limbeck.data import as_source
        >>> source = as_source((torch.arange(12.0).view(12, 1), torch.tensor([0, 1, 2] * 4)))
        >>> sorted(long_tailed(source, 4.0).labels().tolist())
        [0, 0, 0, 0, 1, 1, 2]
    """
    if factor < 1:
        raise RecipeError(f"imbalance = {factor}: give how many times as large the first class is, from 1 on")
    labels, classes = source.labels(), source.info.num_classes
    if labels is None or classes < 2:
        raise DataError(f"'{source.info.name}' has no labels of several classes, which could be out of balance")
    keys = streams.words(0, "imbalance", 0, source.content_hashes(), 1)[:, 0]
    members = [np.flatnonzero(labels.numpy() == number) for number in range(classes)]
    smallest = min(len(rows) for rows in members)
    sizes = [max(round(smallest / factor ** (number / (classes - 1))), 1) for number in range(classes)]
    chosen = [rows[np.argsort(keys[rows], kind="stable")[:size]] for rows, size in zip(members, sizes)]
    return subset(source, np.sort(np.concatenate(chosen)))


def hold_out(source: Source, fraction: float, part: Literal["rest", "held"], *, purpose: str = "validation") -> Source:
    """Returns the held-out ``fraction`` of ``source``, or the rest.

    A sample's side follows from its content: within each class those with the smallest keyed content hash are held
    out, so the split does not depend on the order of files, and copies of a sample within a class stay on one side.

    Args:
        source: the whole data set.
        fraction: part of each class that is held out, in (0, 1).
        part: which side to return.
        purpose: different purposes give independent splits.

    Raises:
        RecipeError: ``fraction`` is not in (0, 1).
        DataError: one side would be empty.
    """
    if not 0 < fraction < 1:
        raise RecipeError(f"{purpose} = {fraction}: give a part of the data between 0 and 1")
    held = held_out_mask(source.content_hashes(), source.labels(), fraction, purpose)
    chosen = np.flatnonzero(held if part == "held" else ~held)
    if len(chosen) == 0:
        raise DataError(
            f"{purpose} = {fraction} of the {len(source)} samples of '{source.info.name}' leaves one side empty"
        )
    return subset(source, chosen)


def held_out_mask(hashes: np.ndarray, labels: Tensor | None, fraction: float, purpose: str) -> np.ndarray:
    """Returns which samples are held out, ``[N]`` bool."""
    keys = _keyed(hashes, purpose)
    classes = np.zeros(len(hashes), np.int64) if labels is None else labels.cpu().numpy()
    held = np.zeros(len(hashes), bool)
    for number in np.unique(classes):
        members = np.flatnonzero(classes == number)
        count = int(np.floor(fraction * len(members) + 0.5))
        if count:
            held[members] = keys[members] <= np.sort(keys[members])[count - 1]
    return held


def _keyed(hashes: np.ndarray, purpose: str) -> np.ndarray:
    return streams.words(0, f"split/{purpose}", 0, hashes, 1)[:, 0]


def preload(source: Source) -> Source:
    """Returns ``source`` decoded once into memory, with the same samples, labels, hashes and fingerprint.

    Raises:
        DataError: the source augments by itself, so that a sample is not one tensor.
    """
    if source.random:
        raise DataError(f"'{source.info.name}' has random transforms of its own, so it cannot be decoded once and kept")
    if isinstance(source, ArraySource):
        return source
    parts = [source.fetch(rows, 0)["inputs"] for rows in np.array_split(np.arange(len(source)), -(-len(source) // 256))]
    return ArraySource(
        torch.cat(parts),
        source.labels(),
        replace(source.info),
        hashes=source.content_hashes(),
        groups=groups_of(source),
    )
