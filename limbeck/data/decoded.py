"""Data sets whose samples are decoded when asked for: what those of every kind share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.data.arrays import channel_statistics
from limbeck.data.hashing import source_fingerprint
from limbeck.data.source import DataInfo
from limbeck.errors import DataError

_STATISTICS_FROM = 500


class DecodedSource:
    """Base of sources that decode samples one by one.

    A subclass says how to :meth:`decode` a sample, how to :meth:`hash_of` it without decoding where possible, and what
    to call it in errors.

    Args:
        info: what the data is.
        labels: ``[N]`` class numbers, or None.
        count: number of samples.

    Raises:
        DataError: there is no sample.
    """

    in_memory = False
    random = False

    def __init__(self, info: DataInfo, labels: Tensor | None, count: int) -> None:
        if count == 0:
            raise DataError(f"the data set '{info.name}' is empty")
        self.info = info
        self._labels = labels
        self._count = count
        self._hashes: np.ndarray | None = None

    def decode(self, number: int, epoch: int) -> Tensor:
        """Returns the input of one sample."""
        raise TypeError(f"{type(self).__name__} does not define decode(number, epoch)")

    def hash_of(self, number: int) -> int:
        """Returns the 64-bit content hash of one sample."""
        raise TypeError(f"{type(self).__name__} does not define hash_of(number)")

    def called(self, number: int) -> str:
        """Returns what to call a sample in an error."""
        return f"sample {number} of '{self.info.name}'"

    def __len__(self) -> int:
        return self._count

    def fetch(self, index: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """Returns ``inputs`` and, where there are any, ``labels`` of samples ``index``.

        Raises:
            DataError: a sample cannot be decoded, or has another size than the others; names it.
        """
        numbers = [int(i) for i in index]
        found = {"inputs": self._stack([self.decode(n, epoch) for n in numbers], numbers)}
        labels = self.labels()
        if labels is not None:
            found["labels"] = labels[torch.from_numpy(np.asarray(index, dtype=np.int64))]
        return found

    def _stack(self, samples: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
        for sample, number in zip(samples, numbers):
            if tuple(sample.shape) != self.info.input_shape:
                raise DataError(
                    f"{self.called(number)} has shape {tuple(sample.shape)}, but the data set's is "
                    f"{self.info.input_shape}; "
                    "set `resize` of the data set, or make all samples one size"
                )
        return torch.stack(list(samples)) if samples else torch.zeros(0, *self.info.input_shape, dtype=torch.uint8)

    def labels(self) -> Tensor | None:
        """Label of every sample."""
        return self._labels

    def content_hashes(self) -> np.ndarray:
        """A 64-bit hash of every sample, computed at the first call."""
        if self._hashes is None:
            self._hashes = np.fromiter((self.hash_of(i) for i in range(len(self))), dtype=np.uint64, count=len(self))
        return self._hashes

    def fingerprint(self) -> str:
        """A hash of the whole data set."""
        return source_fingerprint(self.content_hashes(), self.labels())


def statistics_of(source: DecodedSource) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns channel mean and deviation of at most 500 evenly spaced samples."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(len(source), _STATISTICS_FROM)).astype(np.int64))
    return channel_statistics(source.fetch(chosen, 0)["inputs"])
