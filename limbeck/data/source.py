"""The contract of a data set: samples by number, with what a model needs to know of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class DataInfo:
    """What a recipe needs to know of a data set.

    Attributes:
        name: the name it was asked for.
        num_classes: number of classes.
        input_shape: ``(C, H, W)`` of an image, or the shape of a feature vector.
        mean: per-channel mean of inputs scaled to [0, 1], for normalisation.
        std: per-channel standard deviation, likewise.
        class_names: name of each class, where known.
        augment: the augmentation that the literature uses on it, as recipe entries.
        licence: licence and origin.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    augment: tuple[dict[str, Any], ...] = field(default=())
    licence: str = ""


@runtime_checkable
class Source(Protocol):
    """A data set that gives samples by number, unaugmented and unnormalised."""

    info: DataInfo

    def __len__(self) -> int:
        """Number of samples."""

    def fetch(self, index: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """Returns ``inputs`` (images as uint8 ``[n, C, H, W]`` or float in [0, 1]) and ``labels`` of samples ``index``.

        ``epoch`` matters only to sources that augment by themselves, and then fixes their randomness together with the index.
        """

    def labels(self) -> Tensor | None:
        """Label of every sample ``[N]``, or None where there are none."""

    def content_hashes(self) -> np.ndarray:
        """A 64-bit hash of every sample's content ``[N]`` uint64."""

    def fingerprint(self) -> str:
        """A hash of the whole data set: its content, labels and order."""
