"""What an adapter needs to run a method as the engine does: batches, signals, a dry run, weighted sums of terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.methods import Method, Setup
from limbeck.schedules import Progress, weight_at
from limbeck.signals import Batch, Signals, Terms, as_term


def batch_of(labels: Tensor, **entries: Any) -> Batch:
    """Returns a batch of samples 0, 1, 2 ... with their labels."""
    return Batch({"index": torch.arange(len(labels)), "labels": labels, **entries})


def signals_of(features: Tensor, classes: int = 2) -> Signals:
    """Returns what a model says whose last stage and pooled features are both ``features``; its logits are zeros."""
    logits = torch.zeros(len(features), classes, dtype=features.dtype)
    return Signals(logits=logits, features={"stages": (features,), "pooled": (features,)})


def built(method: Method, signals: Mapping[str, Signals], **facts: Any) -> Method:
    """Builds a method from signals, and makes it compute in float64."""
    method.build(Setup(signals={role: s.detach() for role, s in signals.items()}, **{"models": {}, **facts}))
    return method.double()


def at_epoch(epoch: float, epochs: int = 240) -> Progress:
    """Returns the progress of a run in its ``epoch``-th epoch, counted from 1 as the golden files do."""
    return Progress(step=int(epoch) - 1, steps_per_epoch=1, epochs=epochs)


def total(method: Method, terms: Terms, only: Sequence[str] | None = None, progress: Progress | None = None) -> Tensor:
    """Returns the weighted sum of the means of terms, by default of all, after any warm-up."""
    where = progress or Progress(step=10**6, steps_per_epoch=1, epochs=10**6)
    names = list(terms) if only is None else only
    means = [as_term(terms[name]).mean() * weight_at(method.weights[name], where) for name in names]
    return torch.stack(means).sum()
