"""Fashion-MNIST: 28 x 28 grey pictures of ten kinds of clothing.

Xiao, Rasul and Vollgraf, 2017, https://arxiv.org/abs/1708.07747.
The whole of it (60,000 / 10,000) is looked for on this machine, and downloaded only when that is asked for. An extract
of 8,000 / 2,000 comes with limbeck.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from limbeck.data.arrays import ArraySource, array_source
from limbeck.data.hub_parquet import read_image_parquet
from limbeck.data.idx import read_idx
from limbeck.data.places import Download, cache_folder, hub_cache, hub_parquet, not_found
from limbeck.data.source import dataset
from limbeck.errors import DataError

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
LICENCE = "MIT, (c) 2017 Zalando SE, https://github.com/zalandoresearch/fashion-mnist"
EXTRACT = Path(__file__).parent / "shipped" / "fashion-mnist-small.npz"

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_HUB = ("zalando-datasets/fashion_mnist", "fashion_mnist")
_SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_CONTENT_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_ARCHIVE_MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
# Statistics of the 60,000 training images; the extract uses them too, so that a model fits both.
_MEAN, _STD = (0.286041,), (0.353024,)
_AUGMENT: tuple[dict[str, Any], ...] = ({"name": "crop", "padding": 2}, {"name": "flip"})

Split = Literal["train", "test"]


@dataset("fashion-mnist", title="Fashion-MNIST, 60,000 / 10,000 grey images 28 x 28, 10 classes", licence=LICENCE)
def fashion_mnist(*, split: Split, path: str | None = None, download: bool = False) -> ArraySource:
    """Returns Fashion-MNIST.

    Args:
        split: ``train`` (60,000) or ``test`` (10,000).
        path: folder of the four idx files; where it usually lies when None.
        download: fetch it from its publisher where it is not on this machine (30 MB).

    Raises:
        DataError: it is not here and may not be downloaded, or a file is damaged.
    """
    images, labels = find_original(split, path, download=download)
    return _source(images, labels, "fashion-mnist")


def find_original(split: Split, path: str | None = None, *, download: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns images ``[N, 28, 28]`` and labels ``[N]``, uint8, from the first place that has them.

    Raises:
        DataError: no place has them.
    """
    cache = cache_folder() / "fashion-mnist"
    folders = [Path(path).expanduser()] if path is not None else [_DEBIAN, cache]
    for folder in folders:
        found = [_file(folder, stem) for stem in _FILES[split]]
        if found[0] is not None and found[1] is not None:
            images, labels = (read_idx(f, _CONTENT_SHA256[s]) for f, s in zip(found, _FILES[split]) if f is not None)
            return images, labels
    if path is None:
        parquet = hub_parquet(_HUB, split)
        if parquet:
            return read_image_parquet(parquet, label="label", mode="grey")
        if download:
            files = [Download(f"{_SITE}/{s}.gz", f"{s}.gz", _ARCHIVE_MD5[s]).fetch(cache) for s in _FILES[split]]
            images, labels = (read_idx(f, _CONTENT_SHA256[s]) for f, s in zip(files, _FILES[split]))
            return images, labels
    raise not_found(
        "fashion-mnist",
        [*folders, *([] if path is not None else [hub_cache()])],
        "Install the Debian package dataset-fashion-mnist, set `download: true`, or give the folder of its idx files "
        "as `path`; "
        "`fashion-mnist-small` comes with limbeck",
    )


def _file(folder: Path, stem: str) -> Path | None:
    return next((f for f in (folder / f"{stem}.gz", folder / stem) if f.is_file()), None)


@dataset(
    "fashion-mnist-small", title="Fashion-MNIST, the extract of 8,000 / 2,000 that comes with limbeck", licence=LICENCE
)
def fashion_mnist_small(*, split: Split) -> ArraySource:
    """Returns the extract that comes with limbeck: 800 training and 200 test images of each class."""
    try:
        with np.load(EXTRACT, allow_pickle=False) as arrays:
            images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{EXTRACT} is missing or damaged ({error}); install limbeck again") from error
    return _source(images, labels, "fashion-mnist-small", part_of="fashion-mnist")


def _source(images: np.ndarray, labels: np.ndarray, name: str, *, part_of: str = "") -> ArraySource:
    return array_source(
        images[:, None],
        labels,
        name=name,
        class_names=CLASSES,
        mean=_MEAN,
        std=_STD,
        augment=_AUGMENT,
        licence=LICENCE,
        part_of=part_of,
    )
