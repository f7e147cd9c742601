"""Hugging Face data sets: objects, folders on disk, columns by type."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data import as_source, load_data
from limbeck.errors import DataError


def pictures(count, seed=0, side=6):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def rows(images, labels, **columns):
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "kind": datasets.ClassLabel(names=["ant", "bee", "cow"]),
            **dict.fromkeys(columns, datasets.Value("int64")),
        }
    )
    content = {"photo": [Image.fromarray(i) for i in images], "kind": labels, **columns}
    return datasets.Dataset.from_dict(content, features=features)


def test_object_with_columns_found_by_type():
    images, labels = pictures(9), [0, 1, 2] * 3
    source = as_source(rows(images, labels, number=list(range(9))))
    assert (len(source), source.info.class_names) == (9, ("ant", "bee", "cow"))
    assert torch.equal(
        source.fetch(np.array([4, 1]), 0)["inputs"], torch.from_numpy(images[[4, 1]]).permute(0, 3, 1, 2)
    )
    assert source.labels().tolist() == labels
    np.testing.assert_allclose(source.info.mean, (images / 255).mean((0, 1, 2)), atol=1e-6)


def test_two_label_columns_ask():
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine": datasets.ClassLabel(num_classes=4),
            "coarse": datasets.ClassLabel(num_classes=2),
        }
    )
    content = {"img": [Image.fromarray(i) for i in pictures(4)], "fine": [0, 1, 2, 3], "coarse": [0, 0, 1, 1]}
    data = datasets.Dataset.from_dict(content, features=features)
    with pytest.raises(DataError, match=r"2 columns \(fine, coarse\).*option `label`"):
        as_source(data)


def test_plain_integer_column_called_label():
    content = {"image": [Image.fromarray(i) for i in pictures(4)], "label": [0, 1, 2, 1]}
    source = as_source(datasets.Dataset.from_dict(content).cast_column("image", datasets.Image()))
    assert source.info.num_classes == 3


def test_saved_folder_with_splits(tmp_path):
    parts = {"train": rows(pictures(9), [0, 1, 2] * 3), "valid": rows(pictures(3, 1), [2, 1, 0])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    spec = {"name": "hf", "path": str(tmp_path / "saved"), "splits": {"test": "valid"}}
    train, test = load_data(spec), load_data(spec, split="test")
    assert (len(train), len(test)) == (9, 3)
    assert test.info.mean == train.info.mean
    assert test.labels().tolist() == [2, 1, 0]
    with pytest.raises(DataError, match=r"no split 'test', only \['train', 'valid'\]"):
        load_data(f"hf:{tmp_path / 'saved'}", split="test")
    assert load_data({**spec, "resize": 4, "mode": "grey"}).info.input_shape == (1, 4, 4)


def test_folder_of_parquet_files(tmp_path):
    for split, count in (("train", 6), ("test", 3)):
        rows(pictures(count), [0, 1, 2] * (count // 3)).to_parquet(str(tmp_path / f"{split}.parquet"))
    assert [len(load_data(f"hf:{tmp_path}", split=s)) for s in ("train", "test")] == [6, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "foto"}, "no column 'foto'. Did you mean 'photo'"),
        ({"image": "kind"}, "no images"),
        ({"label": "photo"}, "no labels"),
    ],
)
def test_wrong_columns(tmp_path, change, message):
    datasets.DatasetDict({"train": rows(pictures(3), [0, 1, 2])}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=message):
        load_data({"name": "hf", "path": str(tmp_path / "saved"), **change})


def test_unknown_data_set():
    with pytest.raises(DataError, match="cannot load the Hugging Face data set 'no/such-data-set'"):
        load_data({"name": "hf", "path": "no/such-data-set", "download": False})


def test_hidden_labels_are_refused():
    with pytest.raises(DataError, match=r"labels \[-1\]"):
        as_source(rows(pictures(3), [0, -1, 1]))


def test_empty_and_missing_images():
    with pytest.raises(DataError, match="empty"):
        as_source(rows([], []))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": [None], "label": [0]}, features=features)
    with pytest.raises(DataError, match="row 0 of 'data' has no image"):
        as_source(data)


def test_hash_follows_the_encoded_image():
    images = pictures(4)
    images[3] = images[0]
    hashes = as_source(rows(images, [0, 1, 2, 0])).content_hashes()
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 3
