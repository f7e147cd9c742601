"""Training data that is chosen anew before every epoch, from what student and teacher say of the whole pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import streams
from limbeck.data.loader import Loader
from limbeck.errors import NeedsError
from limbeck.modes import evaluation_mode
from limbeck.selection.base import PoolSignals, Selector
from limbeck.signals import Batch, Signals

if TYPE_CHECKING:
    from limbeck.tasks.base import Task

Observe = Callable[[Batch], Signals]


class SelectedLoader:
    """Batches of the samples that a selector chooses before every epoch.

    An epoch has as many steps as one over the whole pool; the chosen samples are gone through again and again, each
    time in a new order, until it is over. At least one batch of samples is chosen, those wanted most if need be.
    Until a stage starts, when there is no trained student yet, batches are those of the whole pool.

    Args:
        loader: gives batches of the pool.
        plain: gives the pool in its own order, without augmentation.
        selector: chooses as many as it finds.
        task: how the student is run.
        epochs: epochs of the stage.
        seed: seed of the order.
    """

    def __init__(
        self, loader: Loader, plain: Loader, selector: Selector, task: Task, *, epochs: int, seed: int
    ) -> None:
        self._loader, self._plain, self._selector, self._task = loader, plain, selector, task
        self._epochs, self._seed = epochs, seed
        self._student: Callable[[], nn.Module] | None = None
        self._teacher: Observe | None = None
        self._epoch, self.chosen = -1, torch.zeros(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches an epoch."""
        return self._loader.steps_per_epoch

    def start(self, student: Callable[[], nn.Module], observers: Mapping[str, Observe]) -> None:
        """Takes what gives the deployable student as it is and each role's signals; a stage calls it when it begins.

        Raises:
            NeedsError: the method has no teacher.
        """
        if "teacher" not in observers:
            raise NeedsError("selection asks student and teacher, but the method has no role 'teacher'")
        self._student, self._teacher = student, observers["teacher"]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from ``start_step`` on: this process's part of each."""
        if self._student is None:
            yield from self._loader.epoch(epoch, start_step)
            return
        if epoch != self._epoch:
            self._choose(epoch)
        yield from self._loader.in_order(self._order(epoch), epoch, start_step)

    def _order(self, epoch: int) -> np.ndarray:
        chosen, size = self.chosen.numpy(), len(self._loader.source)
        rounds = -(-size // len(chosen))
        orders = [streams.permutation(self._seed, f"selected/{n}", epoch, len(chosen)) for n in range(rounds)]
        return chosen[np.concatenate(orders)][:size]

    def _choose(self, epoch: int) -> None:
        assert self._student is not None
        assert self._teacher is not None
        student = self._student()
        said: tuple[list[Tensor], list[Tensor]] = [], []
        with evaluation_mode(student):
            for batch in self._plain.epoch(0):
                place = next(student.parameters()).device
                for logits, signals in zip(
                    said, (self._task.run(student, batch.to(place)["inputs"]), self._teacher(batch.to(place)))
                ):
                    assert signals.logits is not None
                    logits.append(signals.logits.float().cpu())
        pool = PoolSignals(
            logits=torch.cat(said[0]), teacher_logits=torch.cat(said[1]), fraction=epoch / max(self._epochs, 1)
        )
        choice = self._selector(pool)
        flags, least = choice.chosen, min(self._loader.batch_size, len(choice.chosen))
        if int(flags.sum()) < least:
            order = choice.scores.argsort(descending=True, stable=True)[:least]
            flags = torch.zeros_like(flags).index_fill(0, order, True)
        self._epoch, self.chosen = epoch, flags.nonzero().squeeze(1)

    def state_dict(self) -> dict[str, Any]:
        """Returns what the running epoch shows: its student is gone when a run resumes in its middle."""
        return {"epoch": self._epoch, "chosen": self.chosen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self._epoch, self.chosen = int(state["epoch"]), state["chosen"]
