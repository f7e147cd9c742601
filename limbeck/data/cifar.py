"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html): 32 x 32 photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from limbeck.data.arrays import ArraySource, array_source
from limbeck.data.cifar_files import parse_binary, parse_python, read_member
from limbeck.data.hub_parquet import read_image_parquet
from limbeck.data.places import Download, cache_folder, hub_cache, hub_parquet, not_found
from limbeck.data.source import dataset

LICENCE = "no licence stated; cite Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html"
CLASSES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_NAMES_100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard "
    "lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear "
    "pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark "
    "shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone "
    "television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm "
)
CLASSES_100 = tuple(_NAMES_100.split())
_AUGMENT: tuple[dict[str, Any], ...] = ({"name": "crop", "padding": 4}, {"name": "flip"})
_SITE = "https://www.cs.toronto.edu/~kriz"

Split = Literal["train", "test"]
Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Edition:
    """What tells the two data sets apart, and where their parts are.

    Attributes:
        name: name in recipes.
        class_names: the classes.
        mean: channel means of the training images.
        std: channel deviations of the training images.
        archive: the binary version as its publisher offers it.
        binary: its files by split.
        label_bytes: label bytes before each image.
        python_archive: file name of the Python version's archive.
        python: its files by split.
        python_labels: key of the labels in them.
        hub: names on the Hugging Face hub.
        hub_labels: label column there.
    """

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    archive: Download
    binary: dict[Split, tuple[str, ...]]
    label_bytes: int
    python_archive: str
    python: dict[Split, tuple[str, ...]]
    python_labels: bytes
    hub: tuple[str, ...]
    hub_labels: str


_CIFAR10 = _Edition(
    name="cifar10",
    class_names=CLASSES_10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    archive=Download(f"{_SITE}/cifar-10-binary.tar.gz", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    binary={
        "train": tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("cifar-10-batches-bin/test_batch.bin",),
    },
    label_bytes=1,
    python_archive="cifar-10-python.tar.gz",
    python={
        "train": tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
        "test": ("cifar-10-batches-py/test_batch",),
    },
    python_labels=b"labels",
    hub=("uoft-cs/cifar10", "cifar10"),
    hub_labels="label",
)
_CIFAR100 = _Edition(
    name="cifar100",
    class_names=CLASSES_100,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    archive=Download(f"{_SITE}/cifar-100-binary.tar.gz", "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    binary={"train": ("cifar-100-binary/train.bin",), "test": ("cifar-100-binary/test.bin",)},
    label_bytes=2,
    python_archive="cifar-100-python.tar.gz",
    python={"train": ("cifar-100-python/train",), "test": ("cifar-100-python/test",)},
    python_labels=b"fine_labels",
    hub=("uoft-cs/cifar100", "cifar100"),
    hub_labels="fine_label",
)


@dataset("cifar10", title="CIFAR-10, 50,000 / 10,000 colour images 32 x 32, 10 classes", licence=LICENCE)
def cifar10(*, split: Split, path: str | None = None, download: bool = False) -> ArraySource:
    """Returns CIFAR-10.

    Args:
        split: ``train`` (50,000) or ``test`` (10,000).
        path: folder that holds the binary or the Python version, unpacked or as its archive; the cache folder when
            None.
        download: fetch the binary version from its publisher where it is not on this machine (162 MB).

    Raises:
        DataError: it is not here and may not be downloaded, or a file is damaged.
    """
    return _load(_CIFAR10, split, path, download)


@dataset("cifar100", title="CIFAR-100, 50,000 / 10,000 colour images 32 x 32, 100 classes", licence=LICENCE)
def cifar100(*, split: Split, path: str | None = None, download: bool = False) -> ArraySource:
    """Returns CIFAR-100 with its 100 fine labels.

    Args:
        split: ``train`` or ``test``.
        path: folder that holds the binary or the Python version, unpacked or as its archive; the cache folder when
            None.
        download: fetch the binary version from its publisher where it is not on this machine (161 MB).

    Raises:
        DataError: it is not here and may not be downloaded, or a file is damaged.
    """
    return _load(_CIFAR100, split, path, download)


def _load(edition: _Edition, split: Split, path: str | None, download: bool) -> ArraySource:
    images, labels = _find(edition, split, path, download)
    return array_source(
        images,
        labels,
        name=edition.name,
        class_names=edition.class_names,
        mean=edition.mean,
        std=edition.std,
        augment=_AUGMENT,
        licence=LICENCE,
    )


def _find(edition: _Edition, split: Split, path: str | None, download: bool) -> Arrays:
    folders = [Path(path).expanduser()] if path is not None else [cache_folder() / edition.name, cache_folder()]
    for folder in folders:
        found = _read_folder(edition, split, folder)
        if found is not None:
            return found
    if path is None:
        parquet = hub_parquet(edition.hub, split)
        if parquet:
            images, labels = read_image_parquet(parquet, label=edition.hub_labels, mode="rgb")
            return images.transpose(0, 3, 1, 2), labels
        if download:
            edition.archive.fetch(folders[0])
            found = _read_folder(edition, split, folders[0])
            if found is not None:
                return found
    raise not_found(
        edition.name,
        [*folders, *([] if path is not None else [hub_cache()])],
        f"Set `download: true`, or give as `path` the folder of {edition.archive.file} or {edition.python_archive}, "
        "packed or unpacked",
    )


def _read_folder(edition: _Edition, split: Split, folder: Path) -> Arrays | None:
    """Returns what a folder holds: the binary version where it is there, else the Python version."""
    binary = _read_all(
        folder,
        edition.archive.file,
        edition.binary[split],
        lambda content, called: parse_binary(content, edition.label_bytes, called),
    )
    if binary is not None:
        return binary
    return _read_all(
        folder,
        edition.python_archive,
        edition.python[split],
        lambda content, called: parse_python(content, edition.python_labels, called),
    )


def _read_all(
    folder: Path, archive: str, members: tuple[str, ...], parse: Callable[[bytes, str], Arrays]
) -> Arrays | None:
    images, labels = [], []
    for member in members:
        content = read_member(folder, archive, member)
        if content is None:
            return None
        some_images, some_labels = parse(content, f"{folder / member}")
        images.append(some_images)
        labels.append(some_labels)
    return np.concatenate(images), np.concatenate(labels)
