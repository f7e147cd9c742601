"""Worst groups, from what a data set knows of its samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data.load import load_data
from limbeck.data.loader import Loader
from limbeck.data.partly_labelled import keep_labels
from limbeck.data.source import Source, groups_of
from limbeck.data.subsets import hold_out, limit
from limbeck.errors import DataError, RecipeError
from limbeck.evaluate import Predictions, Subject, evaluations
from limbeck.tasks.classification import Classification


def subject(source: Source, logits: torch.Tensor, teacher: torch.Tensor | None = None) -> Subject:
    labels = source.labels()
    assert labels is not None
    roles = {"student": logits} | ({} if teacher is None else {"teacher": teacher})
    known = Predictions(torch.arange(len(labels)), labels, roles)
    return Subject(torch.nn.Identity(), Loader(source, (), batch_size=8), Classification(), known=known)


def right_where(source: Source, right: np.ndarray) -> torch.Tensor:
    """Logits that hit the label where told and miss it elsewhere."""
    labels = source.labels()
    assert labels is not None
    said = torch.where(torch.from_numpy(right), labels, (labels + 1) % source.info.num_classes)
    return torch.nn.functional.one_hot(said, source.info.num_classes).float()


def test_the_worst_group_is_the_one_that_pays() -> None:
    source = load_data("vowel", split="test")
    speaker = groups_of(source)["speaker"]
    names = np.unique(speaker)
    right = np.arange(len(source)) % 4 > 0
    right[speaker == names[1]] = np.arange((speaker == names[1]).sum()) % 4 == 0
    found = evaluations["groups"].part(subject(source, right_where(source, right), right_where(source, ~right)))
    rates = {name: right[speaker == name].mean() for name in names}
    assert found["by"] == "speaker"
    assert (found["worst_group"], found["groups"]) == (names[1], len(names))
    assert found["worst"] == pytest.approx(rates[names[1]])
    assert found["gap"] == pytest.approx(np.mean(list(rates.values())) - rates[names[1]])
    assert found["rates"] == pytest.approx(rates)
    assert found["teacher"]["worst_group"] != names[1]


def test_small_groups_can_be_left_out_and_mistakes_are_named() -> None:
    source = load_data("breast-cancer", split="test")
    patients, counts = np.unique(groups_of(source)["patient"], return_counts=True)
    judged = evaluations["groups"].part(subject(source, right_where(source, np.ones(len(source), bool))), fewest=2)
    assert judged["groups"] == (counts >= 2).sum() < len(patients)
    assert judged["worst"] == 1.0
    whole = subject(source, right_where(source, np.ones(len(source), bool)))
    with pytest.raises(RecipeError, match="Did you mean 'patient'"):
        evaluations["groups"].part(whole, by="patients")
    with pytest.raises(RecipeError, match="lower fewest"):
        evaluations["groups"].part(whole, fewest=1000)
    digits = limit(load_data("fashion-mnist-small", split="test"), 20)
    with pytest.raises(DataError, match="group_train and group_test"):
        evaluations["groups"].part(subject(digits, right_where(digits, np.ones(len(digits), bool))))


def test_groups_stay_with_their_samples(tmp_path: Path) -> None:
    radio = load_data({"name": "radio", "frames": 2, "modulations": ["BPSK", "QPSK"]}, split="test")
    assert groups_of(radio)["snr_db"].tolist() == [0, 0, 6, 6, 12, 12, 18, 18] * 2
    held = hold_out(radio, 0.25, "held")
    kept = {tuple(row): level for row, level in zip(_rows(radio), groups_of(radio)["snr_db"])}
    assert [kept[tuple(row)] for row in _rows(held)] == groups_of(held)["snr_db"].tolist()
    assert groups_of(keep_labels(radio, 4))["snr_db"].tolist() == groups_of(radio)["snr_db"].tolist()
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    labels, sites = np.arange(6) % 2, np.asarray(["a", "b", "c"] * 2)
    path = tmp_path / "images.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels, group_train=sites, group_test=sites)
    archive = load_data({"name": "npz", "path": str(path)}, split="test")
    assert groups_of(archive)["group"].tolist() == sites.tolist()
    assert len(groups_of(limit(archive, 4))["group"]) == 4
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels, group_test=sites[:3])
    with pytest.raises(DataError, match="tells the group of 3"):
        load_data({"name": "npz", "path": str(path)}, split="test")


def _rows(source: Source) -> list[list[float]]:
    return source.fetch(np.arange(len(source)), 0)["inputs"].flatten(1).tolist()
