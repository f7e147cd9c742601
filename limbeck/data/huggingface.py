"""Hugging Face data sets: a ``datasets.Dataset`` object, a folder on disk, or a name on the hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.data.arrays import count_classes, usual_augmentation
from limbeck.data.decoded import DecodedSource, statistics_of
from limbeck.data.hashing import hash_bytes
from limbeck.data.images import Mode, Resize, decode_image
from limbeck.data.source import DataInfo, Source, check_labels, dataset
from limbeck.errors import DataError, MissingExtraError, suggest


class HuggingFaceImages(DecodedSource):
    """The image and label columns of a ``datasets.Dataset``.

    Images are kept encoded and decoded when asked for.

    Args:
        rows: the data set.
        name: name for errors.
        image: column of images; the only one of that type when None.
        label: column of class numbers; the only ``ClassLabel``, or integer column named ``label`` or ``labels``, when
            None.
        mode: ``rgb`` or ``grey``.
        resize: see :func:`limbeck.data.images.decode_image`.
        like: a data set whose classes and statistics to take over, for example the training split.

    Raises:
        DataError: a column is missing or ambiguous, a label is out of range, or the data set is empty.
    """

    def __init__(
        self,
        rows: Any,
        *,
        name: str = "huggingface",
        image: str | None = None,
        label: str | None = None,
        mode: Mode = "rgb",
        resize: Resize = None,
        like: Source | None = None,
    ) -> None:
        import datasets

        if len(rows) == 0:
            raise DataError(f"the data set '{name}' is empty")
        image = _column(rows.features, image, "image", name, lambda f: isinstance(f, datasets.Image))
        label = _label_column(rows.features, label, name)
        self._mode: Mode = mode
        self._resize = resize
        self._image = image
        self._name = name
        self._rows = rows.cast_column(image, datasets.Image(decode=False))
        labels = torch.from_numpy(np.array(rows.with_format("numpy")[label][:]))
        names = tuple(getattr(rows.features[label], "names", None) or ())
        classes = like.info.num_classes if like is not None else len(names) or count_classes(labels)
        labels = check_labels(labels, len(rows), classes, name)
        super().__init__(DataInfo(name, classes, tuple(self.decode(0, 0).shape), class_names=names), labels, len(rows))
        self.info = replace(like.info, name=name) if like is not None else self._described()

    def _described(self) -> DataInfo:
        mean, std = statistics_of(self)
        return replace(self.info, mean=mean, std=std, augment=usual_augmentation(self.info.input_shape))

    def _encoded(self, number: int) -> bytes | Path:
        cell = self._rows[number][self._image]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise DataError(f"{self.called(number)} has no image")
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])

    def decode(self, number: int, epoch: int) -> Tensor:
        """Returns the image as uint8 ``[C, H, W]``."""
        return decode_image(self._encoded(number), self.called(number), mode=self._mode, resize=self._resize)

    def hash_of(self, number: int) -> int:
        """Returns a hash of the encoded image and of how it is decoded."""
        encoded = self._encoded(number)
        content = encoded if isinstance(encoded, bytes) else encoded.read_bytes()
        return hash_bytes(content, f"{self._mode}/{self._resize}")

    def called(self, number: int) -> str:
        """Returns the row's number and the data set's name."""
        return f"row {number} of '{self._name}'"


def _column(features: Mapping[str, Any], chosen: str | None, kind: str, name: str, fits: Any) -> str:
    if chosen is not None:
        if chosen not in features:
            raise DataError(f"'{name}' has no column '{chosen}'. {suggest(chosen, features)}")
        if not fits(features[chosen]):
            raise DataError(f"the column '{chosen}' of '{name}' holds {features[chosen]}, no {kind}s")
        return chosen
    found = [column for column, feature in features.items() if fits(feature)]
    if len(found) != 1:
        said = f"{len(found)} columns ({', '.join(found)})" if found else "no column"
        raise DataError(
            f"'{name}' has {said} of {kind}s among {sorted(features)}; name the one to use with the option `{kind}`"
        )
    return found[0]


def _label_column(features: Mapping[str, Any], chosen: str | None, name: str) -> str:
    import datasets

    def whole_number(feature: Any) -> bool:
        return isinstance(feature, datasets.ClassLabel) or (
            isinstance(feature, datasets.Value) and "int" in feature.dtype
        )

    if chosen is None and not any(isinstance(f, datasets.ClassLabel) for f in features.values()):
        chosen = next((n for n in ("label", "labels") if n in features), None)
    if chosen is not None:
        return _column(features, chosen, "label", name, whole_number)
    return _column(features, None, "label", name, lambda f: isinstance(f, datasets.ClassLabel))


@dataset("hf", title="a Hugging Face data set: folder on disk or hub name (hf:NAME)", licence="", validation=True)
def huggingface(
    *,
    split: Literal["train", "test", "validation"],
    path: str,
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
    mode: Mode = "rgb",
    resize: int | tuple[int, int] | None = None,
    splits: dict[str, str] | None = None,
    download: bool = True,
) -> HuggingFaceImages:
    """Returns the images of a Hugging Face data set; classes and statistics are those of its training split.

    Args:
        split: ``train``, ``test`` or ``validation``.
        path: a folder written by ``save_to_disk``, a folder of data files, or a name on the hub.
        config: name of the configuration, where there are several.
        image: column of images, where there are several.
        label: column of labels, where it is not plain.
        mode: ``rgb`` or ``grey``.
        resize: see :func:`limbeck.data.images.decode_image`.
        splits: what this data set calls a split, for example ``{test: valid}``.
        download: whether the hub may be asked; its cache is used in any case.

    Raises:
        MissingExtraError: the package ``datasets`` is not installed.
        DataError: the data set, split or column is not there.
    """
    if importlib.util.find_spec("datasets") is None:
        raise MissingExtraError("datasets", "hf", "Hugging Face data sets")
    wanted = {"train": "train", "test": "test", "validation": "validation", **(splits or {})}
    parts = {part: _load_split(path, config, wanted[part], download) for part in {"train", split}}
    options: dict[str, Any] = {"name": path, "image": image, "label": label, "mode": mode, "resize": resize}
    training = HuggingFaceImages(parts["train"], **options)
    return training if split == "train" else HuggingFaceImages(parts[split], **options, like=training)


def _load_split(path: str, config: str | None, split: str, download: bool) -> Any:
    import datasets

    place = Path(path).expanduser()
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            loaded = datasets.load_from_disk(str(place))
        else:
            access = datasets.DownloadConfig(local_files_only=not download)
            loaded = datasets.load_dataset(str(place) if place.exists() else path, config, download_config=access)
    except Exception as error:  # The hub's client raises errors of many libraries.
        raise DataError(
            f"cannot load the Hugging Face data set '{path}': {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    if not isinstance(loaded, Mapping):
        if split != "train":
            raise DataError(f"'{path}' is a single split; save a DatasetDict with the splits 'train' and '{split}'")
        return loaded
    if split not in loaded:
        raise DataError(
            f"'{path}' has no split '{split}', only {sorted(loaded)}; say which to use, for example `splits: "
            f"{{test: {sorted(loaded)[0]}}}`"
        )
    return loaded[split]
