"""An exponential moving average of a learner, as a provider."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from limbeck.errors import CheckpointError, RecipeError
from limbeck.schedules import Progress, Weight, weight_at
from limbeck.signals import Batch, Signals
from limbeck.taps import untap
from limbeck.tasks.base import Task
from limbeck.teachers.provider import Observer


class EMATeacher(Observer):
    r"""Gives the signals of a copy of the student whose weights follow it slowly.

    After each optimizer step ``average = decay * average + (1 - decay) * student``, from the weights that the student
    had when the provider was made (mean teacher: Tarvainen and Valpola, 2017, https://arxiv.org/abs/1703.01780). The
    copy is in eval mode and runs under ``torch.no_grad``.

    Args:
        role: the role's name; ``<role>_inputs`` in a batch takes precedence over ``inputs``.
        student: the learner to follow, before ``torch.compile`` or a distributed wrapper.
        task: how the model is run.
        groups: tap paths by group, set on the copy.
        views: further views to run, each a forward pass of its own.
        decay: weight of the past in [0, 1], or a function of the progress.
        warmup: where positive, the n-th update (from 0) uses ``min(decay, (1 + n) / (warmup + n))``, so that early
            weights are forgotten sooner; 10 is TensorFlow's rule.
        buffers: ``copy`` takes the student's buffers (running statistics) as they are, ``average`` averages those that
            are floating point.
        autocast: run the copy under autocast to this type.
        channels_last: give the copy images in channels-last memory format.
        wanted: names of the signals that will be read.

    Raises:
        RecipeError: ``decay``, ``warmup`` or ``buffers`` is out of range.
    """

    def __init__(
        self,
        role: str,
        student: nn.Module,
        task: Task,
        groups: Mapping[str, Sequence[str]] | None = None,
        views: Sequence[str] = (),
        *,
        decay: Weight = 0.999,
        warmup: float = 0.0,
        buffers: Literal["copy", "average"] = "copy",
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        wanted: frozenset[str] = frozenset(),
    ) -> None:
        if warmup < 0:
            raise RecipeError(f"the warm-up of an average must not be negative, but it is {warmup}")
        if buffers not in ("copy", "average"):
            raise RecipeError(f"buffers of an average are 'copy' or 'average', but not {buffers!r}")
        if not callable(decay):
            _checked(decay)
        average = copy.deepcopy(student)
        untap(average)
        average.eval().requires_grad_(False)
        super().__init__(
            role, average, task, groups, views, autocast=autocast, channels_last=channels_last, wanted=wanted
        )
        # `self.model` may be compiled later; the weights are those of the module itself.
        self._average = average
        self._student = student
        self._decay = decay
        self._warmup = warmup
        self._average_buffers = buffers == "average"
        self._updates = 0

    def start(self) -> None:
        """Does nothing: the average lives as long as the provider."""

    def finish(self) -> None:
        """Does nothing: an average is meant to move."""

    def __call__(self, batch: Batch) -> Signals:
        """Returns the average model's signals, without a graph."""
        with torch.no_grad():
            return super().__call__(batch)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Moves the average towards the student, after an optimizer step."""
        decay = _checked(weight_at(self._decay, progress))
        if self._warmup > 0:
            decay = min(decay, (1 + self._updates) / (self._warmup + self._updates))
        followed, followers = list(self._student.parameters()), list(self._average.parameters())
        for buffer, mine in zip(self._student.buffers(), self._average.buffers()):
            if self._average_buffers and buffer.is_floating_point():
                followed.append(buffer)  # type: ignore[arg-type]
                followers.append(mine)  # type: ignore[arg-type]
            else:
                mine.copy_(buffer)
        get_ema_multi_avg_fn(decay)(followers, [_whole(tensor) for tensor in followed], self._updates)
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns the averaged weights and the number of updates: what an exact continuation needs."""
        return {"model": self._average.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts the average where ``state`` was taken.

        Raises:
            CheckpointError: the state is of another model.
        """
        try:
            self._average.load_state_dict(state["model"])
            self._updates = int(state["updates"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the state does not fit the average of role '{self.role}': {error}") from None


def _checked(decay: float) -> float:
    if not 0.0 <= decay <= 1.0:
        raise RecipeError(f"the decay of an average must be in [0, 1], but it is {decay}")
    return decay


def _whole(tensor: Tensor) -> Tensor:
    """Returns all of a tensor that FSDP may hold in shards."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()
