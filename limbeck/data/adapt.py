"""Data that comes as Python objects: tensors, arrays, torch and Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.arrays import ArraySource, channels_first, count_classes
from limbeck.data.huggingface import HuggingFaceImages
from limbeck.data.load import Split, load_data
from limbeck.data.source import DataInfo, Source
from limbeck.data.torch_dataset import TorchSource
from limbeck.errors import DataError


def as_source(
    data: Any,
    *,
    name: str = "data",
    num_classes: int | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    seed: int = 0,
    like: Source | None = None,
    split: Split = "train",
) -> Source:
    """Returns ``data`` as a :class:`Source`.

    Args:
        data: a name or mapping as for :func:`~limbeck.data.load.load_data`; a :class:`Source`; a pair ``(inputs,
            labels)`` of tensors or NumPy arrays; a ``TensorDataset`` of two tensors; a ``datasets.Dataset``; or any
            map-style torch ``Dataset``. Images are ``[N, C, H, W]`` tensors, or arrays with channels first or last.
        name: name for errors and reports.
        num_classes: number of classes; told from the labels when None.
        mean: channel mean of inputs in [0, 1] (or uint8), where they are to be normalised; empty uses inputs as they
            are (uint8 as 0 to 1).
        std: channel deviation, likewise.
        seed: seed of a torch ``Dataset``'s own random transforms.
        like: a data set whose classes and normalisation to take over: the training data, when ``data`` is the test
            data.
        split: which split of a named data set.

    Returns:
        The source; no copy is made of tensors that are contiguous.

    Raises:
        DataError: ``data`` is none of these, is empty, or its labels do not fit.

    Example:
        >>> source = as_source((torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])))
        >>> len(source), source.info.num_classes, source.info.input_shape
        (4, 3, (3, 8, 8))
    """
    if len(mean) != len(std):
        raise DataError(f"mean has {len(mean)} entries and std {len(std)}; give one of each a channel, or neither")
    if isinstance(data, (str, Mapping)):
        return load_data(data, split=split)
    if isinstance(data, Source):
        return data
    from torch.utils.data import TensorDataset

    if isinstance(data, TensorDataset) and len(data.tensors) <= 2:
        data = tuple(data.tensors)
    if isinstance(data, (tuple, list)) and 1 <= len(data) <= 2 and isinstance(data[0], (Tensor, np.ndarray)):
        return _pair_source(*data, name=name, num_classes=num_classes, mean=mean, std=std, like=like)
    if hasattr(data, "cast_column") and hasattr(data, "features"):
        found = HuggingFaceImages(data, name=name, like=like)
        found.info = replace(found.info, mean=mean or found.info.mean, std=std or found.info.std)
        return found
    if hasattr(data, "__len__") or hasattr(data, "__getitem__") or hasattr(data, "__iter__"):
        return TorchSource(data, name=name, num_classes=num_classes, seed=seed, mean=mean, std=std, like=like)
    raise DataError(
        f"cannot use a {type(data).__name__} as a data set; give (inputs, labels), a torch Dataset or a "
        "datasets.Dataset"
    )


def _pair_source(
    inputs: Any,
    labels: Any = None,
    *,
    name: str,
    num_classes: int | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    like: Source | None,
) -> ArraySource:
    if isinstance(inputs, np.ndarray):
        if inputs.ndim in (3, 4):
            inputs = channels_first(inputs, name)
        inputs = torch.from_numpy(np.ascontiguousarray(inputs))
    if len(inputs) == 0:
        raise DataError(f"the data set '{name}' is empty")
    targets = None if labels is None else torch.as_tensor(labels)
    shape = tuple(inputs.shape[1:])
    if like is not None:
        info = replace(like.info, name=name, input_shape=shape)
    else:
        info = DataInfo(name, num_classes or count_classes(targets), shape, tuple(mean), tuple(std))
    return ArraySource(inputs, targets, info)
