"""Data sets by name: what comes with limbeck, files of arrays, options and their errors."""

import numpy as np
import pytest
import torch

from limbeck.data import as_source, datasets, load_data
from limbeck.data.arrays import channel_statistics
from limbeck.errors import DataError, RecipeError, UnknownNameError


@pytest.fixture(autouse=True)
def _nothing_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def arrays(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "pictures.npz"
    np.savez(
        path,
        x_train=rng.integers(0, 256, (60, 8, 9, 3), dtype=np.uint8),
        y_train=np.arange(60) % 3,
        x_test=rng.integers(0, 256, (12, 8, 9, 3), dtype=np.uint8),
        y_test=np.arange(12) % 3,
        names=np.array(["cat", "dog", "eel"]),
    )
    return path


def test_every_entry_says_what_it_is():
    assert {"fashion-mnist", "fashion-mnist-small", "cifar10", "cifar100", "digits", "folder", "npz", "hf"} <= set(
        datasets
    )
    assert all(entry.about["title"] for entry in datasets.entries())


def test_fashion_mnist_small_comes_with_limbeck():
    train, test = load_data("fashion-mnist-small"), load_data("fashion-mnist-small", split="test")
    assert torch.bincount(train.labels()).tolist() == [800] * 10
    assert torch.bincount(test.labels()).tolist() == [200] * 10
    assert train.info.input_shape == (1, 28, 28)
    assert (train.info.class_names[0], train.info.class_names[9]) == ("T-shirt/top", "Ankle boot")
    assert train.info.licence.startswith("MIT")
    assert not set(train.content_hashes()) & set(test.content_hashes())
    # The extract's own statistics are close to those of the whole, which it uses.
    mean, std = channel_statistics(train.fetch(np.arange(8000), 0)["inputs"])
    assert mean[0] == pytest.approx(train.info.mean[0], abs=0.005)
    assert std[0] == pytest.approx(train.info.std[0], abs=0.005)


def test_digits():
    train, test = load_data("digits"), load_data("digits", split="test")
    assert len(train) + len(test) == 1797
    assert torch.bincount(test.labels()).min() >= 34
    everything = train.fetch(np.arange(len(train)), 0)["inputs"]
    assert (train.info.mean, train.info.std) == channel_statistics(everything)
    assert everything.unique().tolist() == [int(np.rint(v * 255 / 16)) for v in range(17)]


def test_npz_by_mapping_and_by_short_name(arrays):
    train = load_data({"name": "npz", "path": str(arrays)})
    test = load_data(f"npz:{arrays}", split="test")
    assert (len(train), len(test), train.info.input_shape) == (60, 12, (3, 8, 9))
    assert train.info.class_names == ("cat", "dog", "eel")
    assert test.info.mean == train.info.mean == channel_statistics(train.fetch(np.arange(60), 0)["inputs"])[0]
    content = np.load(arrays)["x_test"]
    assert np.array_equal(test.fetch(np.array([3]), 0)["inputs"][0].permute(1, 2, 0).numpy(), content[3])


def test_limit_and_validation(arrays):
    spec = {"name": "npz", "path": str(arrays), "validation": 0.1, "limit": 30}
    train, held, test = (load_data(spec, split=s) for s in ("train", "validation", "test"))
    assert [len(s) for s in (train, held, test)] == [30, 6, 12]
    assert torch.bincount(train.labels()).tolist() == [10, 10, 10]
    assert not set(train.content_hashes()) & set(held.content_hashes())
    limits = {**spec, "limit": {"train": 12, "test": 3}}
    assert [len(load_data(limits, split=s)) for s in ("train", "validation", "test")] == [12, 6, 3]
    assert len(load_data({**spec, "limit": None, "validation": 0.0, "path": str(arrays)})) == 60


def test_as_source_takes_names_too(arrays):
    assert len(as_source(f"npz:{arrays}", split="test")) == 12


@pytest.mark.parametrize(
    ("spec", "split", "error", "message"),
    [
        ("fashion-mnits", "train", UnknownNameError, "Did you mean 'fashion-mnist'"),
        ("digits", "trian", RecipeError, "Did you mean 'train'"),
        ("digits", "validation", DataError, "validation: 0.1"),
        ({"name": "digits", "lmit": 3}, "train", RecipeError, "unknown option 'lmit'. Did you mean 'limit'"),
        ({"name": "digits", "limit": 0}, "train", RecipeError, "limit = 0"),
        ({"name": "digits", "limit": "many"}, "train", RecipeError, "limit"),
        ({"name": "digits", "limit": {"tset": 3}}, "train", RecipeError, "limit"),
        ({"name": "digits", "validation": 1.5}, "train", RecipeError, "validation"),
        ({"name": "digits", "split": "test"}, "train", RecipeError, "split"),
        ({"path": "x"}, "train", RecipeError, "name"),
        (7, "train", RecipeError, "name"),
        ({"name": "npz"}, "train", RecipeError, "'path' is missing"),
        ({"name": "npz:a", "path": "b"}, "train", RecipeError, "give one of them"),
        ({"name": "npz", "path": "/nowhere.npz"}, "train", DataError, "there is no file /nowhere.npz"),
        ({"name": "npz", "path": "x.npz", "layout": "whc"}, "train", RecipeError, "layout"),
        ({"name": "cifar10", "download": "perhaps"}, "train", RecipeError, "download"),
        ("cifar100", "train", DataError, "cifar-100-binary.tar.gz"),
    ],
)
def test_errors_name_cause_and_fix(spec, split, error, message):
    with pytest.raises(error, match=message):
        load_data(spec, split=split)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": None}, "no array 'y_test'"),
        ({"x_train": np.zeros((0, 8, 8), np.uint8), "y_train": np.zeros(0, int)}, "empty"),
        ({"y_train": np.full(4, 5)}, "outside 0..2"),
        ({"x_train": np.zeros((4, 8, 8))}, "must be uint8"),
        ({"y_train": np.zeros(3, int)}, "4 samples, but its labels have shape"),
        ({"y_train": np.array(["a", "b", "c", "a"])}, "'y_train' of .* is <U1; labels must be class numbers"),
        (
            {"x_test": np.zeros((2, 8, 6), np.uint8), "y_test": np.zeros(2, int)},
            "'x_test' of .* are 1x8x6, but those in 'x_train' are 1x8x8",
        ),
    ],
)
def test_malformed_arrays(tmp_path, change, message):
    arrays = {
        "x_train": np.zeros((4, 8, 8), np.uint8),
        "y_train": np.zeros(4, int),
        "x_test": np.zeros((2, 8, 8), np.uint8),
        "y_test": np.zeros(2, int),
        "names": np.array(["a", "b", "c"]),
        **change,
    }
    np.savez(tmp_path / "x.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(DataError, match=message):
        load_data(f"npz:{tmp_path / 'x.npz'}", split="test" if "y_test" in change else "train")


class _Bomb:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (open, (self.witness, "w"))


def test_pickles_in_an_npz_are_refused_and_not_run(tmp_path):
    witness = tmp_path / "executed"
    np.savez(tmp_path / "x.npz", x_train=np.array([_Bomb(str(witness))], dtype=object))
    with pytest.raises(DataError, match="cannot read"):
        load_data(f"npz:{tmp_path / 'x.npz'}")
    assert not witness.exists()


@pytest.mark.parametrize("damage", ["truncated", "text", "flipped"])
def test_damaged_npz(arrays, damage):
    content = bytearray(arrays.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "text":
        content = bytearray(b"not an archive")
    else:
        content[400] ^= 0xFF
    arrays.write_bytes(content)
    with pytest.raises(DataError, match="cannot read"):
        load_data(f"npz:{arrays}")
