"""Samples that are kept out of training, on which a method judges the student while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from limbeck.errors import NeedsError
from limbeck.methods.base import Method
from limbeck.modes import evaluation_mode
from limbeck.signals import Batch, Signals


class _Loader(Protocol):
    @property
    def steps_per_epoch(self) -> int: ...

    def epoch(self, epoch: int, start_step: int = 0) -> Any: ...


class HoldOut:
    """Held-out batches: one beside every training batch, or all of them in a pass.

    Args:
        loader: batches of samples that are not trained on.
    """

    def __init__(self, loader: _Loader) -> None:
        self._loader = loader

    def beside(self, batch: Batch, step: int) -> Batch:
        """Returns a training batch with the held-out batch of its step as ``holdout``: a function of the step alone."""
        epoch, number = divmod(step, self._loader.steps_per_epoch)
        return Batch({**batch, "holdout": next(iter(self._loader.epoch(epoch, number)))})

    def observed(
        self, observers: Mapping[str, Callable[[Batch], Signals]], learners: tuple[str, ...]
    ) -> Iterator[tuple[Batch, dict[str, Signals]]]:
        """Yields every held-out batch with what the learners say of it, in eval mode and without gradients."""
        for batch in self._loader.epoch(0):
            with evaluation_mode(*(getattr(observers[role], "model", None) for role in learners)):
                yield batch, {role: observers[role](batch).detach() for role in learners}


def holdout_for(method: Method, loader: _Loader | None) -> HoldOut | None:
    """Returns the held-out data of a method; None where it needs none.

    Raises:
        NeedsError: the method needs held-out data and there is none.
    """
    if method.needs.holdout is None:
        return None
    if loader is None:
        raise NeedsError(
            f"{method.called} judges the student on samples that it is not trained on while it trains; keep "
            "some out, `data: {holdout: 0.1}`"
        )
    return HoldOut(loader)
