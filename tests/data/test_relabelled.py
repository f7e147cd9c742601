"""Labels that are wrong on purpose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.data import as_source
from limbeck.data.relabelled import noisy_labels
from limbeck.errors import DataError, RecipeError
from limbeck.recipes.load import load_recipe
from limbeck.recipes.stage_data import build_data

SAMPLES, CLASSES = 4000, 5


def source():
    return as_source((torch.arange(float(SAMPLES)).view(SAMPLES, 1), torch.arange(SAMPLES) % CLASSES))


def test_noise_is_symmetric_and_as_frequent_as_was_asked_for() -> None:
    clean, noisy = source(), noisy_labels(source(), 0.4)
    known, labels = clean.labels(), noisy.labels()
    assert known is not None
    assert labels is not None
    wrong = labels != known
    assert abs(wrong.float().mean() - 0.4) < 0.03
    # Every other class is as likely as the next.
    away = ((labels - known) % CLASSES)[wrong].bincount(minlength=CLASSES) / wrong.sum()
    assert away[0] == 0
    assert (away[1:] - 0.25).abs().max() < 0.04
    rows = np.array([3, 1, 2])
    assert torch.equal(noisy.fetch(rows, 0)["inputs"], clean.fetch(rows, 0)["inputs"])
    assert torch.equal(noisy.fetch(rows, 0)["labels"], labels[rows])
    assert noisy.fingerprint() != clean.fingerprint()


def test_more_noise_keeps_what_was_wrong() -> None:
    clean, little, much = source().labels(), noisy_labels(source(), 0.1).labels(), noisy_labels(source(), 0.5).labels()
    assert clean is not None
    wrong = little != clean
    assert torch.equal(little[wrong], much[wrong])  # type: ignore[index]


def test_what_cannot_be_noisy_is_refused() -> None:
    with pytest.raises(RecipeError, match="label_noise = 1"):
        noisy_labels(source(), 1.5)
    with pytest.raises(DataError, match="could be wrong"):
        noisy_labels(as_source((torch.zeros(4, 2),)), 0.5)


def test_a_recipe_spoils_training_labels_and_leaves_what_judges_alone() -> None:
    recipe = load_recipe(
        {
            "data": {"name": "digits", "imbalance": 10, "label_noise": 0.5, "holdout": 0.2, "augment": []},
            "roles": {"student": {"model": {"name": "small_cnn", "width": 2}}},
            "method": "none",
        }
    )
    stage = recipe.stages[0]
    noisy, plain = (
        build_data(stage.data.model_copy(update=changes), stage, 0)
        for changes in ({}, {"label_noise": 0.0, "imbalance": 1.0})
    )
    labels = noisy.train.labels()
    assert labels is not None
    assert len(noisy.train) < 0.5 * len(plain.train)
    spoilt = dict(zip(noisy.train.content_hashes().tolist(), labels.tolist()))
    true = dict(zip(plain.train.content_hashes().tolist(), plain.train.labels().tolist()))  # type: ignore[union-attr]
    assert 0.35 < np.mean([spoilt[key] != true[key] for key in spoilt]) < 0.65
    assert noisy.held.fingerprint() == plain.held.fingerprint()
    assert noisy.holdout_loader is not None
    assert plain.holdout_loader is not None
    assert noisy.holdout_loader.source.fingerprint() == plain.holdout_loader.source.fingerprint()
