"""The contract of a task."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn

from limbeck.registry import Registry
from limbeck.signals import Batch, Signals


@runtime_checkable
class Task(Protocol):
    """How a model is run on inputs and what of its output is a signal."""

    def run(self, model: nn.Module, inputs: Any, wanted: frozenset[str] = frozenset()) -> Signals:
        """Runs ``model`` and returns its signals, taps excepted.

        Args:
            model: the model.
            inputs: what it sees.
            wanted: names of the signals that will be read; a task may leave out what is costly and not among them.
        """

    def check(self, batch: Batch, num_classes: int | None) -> None:
        """Refuses a batch that the task cannot use, saying which sample and why."""


tasks: Registry[type[Task]] = Registry("task", "limbeck.tasks")
