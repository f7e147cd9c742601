"""Small real tables whose samples come in groups: several of one patient, many of one speaker."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from limbeck import streams
from limbeck.data.arrays import ArraySource
from limbeck.data.folds import grouped_folds
from limbeck.data.source import DataInfo, Source, dataset
from limbeck.errors import RecipeError
from limbeck.hyperparameters import Count, WholeNumber

_SHIPPED = Path(__file__).parent / "shipped"
_SPLIT_SEED = 43

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Table:
    """A table of numbers with labels and groups.

    Attributes:
        values: ``[N, D]`` float32; NaN where a value is missing.
        labels: ``[N]`` class numbers.
        groups: ``[N]`` names of groups.
        classes: names of the classes.
    """

    values: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    classes: tuple[str, ...]


def read_table(name: str) -> Table:
    """Reads a shipped table: the group in the first column, the class in the last."""
    with open(_SHIPPED / f"{name}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    values = np.asarray([[float(cell) if cell else np.nan for cell in row[1:-1]] for row in rows], np.float32)
    classes = tuple(dict.fromkeys(row[-1] for row in rows))
    labels = np.asarray([classes.index(row[-1]) for row in rows])
    return Table(values, labels, np.asarray([row[0] for row in rows]), classes)


class _Facts(NamedTuple):
    """What a grouped data set is called, whose it is, and what its groups are."""

    name: str
    licence: str
    group: str


class _Division(NamedTuple):
    fold: int
    folds: int
    grouped: bool
    seed: int


def _fold(table: Table, facts: _Facts, split: Split, division: _Division) -> ArraySource:
    """Returns one side of a fold, standardised by its training side; missing values are the training median."""
    name, (fold, folds, grouped, seed) = facts.name, division
    if fold >= folds:
        raise RecipeError(f"data set '{name}': fold = {fold}, but the {folds} folds are numbered from 0")
    apart = table.groups if grouped else np.arange(len(table.labels))
    train = grouped_folds(apart, table.labels, folds, seed=seed) != fold
    known = table.values[train]
    filled = np.where(np.isnan(table.values), np.nanmedian(known, axis=0), table.values)
    mean, deviation = filled[train].mean(0), filled[train].std(0)
    scaled = ((filled - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    chosen = train if split == "train" else ~train
    # Copies of one vector within a group differ in nothing else, so the order of rows is part of no sample.
    rows = np.flatnonzero(chosen)[streams.permutation(seed, f"rows/{name}", 0, int(chosen.sum()))]
    info = DataInfo(name, len(table.classes), scaled.shape[1:], class_names=table.classes, licence=facts.licence)
    groups = {facts.group: table.groups[rows]}
    return ArraySource(torch.from_numpy(scaled[rows]), torch.from_numpy(table.labels[rows]), info, groups=groups)


_DOC = """Returns {samples}, divided by {group}.

    Args:
        split: ``test`` is the fold, ``train`` all others.
        fold: number of the fold, from 0.
        folds: number of folds.
        grouped: keep all samples of a {group} on one side; false divides them, which flatters a model.
        split_seed: seed of the division.

    Raises:
        RecipeError: there is no such fold.
    """


def _grouped(name: str, table: str, *, title: str, licence: str, samples: str, group: str) -> Callable[..., Source]:
    """Registers a shipped table as a data set in folds and returns what loads it."""

    def load(
        *,
        split: Split,
        fold: WholeNumber = 0,
        folds: Count = 5,
        grouped: bool = True,
        split_seed: WholeNumber = _SPLIT_SEED,
    ) -> ArraySource:
        division = _Division(fold, folds, grouped, split_seed)
        return _fold(read_table(table), _Facts(name, licence, group), split, division)

    load.__name__ = load.__qualname__ = name.replace("-", "_")
    load.__doc__ = _DOC.format(samples=samples, group=group)
    return dataset(name, title=title, licence=licence)(load)


breast_cancer = _grouped(
    "breast-cancer",
    "breast-cancer-wisconsin",
    title="Breast Cancer Wisconsin, 699 cell samples of 645 patients, 9 features, 2 classes",
    licence="CC BY 4.0, W. H. Wolberg, https://doi.org/10.24432/C5HP4Z",
    samples="fine-needle aspirates, benign or malignant",
    group="patient",
)

vowel = _grouped(
    "vowel",
    "vowel",
    title="Vowels of 15 speakers, 990 utterances, 9 features, 11 classes",
    licence="CC BY 4.0, D. Deterding, https://doi.org/10.24432/C58P4S",
    samples="steady-state vowels of British English as log area ratios",
    group="speaker",
)
