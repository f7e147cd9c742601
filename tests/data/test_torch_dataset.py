"""Torch data sets with random transforms of their own: replayable, and neutral to the global generators."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from limbeck.data import Loader, as_source
from limbeck.errors import DataError


class Jittered(Dataset):
    """Adds noise from all three global generators."""

    def __init__(self, count=30):
        self.values = torch.arange(count * 4.0).view(count, 4)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, number):
        return self.values[number] + torch.rand(4) + np.random.rand() + random.random(), number % 3


class Plain(Dataset):
    """Pillow images and labels, no randomness; counts its accesses."""

    classes = ("a", "b")

    def __init__(self, count=20, targets=None):
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
        self.reads = 0
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        self.reads += 1
        return Image.fromarray(self.images[number]), number % 2


def test_randomness_is_a_function_of_seed_epoch_and_number():
    first, again, other = as_source(Jittered(), seed=1), as_source(Jittered(), seed=1), as_source(Jittered(), seed=2)
    assert first.random
    whole = first.fetch(np.arange(30), 4)["inputs"]
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    order = np.random.permutation(30)
    assert torch.equal(again.fetch(order, 4)["inputs"], whole[order])
    assert not torch.equal(first.fetch(np.arange(30), 5)["inputs"], whole)
    assert not torch.equal(other.fetch(np.arange(30), 4)["inputs"], whole)


def test_global_generators_do_not_notice():
    source = as_source(Jittered())

    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]

    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = draws()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    source.fetch(np.arange(10), 0)
    as_source(Jittered())
    list(Loader(source, batch_size=8, workers=2).epoch(1))
    assert draws() == expected


@pytest.mark.parametrize("make", [Jittered, Plain])
def test_same_batches_for_any_number_of_workers(make):
    source = as_source(make(), seed=3)
    batches = [list(Loader(source, batch_size=7, seed=2, workers=w).epoch(1)) for w in (0, 1, 2)]
    for one, *others in zip(*batches):
        for other in others:
            assert torch.equal(one["inputs"], other["inputs"])
            assert torch.equal(one["labels"], other["labels"])
            assert torch.equal(one["index"], other["index"])


def test_plain_data_set_is_not_taken_for_random():
    source = as_source(Plain())
    assert not source.random
    assert source.info.class_names == ("a", "b")
    assert source.info.input_shape == (3, 6, 5)
    found = source.fetch(np.array([3]), 0)["inputs"]
    assert torch.equal(found[0], torch.from_numpy(Plain().images[3]).permute(2, 0, 1))


def test_targets_save_reading_everything():
    data = Plain(5000, targets=[n % 2 for n in range(5000)])
    source = as_source(data)
    assert source.labels().tolist() == data.targets
    assert data.reads < 60


def test_targets_that_contradict_the_items_are_not_believed():
    source = as_source(Plain(20, targets=[1] * 20))
    assert source.labels().tolist() == [0, 1] * 10


def test_hashes_of_random_data_hold_the_number():
    class Same(Jittered):
        def __getitem__(self, number):
            torch.rand(1)
            return torch.zeros(4), 0

    assert len(set(as_source(Same()).content_hashes())) == 30
    same = torch.utils.data.TensorDataset(torch.zeros(30, 4), torch.zeros(30, dtype=torch.int64), torch.zeros(30))
    assert len(set(as_source(same).content_hashes())) == 1


def test_private_generators_are_refused():
    class Private(Jittered):
        generator = np.random.default_rng()

        def __getitem__(self, number):
            return self.values[number] + self.generator.random(), 0

    with pytest.raises(DataError, match="cannot be replayed"):
        as_source(Private())


class Items(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


def test_items_as_mappings_and_without_labels():
    source = as_source(Items({"image": np.zeros((1, 2, 2), np.float32), "label": np.int64(2)}))
    assert (source.info.num_classes, source.labels().tolist()) == (3, [2])
    bare = as_source(Items(torch.zeros(3), torch.ones(3)))
    assert bare.labels() is None
    assert "labels" not in next(Loader(bare, batch_size=2).epoch(0))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Items(), "empty"),
        (Items(("text", 0)), "is a str, but should be a tensor"),
        (Items({"label": 1}), "has no input"),
        (Items((torch.zeros(2), 0.5)), "label of sample 0"),
        (Items((torch.zeros(2), True)), "label of sample 0"),
        (Items((torch.zeros(2), 0), (torch.zeros(2),)), "sample 1 of 'data' has no label"),
        (Items((torch.zeros(2), 0), (torch.zeros(2), -3)), r"labels \[-3\]"),
    ],
)
def test_malformed_items(data, message):
    with pytest.raises(DataError, match=message):
        as_source(data)


def test_sizes_that_differ():
    source = as_source(Items((torch.zeros(2, 2), 0), (torch.zeros(2, 3), 0)))
    with pytest.raises(DataError, match=r"sample 1 of 'data' has shape \(2, 3\)"):
        source.fetch(np.arange(2), 0)


def test_streams_of_samples_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(torch.zeros(1), 0)])

    with pytest.raises(DataError, match=r"own order|does not say its length"):
        as_source(Stream())
