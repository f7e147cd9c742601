"""The contract of a data set: samples by number, with what a model needs to know of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import DataError
from limbeck.hyperparameters import validated
from limbeck.registry import Registry
from limbeck.signals import UNLABELLED


@dataclass(frozen=True)
class DataInfo:
    """What a recipe needs to know of a data set.

    Attributes:
        name: the name it was asked for.
        num_classes: number of classes; 0 where the data has no labels.
        input_shape: ``(C, H, W)`` of an image, or the shape of a feature vector.
        mean: per-channel mean of inputs scaled to [0, 1], for normalisation; empty where inputs are to be used as they
            are.
        std: per-channel standard deviation, likewise.
        class_names: name of each class, where known.
        augment: the augmentation that the literature uses on it, as recipe entries.
        licence: licence and origin.
        part_of: name of the data set that this one is an extract of, whose weights in the zoo serve it too.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    augment: tuple[dict[str, Any], ...] = field(default=())
    licence: str = ""
    part_of: str = ""


@runtime_checkable
class Source(Protocol):
    """A data set that gives samples by number, unaugmented and unnormalised.

    Attributes:
        info: what a recipe needs to know of it.
        in_memory: whether :meth:`fetch` only gathers, so that worker processes cannot make it faster.
        random: whether the data set augments by itself, so that :meth:`fetch` depends on the epoch.
    """

    info: DataInfo
    in_memory: bool
    random: bool

    def __len__(self) -> int:
        """Number of samples."""

    def fetch(self, index: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """Returns ``inputs`` (images as uint8 ``[n, C, H, W]`` or float in [0, 1]) and ``labels`` of samples ``index``.

        ``epoch`` matters only to sources that augment by themselves, and then fixes their randomness together with the
        index.
        """

    def labels(self) -> Tensor | None:
        """Label of every sample ``[N]``, ``UNLABELLED`` where it is not known; None where there are none at all."""

    def content_hashes(self) -> np.ndarray:
        """A 64-bit hash of every sample's content ``[N]`` uint64.

        Equal samples have equal hashes; what tells apart their augmented views is
        :meth:`limbeck.data.loader.Loader.sample_keys`.
        """

    def fingerprint(self) -> str:
        """A hash of the whole data set: its content, labels and order."""


def groups_of(source: Source) -> Mapping[str, np.ndarray]:
    """Returns what is known of every sample beside its class, ``[N]`` names or numbers by what they are.

    A patient, a speaker, a noise level: what a sample shares with others and what a model should not be worse for. A
    source that knows of such has an attribute ``groups``.
    """
    found: Mapping[str, np.ndarray] = getattr(source, "groups", {})
    return found


datasets: Registry[Callable[..., Source]] = Registry("data set", "limbeck.data")


def dataset(name: str, **about: Any) -> Callable[[Callable[..., Source]], Callable[..., Source]]:
    """Returns a decorator that registers a function ``(*, split, **options) -> Source``, its options checked.

    Args:
        name: name in recipes.
        about: facts for listings: ``title``, ``licence``; ``validation=True`` where the function knows a split of that
            name.
    """
    enter = datasets.register(name, **about)

    def decorate(function: Callable[..., Source]) -> Callable[..., Source]:
        return enter(validated(f"data set '{name}'", function))

    return decorate


def check_labels(labels: Tensor, count: int, num_classes: int, name: str) -> Tensor:
    """Returns ``labels`` as int64 ``[count]``.

    Raises:
        DataError: their number or type is wrong, or one lies outside ``[0, num_classes)``; names the first samples
            that do.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(
            f"the labels of '{name}' are {str(labels.dtype).removeprefix('torch.')}, but should be class numbers 0, "
            "1, 2, ..."
        )
    if tuple(labels.shape) != (count,):
        raise DataError(
            f"'{name}' has {count} samples, but its labels have shape {tuple(labels.shape)}; give one class number a "
            "sample"
        )
    labels = labels.to(torch.int64)
    wrong = (((labels < 0) | (labels >= num_classes)) & (labels != UNLABELLED)).nonzero()[:, 0]
    if len(wrong):
        where, what = wrong[:5].tolist(), sorted(set(labels[wrong[:1000]].tolist()))[:5]
        raise DataError(
            f"labels {what} of '{name}' (samples {where}) are outside 0..{num_classes - 1}, its {num_classes} classes"
        )
    return labels
