"""Fashion-MNIST: where it is looked for, what is checked, and how the extract is made."""

import gzip
import hashlib
import io
import sys

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from limbeck.data import extract_fashion_mnist, fashion_mnist, load_data
from limbeck.data.idx import read_idx
from limbeck.data.places import Download, cache_folder
from limbeck.errors import DataError

FILES = fashion_mnist._FILES


def idx_bytes(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


@pytest.fixture
def original():
    """A tiny stand-in of the published files, taken from the extract: content by file name."""
    content = {}
    for split, count in (("train", 60), ("test", 30)):
        source = load_data({"name": "fashion-mnist-small", "limit": {split: count}}, split=split)
        found = source.fetch(np.arange(count), 0)
        images, labels = FILES[split]
        content[images] = found["inputs"][:, 0].numpy()
        content[labels] = found["labels"].numpy().astype(np.uint8)
    return content


@pytest.fixture(autouse=True)
def _places(monkeypatch, tmp_path, original):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(fashion_mnist, "_DEBIAN", tmp_path / "debian")
    digests = {name: hashlib.sha256(idx_bytes(array)).hexdigest() for name, array in original.items()}
    monkeypatch.setattr(fashion_mnist, "_CONTENT_SHA256", digests)


def put(folder, original, *, packed=True):
    folder.mkdir(parents=True)
    for name, array in original.items():
        content = idx_bytes(array)
        (folder / f"{name}.gz").write_bytes(gzip.compress(content)) if packed else (folder / name).write_bytes(content)


@pytest.mark.parametrize("place", ["debian", "cache/fashion-mnist", "elsewhere"])
@pytest.mark.parametrize("packed", [True, False])
def test_found_in_each_folder(tmp_path, original, place, packed):
    put(tmp_path / place, original, packed=packed)
    spec = {"name": "fashion-mnist", **({"path": str(tmp_path / place)} if place == "elsewhere" else {})}
    train, test = load_data(spec), load_data(spec, split="test")
    assert (len(train), len(test)) == (60, 30)
    assert np.array_equal(test.fetch(np.arange(30), 0)["inputs"][:, 0].numpy(), original["t10k-images-idx3-ubyte"])
    assert train.labels().tolist() == original["train-labels-idx1-ubyte"].tolist()


def test_absent_lists_the_places_and_the_fixes(tmp_path):
    with pytest.raises(DataError) as error:
        load_data("fashion-mnist")
    for part in (tmp_path / "debian", tmp_path / "cache", tmp_path / "hub", "dataset-fashion-mnist", "download: true"):
        assert str(part) in str(error.value)


def test_other_content_is_refused(tmp_path, original):
    original["train-labels-idx1-ubyte"] = original["train-labels-idx1-ubyte"][::-1].copy()
    put(tmp_path / "debian", original)
    with pytest.raises(DataError, match="checksum differs"):
        load_data("fashion-mnist")
    assert len(load_data("fashion-mnist", split="test")) == 30


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_found_in_the_hub_cache(tmp_path, original):
    folder = tmp_path / "hub" / "datasets--zalando-datasets--fashion_mnist" / "snapshots" / "0a1b" / "fashion_mnist"
    folder.mkdir(parents=True)
    images, labels = original["train-images-idx3-ubyte"], original["train-labels-idx1-ubyte"]
    for part in range(2):
        rows = slice(part * 30, part * 30 + 30)
        table = arrow.table(
            {"image": [{"bytes": png(i), "path": None} for i in images[rows]], "label": labels[rows].astype(np.int64)}
        )
        parquet.write_table(table, folder / f"train-{part:05d}-of-00002.parquet")
    source = load_data("fashion-mnist")
    assert np.array_equal(source.fetch(np.arange(60), 0)["inputs"][:, 0].numpy(), images)
    assert source.labels().tolist() == labels.tolist()
    (folder / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="not on this machine"):
        load_data("fashion-mnist")


def test_download_verifies_and_keeps(tmp_path, original, monkeypatch, capsys):
    put(tmp_path / "site", original)
    monkeypatch.setattr(fashion_mnist, "_SITE", (tmp_path / "site").as_uri())
    sums = {n: hashlib.md5((tmp_path / "site" / f"{n}.gz").read_bytes()).hexdigest() for n in original}
    monkeypatch.setattr(fashion_mnist, "_ARCHIVE_MD5", sums)
    spec = {"name": "fashion-mnist", "download": True}
    assert len(load_data(spec)) == 60
    assert "train-images-idx3-ubyte.gz" in capsys.readouterr().err
    # The second time nothing is fetched.
    monkeypatch.setattr(fashion_mnist, "_SITE", (tmp_path / "gone").as_uri())
    assert len(load_data("fashion-mnist")) == 60
    with pytest.raises(DataError, match="cannot download"):
        load_data(spec, split="test")


def test_a_damaged_download_leaves_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"other")
    with pytest.raises(DataError, match="publisher states"):
        Download((tmp_path / "file").as_uri(), "file.gz", "0" * 32).fetch(tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


def test_cache_folder(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LIMBECK_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "limbeck"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8bjunk", "cannot read"),
        (b"plain text", "no idx file"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 9]) + b"abc", "truncated"),
        (bytes([0, 0, 8, 3, 0, 0]), "truncated"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 0, 0, 0, 0]), "no idx file"),
        (gzip.compress(idx_bytes(np.zeros((3, 3), np.uint8)), mtime=0)[:-6], "cannot read"),
    ],
)
def test_malformed_idx(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "x")


def test_the_extract_is_a_balanced_choice_by_content(tmp_path, original, monkeypatch, capsys):
    put(tmp_path / "debian", original)
    monkeypatch.setattr(extract_fashion_mnist, "SIZES", {"train": 20, "test": 10})
    arrays = extract_fashion_mnist.extract()
    assert np.bincount(arrays["y_train"]).tolist() == [2] * 10
    assert np.array_equal(arrays["x_test"], original["t10k-images-idx3-ubyte"][arrays["original_test"]])
    monkeypatch.setattr(sys, "argv", ["extract", "--output", str(tmp_path / "a.npz")])
    extract_fashion_mnist.main()
    first = (tmp_path / "a.npz").read_bytes()
    extract_fashion_mnist.main()
    assert (tmp_path / "a.npz").read_bytes() == first
    assert f"{len(first):,} bytes" in capsys.readouterr().out


def test_the_shipped_extract_holds_what_its_readme_says():
    with np.load(fashion_mnist.EXTRACT, allow_pickle=False) as arrays:
        facts = {k: (arrays[k].shape, str(arrays[k].dtype)) for k in arrays.files}
        numbers = arrays["original_train"].astype(int), arrays["original_test"].astype(int)
    assert facts == {
        "x_train": ((8000, 28, 28), "uint8"),
        "y_train": ((8000,), "uint8"),
        "original_train": ((8000,), "uint16"),
        "x_test": ((2000, 28, 28), "uint8"),
        "y_test": ((2000,), "uint8"),
        "original_test": ((2000,), "uint16"),
    }
    # In the order of the originals, none twice.
    assert all((np.diff(n) > 0).all() for n in numbers)
    assert numbers[0].max() < 60_000
    assert numbers[1].max() < 10_000
    assert fashion_mnist.EXTRACT.stat().st_size < 5_000_000
    assert "Copyright (c) 2017 Zalando SE" in (fashion_mnist.EXTRACT.parent / "fashion-mnist-LICENSE.txt").read_text()
