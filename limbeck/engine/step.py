"""One step: transforms, signals, terms. A module, so that DDP and FSDP see every parameter that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from limbeck.engine import distributed
from limbeck.methods.base import Method
from limbeck.signals import Batch, Signals, Terms, as_term


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

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Returns values and mask of the method's terms: plain tuples, into which DDP and FSDP look for tensors.

        A batch-coupled method sees the batch of all processes.
        """
        signals = self.method.observe(batch, self._observers)
        if self.method.batch_coupled and distributed.world_size() > 1:
            batch = distributed.gather_batch(batch, self.method.needs.batch)
            signals = distributed.gather_signals(signals)
        terms = {name: as_term(value) for name, value in self._loss[0](batch, **signals).items()}
        return {name: (term.values, term.mask) for name, term in terms.items()}

    def own_buffers(self) -> Iterable[nn.Module]:
        """The method, where its buffers differ from process to process until they are shared.

        A batch-coupled method computes the same in every process, so its buffers (memories) are not sent around.
        """
        return [] if self.method.batch_coupled else [self.method]


Transform = Callable[[Batch], Batch]


def apply_transforms(transforms: Sequence[Transform], batch: Batch) -> Batch:
    """Returns the batch after every transform, in order."""
    for transform in transforms:
        batch = transform(batch)
    return batch
