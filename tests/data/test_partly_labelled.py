from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.data import as_source
from limbeck.data.loader import Loader
from limbeck.data.partly_labelled import keep_labels, labelled_only
from limbeck.errors import DataError, RecipeError
from limbeck.signals import UNLABELLED

SAMPLES, CLASSES = 30, 3


def _source():
    labels = torch.arange(SAMPLES) % CLASSES
    return as_source((torch.arange(SAMPLES * 2.0).reshape(SAMPLES, 2), labels))


def test_labels_are_kept_evenly_and_smaller_parts_lie_within_larger_ones() -> None:
    few, more, part = (keep_labels(_source(), amount).labels() for amount in (6, 12, 0.4))
    assert few is not None
    assert more is not None
    assert few[few != UNLABELLED].bincount().tolist() == [2, 2, 2]
    assert set((few != UNLABELLED).nonzero()[:, 0].tolist()) < set((more != UNLABELLED).nonzero()[:, 0].tolist())
    assert torch.equal(more, part)  # type: ignore[arg-type]


def test_a_sample_keeps_its_input_and_loses_its_label() -> None:
    whole, source = _source(), keep_labels(_source(), 6)
    rows = np.array([4, 0, 29])
    assert torch.equal(source.fetch(rows, 0)["inputs"], whole.fetch(rows, 0)["inputs"])
    assert torch.equal(source.fetch(rows, 0)["labels"], source.labels()[rows])  # type: ignore[index]
    assert (source.content_hashes() == whole.content_hashes()).all()
    assert source.fingerprint() != whole.fingerprint()


def test_all_labels_are_the_data_itself() -> None:
    source = _source()
    assert keep_labels(source, SAMPLES) is source
    with pytest.raises(RecipeError, match="leaves no label"):
        keep_labels(source, 0.001)
    with pytest.raises(DataError, match="no labels"):
        keep_labels(as_source((torch.zeros(4, 2),)), 2)


def test_samples_without_a_label_can_be_dropped() -> None:
    source = labelled_only(keep_labels(_source(), 6))
    labels = source.labels()
    assert labels is not None
    assert labels.bincount().tolist() == [2, 2, 2]
    whole, inputs = _source(), source.fetch(np.arange(6), 0)["inputs"]
    kept = (keep_labels(whole, 6).labels() != UNLABELLED).nonzero()[:, 0].numpy()  # type: ignore[union-attr]
    assert torch.equal(inputs, whole.fetch(kept, 0)["inputs"])
    assert labelled_only(whole) is whole
    with pytest.raises(RecipeError, match="no labels"):
        labelled_only(as_source((torch.zeros(4, 2),)))


def test_a_batch_says_which_samples_have_a_label() -> None:
    loader = Loader(keep_labels(_source(), 6), batch_size=10)
    batches = list(loader.epoch(0))
    assert all(torch.equal(b["labelled_mask"], b["labels"] != UNLABELLED) for b in batches)
    assert all(torch.equal(b["unlabelled_mask"], ~b["labelled_mask"]) for b in batches)
    assert sum(int(b["labelled_mask"].sum()) for b in batches) == 6
    assert "labelled_mask" not in next(iter(Loader(_source(), batch_size=10).epoch(0)))


def test_labels_that_are_not_known_may_be_given_by_hand() -> None:
    labels = torch.tensor([0, UNLABELLED, 1, UNLABELLED])
    source = as_source((torch.zeros(4, 2), labels))
    assert source.info.num_classes == 2
    assert next(iter(Loader(source, batch_size=4, shuffle=False).epoch(0)))["labelled_mask"].tolist() == [1, 0, 1, 0]
    with pytest.raises(DataError, match="outside"):
        as_source((torch.zeros(2, 2), torch.tensor([0, -1])))


@pytest.mark.parametrize("batch_size", [8, 10])
def test_paired_batches_show_every_unlabelled_sample_once_and_labelled_ones_in_turn(batch_size: int) -> None:
    loader = Loader(keep_labels(_source(), 5), batch_size=batch_size, labelled_per_batch=3, seed=4)
    counts = torch.zeros(SAMPLES, dtype=torch.long)
    for epoch in range(4):
        batches = list(loader.epoch(epoch))
        assert len(batches) == loader.steps_per_epoch == -(-25 // (batch_size - 3))
        assert all(int(b["labelled_mask"].sum()) == 3 for b in batches)
        assert all(b.size == batch_size for b in batches[:-1])
        rest = torch.cat([b["index"][b["unlabelled_mask"]] for b in batches])
        assert sorted(rest.tolist()) == sorted(set(rest.tolist()))
        assert len(rest) == 25
        for batch in batches:
            counts += batch["index"][batch["labelled_mask"]].bincount(minlength=SAMPLES)
    labelled = counts[counts > 0]
    assert len(labelled) == 5
    assert labelled.max() - labelled.min() <= 1


def test_paired_batches_can_be_entered_in_the_middle_and_are_shared_evenly() -> None:
    source = keep_labels(_source(), 5)
    whole = Loader(source, batch_size=8, labelled_per_batch=4, seed=2)
    second = list(whole.epoch(3))[2]
    assert torch.equal(next(iter(whole.epoch(3, 2)))["index"], second["index"])
    parts = [
        next(iter(Loader(source, batch_size=8, labelled_per_batch=4, seed=2, rank=r, world_size=2).epoch(3, 2)))
        for r in range(2)
    ]
    assert torch.equal(torch.cat([p["index"] for p in parts]), second["index"])
    assert [int(p["labelled_mask"].sum()) for p in parts] == [2, 2]


@pytest.mark.parametrize(("amount", "per_batch"), [(5, 0), (5, 8), (SAMPLES, 4)])
def test_batches_of_one_kind_are_refused(amount: int, per_batch: int) -> None:
    with pytest.raises(RecipeError, match="labelled_per_batch"):
        Loader(keep_labels(_source(), amount), batch_size=8, labelled_per_batch=per_batch)
