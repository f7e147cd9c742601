"""What a cache asks of the loader that feeds it, and the keys by which it knows a view of a sample again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from limbeck.data.source import Source
from limbeck.data.views import STATIC
from limbeck.signals import Batch


class ViewLoader(Protocol):
    """Batches that can be made again; :class:`limbeck.data.loader.Loader` is one."""

    @property
    def source(self) -> Source:
        """The data set."""

    @property
    def batch_size(self) -> int:
        """Samples of a batch, the last one excepted."""

    @property
    def view_seed(self) -> int:
        """Seed of the augmentation."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from ``start_step`` on."""

    def batch(self, index: np.ndarray, epoch: int) -> Batch:
        """Returns the batch of any samples."""

    def preprocessing(self, role: str | None = None, view: str | None = None) -> str:
        """Returns a hash of what makes an input of a sample without chance."""

    def augmentation_key(self, epoch: int, role: str | None = None, view: str | None = None) -> str:
        """Returns what tells the views of one sample apart."""

    def sample_keys(self, role: str | None = None, view: str | None = None) -> np.ndarray:
        """Returns what tells the samples apart, ``[N]`` uint64."""


def preprocessing_of(loader: ViewLoader, role: str, views: Sequence[str]) -> str:
    """Returns the preprocessing fingerprint of a role's inputs, and after it those of further views by name."""
    return _joined(loader.preprocessing(role), {view: loader.preprocessing(role, view) for view in views})


def augmentation_of(loader: ViewLoader, role: str, views: Sequence[str], epoch: int) -> str:
    """Returns the augmentation key of a role's inputs in an epoch, and after it those of further views by name."""
    keys = {view: loader.augmentation_key(epoch, role, view) for view in views}
    return _joined(loader.augmentation_key(epoch, role), keys)


def sample_keys_of(loader: ViewLoader, role: str, views: Sequence[str]) -> np.ndarray:
    """Returns the key of every sample ``[N]`` uint64.

    Where a view is random, it depends on the sample's number as well as its content, and so does the key.
    """
    for view in (None, *views):
        if loader.augmentation_key(0, role, view) != STATIC:
            return loader.sample_keys(role, view)
    return loader.sample_keys(role)


def _joined(default: str, further: dict[str, str]) -> str:
    return " ".join([default, *(f"{view}={key}" for view, key in further.items())])
