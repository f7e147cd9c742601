"""Folders of images: splits, sizes, and files that are none."""

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data import Loader, load_data
from limbeck.data.images import decode_image
from limbeck.errors import DataError, RecipeError


def picture(seed, size=(10, 8)):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def write(root, classes=("ant", "bee"), count=6, size=(10, 8), first=0):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(picture(first + 100 * number + i, size)).save(root / name / f"{i}.png")
    return root


def test_train_and_test_folders(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "test", count=2, first=50)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    train, test = load_data(f"folder:{tmp_path}"), load_data(f"folder:{tmp_path}", split="test")
    assert (len(train), len(test)) == (12, 4)
    assert train.info.class_names == ("ant", "bee")
    assert train.info.input_shape == (3, 8, 10)
    assert train.labels().tolist() == [0] * 6 + [1] * 6
    assert torch.equal(train.fetch(np.array([7]), 0)["inputs"][0], torch.from_numpy(picture(101)).permute(2, 0, 1))
    pixels = np.stack([picture(100 * c + i) for c in (0, 1) for i in range(6)]) / 255
    np.testing.assert_allclose(train.info.mean, pixels.mean((0, 1, 2)), atol=1e-6)
    assert test.info.mean == train.info.mean
    assert not train.in_memory


def test_one_folder_with_a_part_for_tests(tmp_path):
    write(tmp_path / "all", count=10)
    spec = {"name": "folder", "path": str(tmp_path / "all")}
    with pytest.raises(DataError, match=r"test: 0\.2"):
        load_data(spec, split="test")
    train, test = load_data({**spec, "test": 0.3}), load_data({**spec, "test": 0.3}, split="test")
    assert (torch.bincount(train.labels()).tolist(), torch.bincount(test.labels()).tolist()) == ([7, 7], [3, 3])
    assert not set(train.content_hashes()) & set(test.content_hashes())
    assert len(load_data(spec)) == 20


def test_validation_from_a_folder_or_held_out(tmp_path):
    write(tmp_path / "train", count=10)
    spec = {"name": "folder", "path": str(tmp_path)}
    with pytest.raises(DataError, match=r"validation: 0\.1"):
        load_data(spec, split="validation")
    assert len(load_data({**spec, "validation": 0.1}, split="validation")) == 2
    write(tmp_path / "val", count=3, first=40)
    assert len(load_data(spec, split="validation")) == 6


@pytest.mark.parametrize(("resize", "shape"), [(4, (3, 4, 4)), ([6, 9], (3, 6, 9)), (16, (3, 16, 16))])
def test_resize(tmp_path, resize, shape):
    write(tmp_path, count=2)
    Image.fromarray(picture(9, (31, 20))).save(tmp_path / "ant" / "large.png")
    source = load_data({"name": "folder", "path": str(tmp_path), "resize": resize})
    assert source.fetch(np.arange(len(source)), 0)["inputs"].shape == (5, *shape)


def test_resize_cuts_the_middle_square():
    gradient = np.tile(np.arange(30, dtype=np.uint8) * 8, (10, 1))
    file = Image.fromarray(gradient)
    found = decode_image(_png(file), "x", mode="grey", resize=10)
    assert torch.equal(found[0], torch.from_numpy(gradient[:, 10:20].copy()))


def _png(image):
    import io

    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_grey(tmp_path):
    write(tmp_path, count=2)
    source = load_data({"name": "folder", "path": str(tmp_path), "mode": "grey"})
    assert source.info.input_shape == (1, 8, 10)
    expected = np.array(Image.fromarray(picture(0)).convert("L"))
    assert torch.equal(source.fetch(np.array([0]), 0)["inputs"][0, 0], torch.from_numpy(expected))


def test_preload_gives_the_same_samples_and_fingerprint(tmp_path):
    write(tmp_path)
    spec = {"name": "folder", "path": str(tmp_path)}
    lazy, kept = load_data(spec), load_data({**spec, "preload": True})
    assert kept.in_memory
    assert kept.fingerprint() == lazy.fingerprint()
    assert torch.equal(kept.fetch(np.arange(12), 0)["inputs"], lazy.fetch(np.arange(12), 0)["inputs"])


def test_decoding_options_enter_the_fingerprint(tmp_path):
    write(tmp_path)
    options = [{}, {"mode": "grey"}, {"resize": 8}, {"resize": (8, 8)}]
    prints = {load_data({"name": "folder", "path": str(tmp_path), **o}).fingerprint() for o in options}
    assert len(prints) == 4


def test_sizes_that_differ_name_the_file(tmp_path):
    write(tmp_path)
    Image.fromarray(picture(9, (5, 5))).save(tmp_path / "bee" / "odd.png")
    with pytest.raises(DataError, match=r"odd\.png has shape \(3, 5, 5\).*set `resize`"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_named(tmp_path, content, workers):
    write(tmp_path)
    source = load_data(f"folder:{tmp_path}")
    (tmp_path / "bee" / "3.png").write_bytes(content)
    # The whole message, also from a worker process: no traceback around it.
    with pytest.raises(DataError, match=r"^cannot read the image .*bee/3\.png: .*$"):
        list(Loader(source, batch_size=4, workers=workers).epoch(0))
    with pytest.raises(DataError, match=r"bee/3\.png"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "there is no folder"),
        (lambda root: root.mkdir(), "no sub-folders"),
        (lambda root: (root / "train" / "ant").mkdir(parents=True), "holds no images"),
    ],
)
def test_missing_and_empty_folders(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        load_data(f"folder:{tmp_path / 'data'}")


def test_classes_that_training_lacks(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "test", classes=("ant", "wasp"))
    with pytest.raises(DataError, match="wasp"):
        load_data(f"folder:{tmp_path}", split="test")


def test_contradicting_options(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "test", first=50)
    with pytest.raises(DataError, match="would be ignored"):
        load_data({"name": "folder", "path": str(tmp_path), "test": 0.2})
    with pytest.raises(RecipeError, match="mode"):
        load_data({"name": "folder", "path": str(tmp_path), "mode": "cmyk"})
