"""Means over the training data, class by class: what a method's ``prepare`` gathers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from limbeck.errors import NeedsError
from limbeck.functional.classification import class_indices
from limbeck.signals import Batch, Signals

Passes = Iterator[tuple[Batch, dict[str, Signals]]]


def class_means(passes: Passes, value: Callable[[dict[str, Signals]], Tensor], num_classes: int) -> Tensor:
    """Returns the mean ``[C, D]`` of a value of each sample over the samples of each class.

    Sums are taken in float64; classes without samples get zeros.

    Args:
        passes: batches with their signals.
        value: what to average, ``[B, D]``, from the signals by role.
        num_classes: number of classes ``C``.

    Raises:
        NeedsError: there is no batch.
    """
    sums: Tensor | None = None
    counts = torch.zeros(num_classes, dtype=torch.float64)
    for batch, signals in passes:
        rows = value(signals).detach()
        labels = class_indices(batch["labels"])
        if sums is None:
            sums = torch.zeros(num_classes, rows.shape[1], dtype=torch.float64, device=rows.device)
            counts = counts.to(rows.device)
        sums.index_add_(0, labels, rows.double())
        counts.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64, device=rows.device))
    if sums is None:
        raise NeedsError("class means need training data, but it gives no batch")
    return sums / counts.clamp(min=1).unsqueeze(1)
