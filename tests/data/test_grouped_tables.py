from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.data.folds import grouped_folds
from limbeck.data.grouped_tables import read_table
from limbeck.data.load import load_data
from limbeck.errors import DataError, RecipeError


def test_no_group_is_divided_and_every_fold_has_its_part_of_each_class() -> None:
    table = read_table("breast-cancer-wisconsin")
    fold = grouped_folds(table.groups, table.labels, 5, seed=43)
    for group in np.unique(table.groups):
        assert len(set(fold[table.groups == group])) == 1
    parts = [np.mean(table.labels[fold == f]) for f in range(5)]
    assert max(parts) - min(parts) < 0.06
    sizes = np.bincount(fold)
    assert sizes.max() - sizes.min() < 25
    assert not np.array_equal(fold, grouped_folds(table.groups, table.labels, 5, seed=44))
    assert np.array_equal(fold, grouped_folds(table.groups, table.labels, 5, seed=43))


@pytest.mark.parametrize(("groups", "folds"), [(["a", "b"], 3), (["a", "b"], 1), (["a"], 2)])
def test_folds_that_cannot_be_are_refused(groups: list[str], folds: int) -> None:
    labels = np.asarray([0, 1])
    with pytest.raises(DataError):
        grouped_folds(np.asarray(groups), labels, folds)


def test_tables_are_the_published_ones() -> None:
    cancer, vowel = read_table("breast-cancer-wisconsin"), read_table("vowel")
    assert cancer.values.shape == (699, 9)
    assert dict(zip(cancer.classes, np.bincount(cancer.labels))) == {"benign": 458, "malignant": 241}
    assert len(np.unique(cancer.groups)) == 645
    assert int(np.isnan(cancer.values).sum()) == 16
    assert vowel.values.shape == (990, 9)
    assert set(np.bincount(vowel.labels)) == {90}
    assert len(np.unique(vowel.groups)) == 15


@pytest.mark.parametrize("name", ["breast-cancer", "vowel"])
def test_folds_together_are_the_whole_and_statistics_are_those_of_the_training_side(name: str) -> None:
    sides = [[load_data({"name": name, "fold": f}, split=s) for s in ("train", "test")] for f in range(5)]
    total = {len(train) + len(test) for train, test in sides}
    assert len(total) == 1
    assert sum(len(test) for _, test in sides) == total.pop()
    train = sides[2][0]
    inputs = train.fetch(np.arange(len(train)), 0)["inputs"]
    torch.testing.assert_close(inputs.mean(0), torch.zeros(inputs.shape[1]), atol=1e-5, rtol=0)
    assert inputs.isfinite().all()
    with pytest.raises(RecipeError, match="fold = 5"):
        load_data({"name": name, "fold": 5})


def _neighbour_accuracy(grouped: bool) -> float:
    """Accuracy of the nearest training sample, over all folds."""
    right = []
    for fold in range(5):
        train, test = (
            load_data({"name": "vowel", "fold": fold, "grouped": grouped}, split=s) for s in ("train", "test")
        )
        known, asked = (s.fetch(np.arange(len(s)), 0) for s in (train, test))
        nearest = torch.cdist(asked["inputs"], known["inputs"]).argmin(1)
        right.append((known["labels"][nearest] == asked["labels"]).float())
    return float(torch.cat(right).mean())


def test_dividing_speakers_flatters_a_model() -> None:
    assert _neighbour_accuracy(grouped=False) > _neighbour_accuracy(grouped=True) + 0.2
