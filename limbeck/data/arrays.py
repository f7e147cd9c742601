"""A data set that lies in memory as one tensor, and what can be computed from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.hashing import hash_rows, source_fingerprint
from limbeck.data.source import DataInfo, check_labels
from limbeck.errors import DataError

_CHANNELS = (1, 3, 4)


class ArraySource:
    """Samples in one tensor.

    Args:
        inputs: ``[N, ...]``; images as uint8 ``[N, C, H, W]``.
        labels: ``[N]`` class numbers, or None.
        info: what the data is.
        hashes: content hashes ``[N]``, where they are known already and are not those of ``inputs``.
        groups: see :func:`limbeck.data.source.groups_of`.

    Raises:
        DataError: there is no sample, or labels, groups or shapes do not fit ``info``.
    """

    in_memory = True
    random = False

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor | None,
        info: DataInfo,
        *,
        hashes: np.ndarray | None = None,
        groups: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if len(inputs) == 0:
            raise DataError(f"the data set '{info.name}' is empty")
        if tuple(inputs.shape[1:]) != info.input_shape:
            raise DataError(
                f"the samples of '{info.name}' have shape {tuple(inputs.shape[1:])}, not {info.input_shape}"
            )
        self.info = info
        self._inputs = inputs.contiguous()
        self._labels = None if labels is None else check_labels(labels, len(inputs), info.num_classes, info.name)
        self.groups = dict(groups or {})
        for name, members in self.groups.items():
            if len(members) != len(inputs):
                raise DataError(f"'{info.name}' has {len(inputs)} samples, but tells the {name} of {len(members)}")
        self._hashes = hashes
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._inputs)

    def fetch(self, index: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """Returns ``inputs`` and, where there are any, ``labels`` of samples ``index``; the same in every epoch."""
        rows = torch.from_numpy(np.asarray(index, dtype=np.int64))
        found = {"inputs": self._inputs.index_select(0, rows)}
        if self._labels is not None:
            found["labels"] = self._labels.index_select(0, rows)
        return found

    def labels(self) -> Tensor | None:
        """Label of every sample."""
        return self._labels

    def content_hashes(self) -> np.ndarray:
        """A 64-bit hash of every sample, computed at the first call."""
        if self._hashes is None:
            self._hashes = hash_rows(self._inputs)
        return self._hashes

    def fingerprint(self) -> str:
        """A hash of the whole data set."""
        if self._fingerprint is None:
            self._fingerprint = source_fingerprint(self.content_hashes(), self._labels)
        return self._fingerprint


def channels_first(images: np.ndarray, name: str, layout: str | None = None) -> np.ndarray:
    """Returns images as ``[N, C, H, W]``.

    Args:
        images: ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]``.
        name: name of the data set, for errors.
        layout: ``hw``, ``hwc`` or ``chw``; told by where the 1, 3 or 4 channels are when None.

    Raises:
        DataError: the layout does not fit the shape, or cannot be told from it.
    """
    if layout is None:
        if images.ndim == 3:
            layout = "hw"
        elif images.ndim == 4:
            fits = [candidate for candidate, axis in (("chw", 1), ("hwc", 3)) if images.shape[axis] in _CHANNELS]
            layout = fits[0] if len(fits) == 1 else None
    if layout is None or images.ndim != len(layout) + 1:
        raise DataError(
            f"cannot tell rows, columns and channels of '{name}' from its shape {images.shape}; "
            "give arrays [N, H, W], [N, H, W, C] or [N, C, H, W], and set layout to hw, hwc or chw"
        )
    if layout == "hw":
        return images[:, None]
    return images.transpose(0, 3, 1, 2) if layout == "hwc" else images


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel of ``[N, C, H, W]`` images scaled to [0, 1], to six digits.

    Bytes are counted, not summed, so the result is exact and does not depend on the order of samples.
    """
    means, deviations = [], []
    for channel in range(images.shape[1]):
        values = images[:, channel].reshape(-1)
        if images.dtype == torch.uint8:
            counts = torch.bincount(values.to(torch.int32), minlength=256).double()
            levels = torch.arange(256, dtype=torch.float64) / 255
            mean = float((counts * levels).sum() / counts.sum())
            variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        else:
            mean = float(values.double().mean())
            variance = float(values.double().var(correction=0))
        means.append(round(mean, 6))
        # A constant channel carries nothing; dividing it by 1 keeps it finite.
        deviations.append(round(variance**0.5, 6) or 1.0)
    return tuple(means), tuple(deviations)


def array_source(
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    name: str,
    class_names: Sequence[str] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: Sequence[dict[str, Any]] = (),
    licence: str = "",
    num_classes: int | None = None,
    part_of: str = "",
    groups: Mapping[str, np.ndarray] | None = None,
) -> ArraySource:
    """Returns a source of uint8 images ``[N, C, H, W]``; mean and deviation are computed where they are not given.

    Raises:
        DataError: the data set is empty, or the labels do not fit.
    """
    if len(images) == 0:
        raise DataError(f"the data set '{name}' is empty")
    inputs = torch.from_numpy(np.array(images, dtype=images.dtype, order="C"))
    targets = None if labels is None else torch.from_numpy(np.array(labels))
    classes = num_classes or len(class_names) or count_classes(targets)
    if mean is None or std is None:
        mean, std = channel_statistics(inputs)
    shape = tuple(inputs.shape[1:])
    info = DataInfo(name, classes, shape, tuple(mean), tuple(std), tuple(class_names), tuple(augment), licence, part_of)
    return ArraySource(inputs, targets, info, groups=groups)


def count_classes(labels: Tensor | None) -> int:
    """Returns one more than the largest label, or 0 where there are no labels."""
    if labels is None or labels.numel() == 0 or labels.is_floating_point():
        return 0
    return int(labels.max()) + 1


def usual_augmentation(shape: Sequence[int]) -> tuple[dict[str, Any], ...]:
    """Returns crop and flip for images ``[..., H, W]`` of natural scenes, the crop padded by an eighth of the width."""
    return ({"name": "crop", "padding": max(1, shape[-1] // 8)}, {"name": "flip"})
