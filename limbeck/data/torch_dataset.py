"""Any map-style torch ``Dataset``, with its own random transforms made replayable."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.data.arrays import count_classes
from limbeck.data.decoded import DecodedSource
from limbeck.data.hashing import hash_tensor, with_position
from limbeck.data.images import image_tensor
from limbeck.data.source import DataInfo, Source, check_labels
from limbeck.errors import DataError

_PROBES = 8


class TorchSource(DecodedSource):
    """A torch ``Dataset`` of ``(input, label)`` pairs.

    Its transforms may draw from the global generators of PyTorch, NumPy and ``random``: these are seeded by (seed,
    epoch, sample number) around every access and put back afterwards, so a sample is the same for every number of
    workers and every order, and can be replayed.

    Args:
        dataset: has ``__len__`` and ``__getitem__``; an item is ``(input, label)`` or a mapping with
            ``image``/``inputs``/``pixel_values`` and ``label``/``labels``. Inputs are tensors, arrays or pillow images.
        name: name for errors.
        num_classes: number of classes; otherwise from ``dataset.classes`` or the labels.
        seed: seed of the transforms' randomness.
        mean: channel mean, where inputs are in [0, 1] (or uint8) and are to be normalised here.
        std: channel deviation, likewise.
        like: a data set whose classes and normalisation to take over.

    Raises:
        DataError: the data set is empty, an item is no pair, a label is out of range, or its randomness cannot be
            replayed.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        name: str = "dataset",
        num_classes: int | None = None,
        seed: int = 0,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        like: Source | None = None,
    ) -> None:
        super().__init__(DataInfo(name, 0, ()), None, _length(dataset, name))
        self._dataset = dataset
        self._seed = seed
        names = tuple(str(c) for c in getattr(dataset, "classes", None) or ())
        self.info = DataInfo(name, 0, tuple(self.decode(0, 0).shape), mean, std, names)
        if like is not None:
            self.info = replace(like.info, name=name, input_shape=self.info.input_shape)
        self.random = self._draws_numbers()
        labels = self._all_labels()
        classes = num_classes or self.info.num_classes or len(names) or count_classes(labels)
        self.info = replace(self.info, num_classes=classes)
        self._labels = None if labels is None else check_labels(labels, len(self), classes, name)

    def decode(self, number: int, epoch: int) -> Tensor:
        """Returns the input of one sample as the data set's own transforms make it in ``epoch``."""
        with self._seeded(number, epoch):
            return _as_tensor(_pair(self._dataset[number], self.called(number))[0], self.called(number))

    def hash_of(self, number: int) -> int:
        """Returns a hash of the input in epoch 0, and of the number where inputs are random."""
        content = hash_tensor(self.decode(number, 0))
        if not self.random:
            return content
        return int(with_position(np.asarray([content], np.uint64), np.asarray([number]))[0])

    @contextmanager
    def _seeded(self, number: int, epoch: int) -> Iterator[None]:
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()
        _seed_all(streams.torch_seed(self._seed, "dataset", epoch, number))
        try:
            yield
        finally:
            torch.default_generator.set_state(before[0])
            np.random.set_state(before[1])
            random.setstate(before[2])

    def _draws_numbers(self) -> bool:
        """Whether items draw random numbers; refuses items that differ although the global generators are the same."""
        drew = False
        for number in np.unique(np.linspace(0, len(self) - 1, min(len(self), _PROBES)).astype(int)).tolist():
            with self._seeded(number, 0):
                before = _positions()
                first = _as_tensor(_pair(self._dataset[number], self.called(number))[0], self.called(number))
                drew = drew or _positions() != before
            if not torch.equal(first, self.decode(number, 0)):
                raise DataError(
                    f"{self.called(number)} differs each time it is read, and not through the generators of torch, "
                    "numpy or random, so it cannot "
                    "be replayed; let its transforms use these, or augment with limbeck's views"
                )
        return drew

    def _all_labels(self) -> Tensor | None:
        """Returns all labels: from ``targets`` or ``labels`` where these agree with the items, else from every item."""
        first = self._label(0)
        if first is None:
            return None
        for attribute in ("targets", "labels"):
            known = getattr(self._dataset, attribute, None)
            if known is None or callable(known) or len(known) != len(self):
                continue
            labels = torch.as_tensor(np.asarray(known))
            if all(self._label(n) == labels[n] for n in {0, len(self) // 2, len(self) - 1}):
                return labels
        found = [self._label(n) for n in range(len(self))]
        if None in found:
            raise DataError(f"{self.called(found.index(None))} has no label, but others have one")
        return torch.tensor(found, dtype=torch.int64)

    def _label(self, number: int) -> int | None:
        with self._seeded(number, 0):
            label = _pair(self._dataset[number], self.called(number))[1]
        if label is None:
            return None
        single = isinstance(label, (Tensor, np.ndarray, np.generic)) and math.prod(label.shape) == 1
        value = label.item() if single else label
        if isinstance(value, bool) or not isinstance(value, int):
            raise DataError(
                f"the label of {self.called(number)} is {label!r}, but should be a class number 0, 1, 2, ..."
            )
        return value


def _length(dataset: Any, name: str) -> int:
    if not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"'{name}' is a {type(dataset).__name__}, which gives samples only in its own order; use a data set with "
            "__getitem__ and __len__"
        )
    try:
        return len(dataset)
    except TypeError:
        raise DataError(f"'{name}' ({type(dataset).__name__}) does not say its length; give it a __len__") from None


def _pair(item: Any, called: str) -> tuple[Any, Any]:
    """Splits an item into input and label (None where there is none)."""
    if isinstance(item, dict):
        inputs = next((item[k] for k in ("inputs", "image", "img", "pixel_values") if k in item), None)
        label = next((item[k] for k in ("labels", "label", "fine_label") if k in item), None)
    elif isinstance(item, (tuple, list)) and len(item) >= 2:
        inputs, label = item[0], item[1]
    elif isinstance(item, (tuple, list)) and len(item) == 1:
        inputs, label = item[0], None
    else:
        inputs, label = item, None
    if inputs is None:
        raise DataError(
            f"{called} has no input; an item should be (input, label) or a mapping with 'image' and 'label'"
        )
    return inputs, label


def _as_tensor(inputs: Any, called: str) -> Tensor:
    if isinstance(inputs, Tensor):
        return inputs.detach()
    if isinstance(inputs, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(inputs))
    if hasattr(inputs, "convert") and hasattr(inputs, "mode"):
        return image_tensor(inputs, mode="grey" if inputs.mode in ("1", "L", "I", "F") else "rgb")
    raise DataError(
        f"the input of {called} is a {type(inputs).__name__}, but should be a tensor, an array or a pillow image"
    )


def _seed_all(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def _positions() -> tuple[bytes, Any, Any]:
    state = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), (state[1].tobytes(), state[2]), random.getstate()  # type: ignore[index]
