"""Sources in memory: what they refuse, and how content is known again."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data import as_source
from limbeck.data.arrays import ArraySource, channel_statistics, channels_first
from limbeck.data.hashing import hash_rows, hash_tensor, source_fingerprint, with_position
from limbeck.data.source import DataInfo, Source
from limbeck.errors import DataError


def toy(count=12, classes=3, shape=(3, 5, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % classes


def test_pair_of_tensors_is_a_source():
    images, labels = toy()
    source = as_source((images, labels))
    assert isinstance(source, Source)
    assert (len(source), source.info.num_classes, source.info.input_shape) == (12, 3, (3, 5, 4))
    found = source.fetch(np.array([7, 2, 2]), epoch=5)
    assert torch.equal(found["inputs"], images[[7, 2, 2]])
    assert found["labels"].tolist() == [1, 2, 2]
    assert found["labels"].dtype == torch.int64


def test_tensor_dataset_and_numpy_arrays_and_a_source_itself():
    images, labels = toy()
    same = as_source(torch.utils.data.TensorDataset(images, labels))
    last = as_source((images.permute(0, 2, 3, 1).numpy(), labels.numpy()))
    assert same.fingerprint() == last.fingerprint() == as_source((images, labels)).fingerprint()
    assert as_source(same) is same


def test_without_labels():
    images, _ = toy()
    source = as_source((images,))
    assert source.labels() is None
    assert "labels" not in source.fetch(np.array([0]), 0)
    assert source.fingerprint() == as_source((images, None)).fingerprint()


def test_like_takes_over_classes_and_normalisation():
    images, labels = toy()
    train = as_source((images, labels), num_classes=7, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    test = as_source((images[:2], labels[:2]), like=train)
    assert (test.info.num_classes, test.info.mean, test.info.std) == (7, train.info.mean, train.info.std)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64)), "empty"),
        ((torch.zeros(3, 1, 4, 4), torch.tensor([0, 1])), "3 samples, but its labels have shape"),
        ((torch.zeros(2, 1, 4, 4), torch.tensor([0, -1])), "labels \\[-1\\].*samples \\[1\\].*outside 0\\.\\.0"),
        ((torch.zeros(2, 1, 4, 4), torch.tensor([0.0, 1.0])), "float32.*class numbers"),
        ((np.zeros((2, 9, 9, 9), np.uint8), np.zeros(2, int)), "set layout"),
        (iter([1, 2]), "samples only in its own order"),
        (42, "cannot use a int"),
    ],
)
def test_what_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        as_source(data)


def test_labels_beyond_the_classes_are_named():
    images, _ = toy(4)
    with pytest.raises(DataError, match=r"labels \[7, 9\] of 'mine' \(samples \[1, 3\]\) are outside 0\.\.4"):
        as_source((images, torch.tensor([0, 9, 1, 7])), name="mine", num_classes=5)


def test_mean_without_std_is_refused():
    with pytest.raises(DataError, match="mean has 3 entries and std 0"):
        as_source(toy(), mean=(0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((2, 6, 5), None, (2, 1, 6, 5)),
        ((2, 6, 5, 3), None, (2, 3, 6, 5)),
        ((2, 3, 6, 5), None, (2, 3, 6, 5)),
        ((2, 3, 6, 3), "hwc", (2, 3, 3, 6)),
        ((2, 3, 6, 3), "chw", (2, 3, 6, 3)),
    ],
)
def test_layouts(shape, layout, expected):
    assert channels_first(np.zeros(shape, np.uint8), "x", layout).shape == expected


def test_ambiguous_layout_asks():
    with pytest.raises(DataError, match="set layout to hw, hwc or chw"):
        channels_first(np.zeros((2, 3, 6, 3), np.uint8), "x")


def test_statistics_against_numpy():
    images, _ = toy(20)
    mean, std = channel_statistics(images)
    values = images.numpy() / 255.0
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(std, values.std((0, 2, 3)), atol=1e-6)
    as_floats = channel_statistics(images.float() / 255)
    np.testing.assert_allclose(as_floats, (mean, std), atol=2e-6)


def test_a_constant_channel_is_divided_by_one():
    assert channel_statistics(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


def test_hash_is_blake2b_of_content_type_and_shape():
    row = torch.arange(12, dtype=torch.uint8).view(3, 4)
    key = hashlib.blake2b(b"|u1(3, 4)", digest_size=16).digest()
    expected = int.from_bytes(hashlib.blake2b(bytes(range(12)), digest_size=8, key=key).digest(), "little")
    assert hash_tensor(row) == expected
    assert hash_rows(torch.stack([row + 1, row]))[1] == expected


@given(st.integers(0, 11), st.integers(0, 59), st.integers(1, 255))
def test_one_changed_byte_changes_one_hash_and_the_fingerprint(sample, byte, by):
    images, labels = toy()
    changed = images.clone()
    changed.view(12, -1)[sample, byte] += by
    before, after = hash_rows(images), hash_rows(changed)
    assert (before != after).nonzero()[0].tolist() == [sample]
    assert source_fingerprint(before, labels) != source_fingerprint(after, labels)


def test_fingerprint_depends_on_order_and_labels_not_on_name():
    images, labels = toy()
    original = as_source((images, labels), name="a").fingerprint()
    assert original == as_source((images.clone(), labels.to(torch.int32)), name="b").fingerprint()
    assert original != as_source((images.flip(0), labels.flip(0))).fingerprint()
    assert original != as_source((images, labels.roll(1))).fingerprint()


def test_type_and_shape_enter_the_hash():
    images, _ = toy()
    variants = [images, images.view(torch.int8), images.view(12, 3, 4, 5), images.float()]
    assert len({int(hash_rows(v)[0]) for v in variants}) == 4


def test_position_tells_copies_apart():
    hashes = hash_rows(torch.zeros(1000, 4))
    assert len(np.unique(hashes)) == 1
    assert len(np.unique(with_position(hashes, np.arange(1000)))) == 1000


def test_shape_must_be_the_one_announced():
    with pytest.raises(DataError, match="shape"):
        ArraySource(torch.zeros(2, 1, 4, 4), None, DataInfo("x", 0, (1, 5, 5)))
