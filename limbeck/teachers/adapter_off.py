"""A learner without its adapters, as a provider: its own initial model, at no cost of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from limbeck.errors import NeedsError, TeacherChangedError
from limbeck.modes import evaluation_mode
from limbeck.signals import Batch, Signals
from limbeck.tasks.base import Task
from limbeck.teachers.fingerprint import tensor_digests
from limbeck.teachers.provider import Observer


class AdapterOffTeacher:
    """Gives the signals of a learner whose weights are frozen but for adapters, with these switched off.

    The student's initial model is then its own teacher without a second copy of it. Every call runs in eval mode and
    under ``torch.no_grad``; the learner has its modes and adapters again afterwards. :meth:`finish` compares the
    weights under the adapters with what they were at :meth:`start`, byte for byte.

    Args:
        role: the role's name; ``<role>_inputs`` in a batch takes precedence over ``inputs``.
        learner: a model of peft, before ``torch.compile`` or a distributed wrapper.
        task: how the model is run.
        views: further views to run, each a forward pass of its own.
        autocast: run the model under autocast to this type.
        wanted: names of the signals that will be read.

    Raises:
        NeedsError: the learner has no adapter to switch off, or trains weights beside its adapters.
    """

    def __init__(
        self,
        role: str,
        learner: nn.Module,
        task: Task,
        views: Sequence[str] = (),
        *,
        autocast: torch.dtype | None = None,
        wanted: frozenset[str] = frozenset(),
    ) -> None:
        if not hasattr(learner, "disable_adapter"):
            raise NeedsError(
                f"the role '{role}' is another role without its adapters, but {type(learner).__name__} has none; give "
                "that role `lora: {...}`, or take a copy with `from:`"
            )
        own = sorted(name for name, p in learner.named_parameters() if p.requires_grad and "lora_" not in name)
        if own:
            raise NeedsError(
                f"the role '{role}' is another role without its adapters, but that one also trains {own[0]} itself; "
                "remove train_too from its lora, or take a copy with `from:`"
            )
        self.role = role
        self._learner = learner
        self._observer = Observer(role, learner, task, {}, views, autocast=autocast, wanted=wanted)
        self._digests: dict[str, bytes] = {}

    def start(self) -> None:
        """Takes a hash of each of the weights under the adapters."""
        self._digests = self._frozen()

    def __call__(self, batch: Batch) -> Signals:
        """Returns what the learner without its adapters says, without a graph."""
        with evaluation_mode(self._learner), self._learner.disable_adapter():  # type: ignore[operator]
            return self._observer(batch)

    @property
    def autocast(self) -> torch.dtype | None:
        """The type under whose autocast the model runs."""
        return self._observer.autocast

    @contextmanager
    def writing(self) -> Iterator[nn.Module]:
        """Gives the learner, without its adapters as long as it is used, to somebody who runs it token by token."""
        with self._learner.disable_adapter():  # type: ignore[operator]
            yield self._learner

    def finish(self) -> None:
        """Compares the weights under the adapters with what they were.

        Raises:
            TeacherChangedError: one of them differs.
        """
        if not self._digests:
            return
        before, after = self._digests, self._frozen()
        changed = [name for name in before if before[name] != after.get(name)]
        self._digests = {}
        if changed:
            raise TeacherChangedError(
                f"the weights under the adapters of role '{self.role}' changed during the stage: {changed[0]}; only "
                "adapters may be trained"
            )

    def _frozen(self) -> dict[str, bytes]:
        digests = tensor_digests(self._learner)
        return {name: digests[name] for name, p in self._learner.named_parameters() if "lora_" not in name}
