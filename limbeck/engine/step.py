"""One step: transforms, signals, terms. A module, so that DDP and FSDP see every parameter that trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from limbeck.engine import distributed
from limbeck.methods.base import Method
from limbeck.signals import Batch, Signals, Terms


class Step(nn.Module):
    """Runs the roles on a batch and the method on their signals.

    Args:
        method: the method, built.
        learners: models that are trained, by role.
        observers: for each role what gives its signals; frozen roles stay outside the module tree.
    """

    def __init__(
        self,
        method: Method,
        learners: Mapping[str, nn.Module],
        observers: Mapping[str, Callable[[Batch], Signals]],
        loss: Callable[..., Terms] | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.learners = nn.ModuleDict(dict(learners))
        self._observers = dict(observers)
        self._loss = (loss,) if loss is not None else (method,)

    def forward(self, batch: Batch) -> Terms:
        """Returns the method's terms; a batch-coupled method sees the batch of all ranks."""
        signals = self.method.observe(batch, self._observers)
        if self.method.batch_coupled and distributed.world_size() > 1:
            batch, signals = distributed.gather(batch), distributed.gather(signals)
        return self._loss[0](batch, **signals)


Transform = Callable[[Batch], Batch]


def apply_transforms(transforms: Sequence[Transform], batch: Batch) -> Batch:
    """Returns the batch after every transform, in order."""
    for transform in transforms:
        batch = transform(batch)
    return batch
