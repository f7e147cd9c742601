"""A folder of images: one sub-folder a class, perhaps below ``train`` and ``test``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from limbeck.data.arrays import usual_augmentation
from limbeck.data.decoded import DecodedSource, statistics_of
from limbeck.data.hashing import hash_bytes
from limbeck.data.images import SUFFIXES, Mode, Resize, decode_image
from limbeck.data.source import DataInfo, Source, dataset
from limbeck.data.subsets import hold_out
from limbeck.errors import DataError
from limbeck.hyperparameters import Fraction

_OTHER_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val"),
}


class ImageFiles(DecodedSource):
    """Image files with class numbers, decoded when asked for.

    Args:
        files: the files, in order.
        labels: class number of each.
        info: what the data is; ``input_shape`` is what every decoded image must have.
        mode: ``rgb`` or ``grey``.
        resize: see :func:`limbeck.data.images.decode_image`.
    """

    def __init__(
        self, files: Sequence[Path], labels: Sequence[int], info: DataInfo, *, mode: Mode, resize: Resize
    ) -> None:
        super().__init__(info, torch.tensor(list(labels), dtype=torch.int64), len(files))
        self._files = tuple(files)
        self._mode: Mode = mode
        self._resize = resize

    def decode(self, number: int, epoch: int) -> Tensor:
        """Returns the image as uint8 ``[C, H, W]``."""
        return decode_image(self._files[number], str(self._files[number]), mode=self._mode, resize=self._resize)

    def hash_of(self, number: int) -> int:
        """Returns a hash of the file's bytes and of how they are decoded."""
        try:
            content = self._files[number].read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the image {self._files[number]}: {error}") from error
        return hash_bytes(content, f"{self._mode}/{self._resize}")

    def called(self, number: int) -> str:
        """Returns the file's name."""
        return f"the image {self._files[number]}"


@dataset("folder", title="images in one folder a class", licence="", validation=True)
def folder(
    *,
    split: Literal["train", "test", "validation"],
    path: str,
    resize: int | tuple[int, int] | None = None,
    mode: Mode = "rgb",
    test: Fraction = 0.0,
) -> Source:
    """Returns the images of a folder: ``path/train/CLASS/...`` and ``path/test/CLASS/...``, or ``path/CLASS/...``.

    Class numbers follow the sorted names of the training folder's sub-folders. Mean and deviation come from 500
    training images.

    Args:
        split: ``train``, ``test``, or ``validation`` where there is such a folder.
        path: the folder.
        resize: a number scales the shorter side and cuts the middle square; two numbers ``[height, width]`` scale to
            exactly that.
        mode: ``rgb`` or ``grey``.
        test: where there is no folder ``test``: the part of each class that is the test split, chosen by content.

    Raises:
        DataError: the folder, the split, or images are missing; sizes differ; an image cannot be read (names the file).
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; give the folder that holds one sub-folder of images a class")
    training = _below(root, "train") or root
    separate_test = _below(root, "test")
    if test and separate_test is not None:
        raise DataError(
            f"{root} has the folder {separate_test.name}, so the option `test: {test}` would be ignored; remove one "
            "of them"
        )
    whole = _scan(training, _class_names(training), resize, mode, root.name)
    whole.info = _with_statistics(whole)
    separate = None if split == "train" else _below(root, split)
    if separate is not None:
        return _scan(separate, whole.info.class_names, resize, mode, root.name, whole.info)
    if split == "validation":
        raise DataError(
            f"{root} has no folder 'validation'; make one, or hold out a part of the training data with `validation: "
            "0.1`"
        )
    if test:
        return hold_out(whole, test, "held" if split == "test" else "rest", purpose="folder/test")
    if split == "train":
        return whole
    raise DataError(f"{root} has no folder 'test'; make one, or set the option `test: 0.2` to use a part of each class")


def _below(root: Path, split: str) -> Path | None:
    return next((root / n for n in _OTHER_NAMES[split] if (root / n).is_dir()), None)


def _class_names(root: Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not names:
        raise DataError(f"{root} has no sub-folders; put the images of each class into a folder of its own")
    return names


def _scan(
    root: Path, class_names: tuple[str, ...], resize: Resize, mode: Mode, name: str, info: DataInfo | None = None
) -> ImageFiles:
    unknown = set(_class_names(root)) - set(class_names)
    if unknown:
        raise DataError(f"{root} has the classes {sorted(unknown)[:5]}, which the training folder lacks")
    files: list[Path] = []
    labels: list[int] = []
    for number, class_name in enumerate(class_names):
        found = sorted(p for p in (root / class_name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        files += found
        labels += [number] * len(found)
    if not files:
        raise DataError(f"the folder {root} holds no images ({', '.join(sorted(SUFFIXES))})")
    if info is None:
        shape = tuple(decode_image(files[0], str(files[0]), mode=mode, resize=resize).shape)
        info = DataInfo(name, len(class_names), shape, class_names=class_names)
    return ImageFiles(files, labels, info, mode=mode, resize=resize)


def _with_statistics(source: ImageFiles) -> DataInfo:
    mean, std = statistics_of(source)
    return replace(source.info, mean=mean, std=std, augment=usual_augmentation(source.info.input_shape))
