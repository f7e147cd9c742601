"""Small real tables whose samples come in groups: several of one patient, many of one speaker."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from limbeck import streams
from limbeck.data.arrays import ArraySource
from limbeck.data.folds import grouped_folds
from limbeck.data.source import DataInfo, dataset
from limbeck.errors import RecipeError
from limbeck.hyperparameters import Count, WholeNumber

_SHIPPED = Path(__file__).parent / "shipped"
_CANCER_LICENCE = "CC BY 4.0, W. H. Wolberg, https://doi.org/10.24432/C5HP4Z"
_VOWEL_LICENCE = "CC BY 4.0, D. Deterding, https://doi.org/10.24432/C58P4S"
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


def _fold(
    table: Table, name: str, licence: str, split: Split, fold: int, folds: int, grouped: bool, split_seed: int
) -> ArraySource:
    """Returns one side of a fold, standardised by its training side; missing values are the training median."""
    if fold >= folds:
        raise RecipeError(f"data set '{name}': fold = {fold}, but the {folds} folds are numbered from 0")
    if grouped:
        side = grouped_folds(table.groups, table.labels, folds, seed=split_seed)
    else:
        side = grouped_folds(np.arange(len(table.labels)), table.labels, folds, seed=split_seed)
    train = side != fold
    known = table.values[train]
    filled = np.where(np.isnan(table.values), np.nanmedian(known, axis=0), table.values)
    mean, deviation = filled[train].mean(0), filled[train].std(0)
    scaled = ((filled - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    chosen = train if split == "train" else ~train
    # Copies of one vector within a group differ in nothing else, so the order of rows is part of no sample.
    rows = np.flatnonzero(chosen)[streams.permutation(split_seed, f"rows/{name}", 0, int(chosen.sum()))]
    info = DataInfo(name, len(table.classes), scaled.shape[1:], class_names=table.classes, licence=licence)
    return ArraySource(torch.from_numpy(scaled[rows]), torch.from_numpy(table.labels[rows]), info)


@dataset(
    "breast-cancer",
    title="Breast Cancer Wisconsin, 699 cell samples of 645 patients, 9 features, 2 classes",
    licence=_CANCER_LICENCE,
)
def breast_cancer(
    *,
    split: Split,
    fold: WholeNumber = 0,
    folds: Count = 5,
    grouped: bool = True,
    split_seed: WholeNumber = _SPLIT_SEED,
) -> ArraySource:
    """Returns fine-needle aspirates, benign or malignant, divided by patient.

    Args:
        split: ``test`` is the fold, ``train`` all others.
        fold: number of the fold, from 0.
        folds: number of folds.
        grouped: keep all samples of a patient on one side; false divides them, which flatters a model.
        split_seed: seed of the division.

    Raises:
        RecipeError: there is no such fold.
    """
    table = read_table("breast-cancer-wisconsin")
    return _fold(table, "breast-cancer", _CANCER_LICENCE, split, fold, folds, grouped, split_seed)


@dataset("vowel", title="Vowels of 15 speakers, 990 utterances, 9 features, 11 classes", licence=_VOWEL_LICENCE)
def vowel(
    *,
    split: Split,
    fold: WholeNumber = 0,
    folds: Count = 5,
    grouped: bool = True,
    split_seed: WholeNumber = _SPLIT_SEED,
) -> ArraySource:
    """Returns steady-state vowels of British English as log area ratios, divided by speaker.

    Args:
        split: ``test`` is the fold, ``train`` all others.
        fold: number of the fold, from 0.
        folds: number of folds.
        grouped: keep all utterances of a speaker on one side; false divides them, which flatters a model.
        split_seed: seed of the division.

    Raises:
        RecipeError: there is no such fold.
    """
    return _fold(read_table("vowel"), "vowel", _VOWEL_LICENCE, split, fold, folds, grouped, split_seed)
