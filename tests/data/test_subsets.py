"""Balanced subsets, held-out parts and preloading."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data import as_source
from limbeck.data.subsets import Subset, balanced, hold_out, limit, long_tailed, preload
from limbeck.errors import DataError, RecipeError


def source_of(count=200, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=generator)
    return as_source((images, torch.randint(0, classes, (count,), generator=generator)), num_classes=classes)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 5))
def test_balanced_takes_as_evenly_as_the_classes_allow(labels, count, seed):
    keys = np.random.default_rng(seed).permutation(len(labels)).astype(np.uint64)
    chosen = balanced(torch.tensor(labels), len(labels), count, keys)
    assert len(chosen) == min(count, len(labels))
    assert (np.diff(chosen) > 0).all()
    sizes, taken = np.bincount(labels, minlength=5), np.bincount(np.array(labels)[chosen], minlength=5)
    for one in range(5):
        for other in range(5):
            # A class may lag behind another one by more than 1 only where it has no more to give.
            assert taken[one] >= taken[other] - 1 or taken[one] == sizes[one]
    for one in range(5):
        own = np.flatnonzero(np.array(labels) == one)
        smallest = own[np.argsort(keys[own])][: taken[one]]
        assert set(smallest) == set(chosen) & set(own)


def test_limits_are_nested_and_balanced():
    source = source_of()
    small, large = limit(source, 40), limit(source, 80)
    assert torch.bincount(small.labels()).tolist() == [10] * 4
    assert set(small.content_hashes()) <= set(large.content_hashes())
    assert limit(source, 10_000) is source
    with pytest.raises(RecipeError, match="limit = 0"):
        limit(source, 0)


def test_hold_out_divides_each_class_and_nothing_is_lost():
    source = source_of()
    rest, held = hold_out(source, 0.25, "rest"), hold_out(source, 0.25, "held")
    assert sorted([*rest.content_hashes(), *held.content_hashes()]) == sorted(source.content_hashes())
    whole = torch.bincount(source.labels(), minlength=4)
    assert torch.bincount(held.labels(), minlength=4).tolist() == [round(n * 0.25 + 1e-9) for n in whole.tolist()]


def test_hold_out_does_not_depend_on_order_and_keeps_copies_together():
    images = torch.randint(0, 256, (100, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = torch.cat([images, images, images])
    labels = torch.arange(100).remainder(5).repeat(3)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    straight = hold_out(as_source((images, labels)), 0.2, "held")
    shuffled = hold_out(as_source((images[order], labels[order])), 0.2, "held")
    assert sorted(straight.content_hashes()) == sorted(shuffled.content_hashes())
    rest = hold_out(as_source((images, labels)), 0.2, "rest")
    assert not set(rest.content_hashes()) & set(straight.content_hashes())


def test_purposes_give_other_splits():
    source = source_of()
    one, two = (hold_out(source, 0.3, "held", purpose=p).content_hashes() for p in ("validation", "test"))
    assert 0 < len(set(one) & set(two)) < len(one)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0])
def test_a_senseless_fraction(fraction):
    with pytest.raises(RecipeError, match="validation"):
        hold_out(source_of(), fraction, "held")


def test_an_empty_side_is_refused():
    with pytest.raises(DataError, match="leaves one side empty"):
        hold_out(source_of(8, classes=4), 0.01, "held")


class Decoded:
    """A source that does not lie in memory."""

    in_memory = False
    random = False

    def __init__(self, inner):
        self.inner, self.info, self.reads = inner, inner.info, 0

    def __len__(self):
        return len(self.inner)

    def fetch(self, index, epoch):
        self.reads += len(index)
        return self.inner.fetch(index, epoch)

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_preload_reads_once_and_keeps_the_identity():
    slow = Decoded(source_of(700))
    kept = preload(slow)
    assert (slow.reads, kept.in_memory) == (700, True)
    assert kept.fingerprint() == slow.fingerprint()
    assert torch.equal(kept.fetch(np.arange(700), 0)["inputs"], slow.fetch(np.arange(700), 0)["inputs"])
    assert preload(kept) is kept
    slow.random = True
    with pytest.raises(DataError, match="random transforms of its own"):
        preload(slow)


def test_subset_of_a_decoded_source_maps_numbers():
    slow = Decoded(source_of())
    part = Subset(slow, np.array([5, 3, 150]))
    assert torch.equal(part.fetch(np.array([2, 0]), 0)["inputs"], slow.fetch(np.array([150, 5]), 0)["inputs"])
    assert part.labels().tolist() == slow.labels()[[5, 3, 150]].tolist()
    assert part.content_hashes().tolist() == slow.content_hashes()[[5, 3, 150]].tolist()
    assert part.fingerprint() != slow.fingerprint()
    with pytest.raises(DataError, match="would be empty"):
        Subset(slow, np.array([], dtype=int))


def test_a_long_tail_falls_by_the_factor_and_lies_within_a_shorter_one():
    labels = torch.arange(400) % 4
    source = as_source((torch.arange(400.0).view(400, 1), labels))
    tail, flatter = long_tailed(source, 27.0), long_tailed(source, 8.0)
    assert tail.labels().bincount().tolist() == [100, 33, 11, 4]  # 100 / 27 ** (c / 3)
    assert flatter.labels().bincount().tolist() == [100, 50, 25, 12]
    assert set(tail.content_hashes()) < set(flatter.content_hashes())
    assert len(long_tailed(source, 1.0)) == 400
    assert long_tailed(source, 1e9).labels().bincount().tolist()[-1] == 1
    with pytest.raises(RecipeError, match="imbalance = 0"):
        long_tailed(source, 0.5)
    with pytest.raises(DataError, match="out of balance"):
        long_tailed(as_source((torch.zeros(4, 2),)), 2.0)
