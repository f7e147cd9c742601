"""Arrays in a NumPy archive: ``x_train``, ``y_train``, ``x_test``, ``y_test``, perhaps ``names`` and groups."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from limbeck.data.arrays import (
    ArraySource,
    array_source,
    channel_statistics,
    channels_first,
    count_classes,
    usual_augmentation,
)
from limbeck.data.source import dataset
from limbeck.errors import DataError


@dataset("npz", title="arrays x_train, y_train, x_test, y_test of an .npz file", licence="")
def npz(
    *, split: Literal["train", "test"], path: str, layout: Literal["hw", "hwc", "chw"] | None = None
) -> ArraySource:
    """Returns uint8 images of an ``.npz`` file.

    The number of classes and the statistics come from the training arrays, whichever split is asked for. Class names
    are read from ``names`` where the file has such an array of strings, and groups of samples (patients, sources) from
    ``group_train`` and ``group_test``. Nothing is unpickled.

    Args:
        split: which pair of arrays.
        path: the file.
        layout: order of rows, columns and channels, where the shape does not tell.

    Raises:
        DataError: the file is not there, is damaged, lacks an array, or holds something else than uint8 images and
            class numbers.
    """
    arrays = _read(Path(path).expanduser())
    needed = [f"{kind}_{part}" for part in ("train", split) for kind in "xy"]
    missing = [key for key in needed if key not in arrays]
    if missing:
        raise DataError(
            f"{path} has no array '{missing[0]}'; it has {sorted(arrays)}, and should have x_train, y_train, x_test, "
            "y_test"
        )
    name = Path(path).stem
    for key in needed[::2]:
        if arrays[key].dtype != np.uint8:
            raise DataError(f"'{key}' of {path} is {arrays[key].dtype}; images must be uint8 (0 to 255)")
    for key in needed[1::2]:
        if arrays[key].dtype.kind not in "iufb":
            raise DataError(f"'{key}' of {path} is {arrays[key].dtype}; labels must be class numbers 0, 1, 2, ...")
    training = channels_first(arrays["x_train"], name, layout)
    names = tuple(str(n) for n in arrays["names"]) if "names" in arrays else ()
    classes = len(names) or count_classes(torch.from_numpy(np.array(arrays["y_train"])))
    mean, std = channel_statistics(torch.from_numpy(np.ascontiguousarray(training))) if len(training) else ((), ())
    images = channels_first(arrays[f"x_{split}"], name, layout)
    if images.shape[1:] != training.shape[1:]:
        raise DataError(
            f"the images in 'x_{split}' of {path} are {_size(images)}, but those in 'x_train' are {_size(training)}; "
            "bring them to one size"
        )
    members = arrays.get(f"group_{split}")
    return array_source(
        images, arrays[f"y_{split}"], name=name, class_names=names, mean=mean, std=std, num_classes=classes,
        augment=usual_augmentation(images.shape), groups=None if members is None else {"group": members},
    )  # fmt: skip


def _size(images: np.ndarray) -> str:
    return "x".join(map(str, images.shape[1:]))


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds a single array; save x_train, y_train, x_test, y_test with numpy.savez")
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise DataError(f"there is no file {path}; give the path of an .npz file") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
