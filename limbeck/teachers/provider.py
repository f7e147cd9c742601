"""The contract of a provider, and the observer that all live ones share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from limbeck.signals import Batch, Signals
from limbeck.taps import Taps
from limbeck.tasks.base import Task


@runtime_checkable
class Provider(Protocol):
    """Gives a role's signals for a batch. A provider never sees a loss."""

    def __call__(self, batch: Batch) -> Signals:
        """Returns what the role says about ``batch``."""

    def start(self) -> None:
        """Called when a stage begins."""

    def finish(self) -> None:
        """Called when a stage ends. Raises where the provider's contract was broken."""


class Observer:
    """A model, its taps and the task that runs it: batch -> signals, in whatever mode the model is in.

    Args:
        role: the role's name; ``<role>_inputs`` in a batch takes precedence over ``inputs``.
        model: the model, before ``torch.compile`` or a distributed wrapper.
        task: how the model is run.
        groups: tap paths by group.
        views: further views to run, each a forward pass of its own.
        autocast: run the model under autocast to this type; its signals come back in float32, in which losses are
            computed.
        channels_last: give the model images in channels-last memory format.
        wanted: names of the signals that will be read; a task may leave out what is costly and not among them.
    """

    def __init__(
        self,
        role: str,
        model: nn.Module,
        task: Task,
        groups: Mapping[str, Sequence[str]] | None = None,
        views: Sequence[str] = (),
        *,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        wanted: frozenset[str] = frozenset(),
    ) -> None:
        self.role = role
        self.model = model
        self.task = task
        self.taps = Taps(model, groups or {})
        self.views = tuple(views)
        self._autocast = autocast
        self._wanted = wanted
        self._channels_last = channels_last
        self._stand_in: nn.Module | None = None
        if channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, batch: Batch) -> Signals:
        """Returns the model's signals for the default view and for each further view that the batch has.

        A batch that a method made of its own has none, though a method beside it may read some.
        """
        signals = self._run(batch.inputs_for(self.role))
        there = [view for view in self.views if view in batch.get("views", {})]
        if there:
            signals = replace(signals, views={v: self._run(batch.inputs_for(self.role, v)) for v in there})
        return signals

    def _run(self, inputs: Any, model: nn.Module | None = None) -> Signals:
        if self._channels_last and isinstance(inputs, torch.Tensor) and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        context = nullcontext() if self._autocast is None else torch.autocast(_device_type(inputs), self._autocast)
        if self.taps.groups:
            self.taps.listen()
        with context:
            signals = self.task.run(self.model if model is None else model, inputs, self._wanted)
        if self.taps.groups:
            signals = replace(signals, features=self.taps.collect())
        return signals if self._autocast is None else signals.map(_full_precision)

    def lookahead(self, batch: Batch, losses: Tensor, rate: float) -> Signals:
        """Returns what the model would say about a batch after one step of gradient descent.

        The gradient of what it returns goes through the step, to all that the losses depend on. The step is taken on
        the mean of ``losses`` over all processes, in every parameter that trains; neither the model's parameters nor
        its buffers change.

        Args:
            batch: what the moved model sees.
            losses: one loss a sample of this process, with a graph to the model's parameters.
            rate: length of the step.
        """
        model = getattr(self.model, "_orig_mod", self.model)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        slopes = torch.autograd.grad(losses.sum(), list(named.values()), create_graph=True, allow_unused=True)
        count, summed = _over_processes(len(losses), slopes)
        moved = {
            name: p if slope is None else p - (rate / count) * slope for (name, p), slope in zip(named.items(), summed)
        }
        return self.with_parameters(batch, moved)

    def with_parameters(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Signals:
        """Returns what the model would say about a batch with other parameters, with a graph to them.

        Neither the model's own parameters nor its buffers change.

        Args:
            batch: what it sees.
            parameters: the other ones by name; all that are not named stay as they are.
        """
        model = getattr(self.model, "_orig_mod", self.model)
        copies = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return self._run(batch.inputs_for(self.role), _Moved(model, {**parameters, **copies}))

    @property
    def autocast(self) -> torch.dtype | None:
        """The type under whose autocast the model runs."""
        return self._autocast

    @contextmanager
    def writing(self) -> Iterator[nn.Module]:
        """Gives the model, or what stands in for it, to somebody who runs it token by token."""
        yield self.model if self._stand_in is None else self._stand_in

    @contextmanager
    def standing_in(self, model: nn.Module) -> Iterator[None]:
        """Lets a whole copy write in place of a model of which this process holds a part alone."""
        self._stand_in = model
        try:
            yield
        finally:
            self._stand_in = None

    def close(self) -> None:
        """Removes the taps."""
        self.taps.close()

    def restore(self) -> None:
        """Gives the model its usual memory format back."""
        if self._channels_last:
            self._channels_last = False
            self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _device_type(inputs: Any) -> str:
    """Returns where inputs are: a tensor, or a mapping of tensors."""
    tensor = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
    return tensor.device.type


class _Moved(nn.Module):
    """A model with other tensors in place of its parameters and buffers; the model itself is no part of it."""

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._model_and_tensors = (model, dict(tensors))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Returns what the model gives with these tensors."""
        model, tensors = self._model_and_tensors
        return torch.func.functional_call(model, tensors, inputs, named)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Returns the sum."""
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Returns the sum of the gradients."""
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


def _over_processes(count: int, slopes: Sequence[Tensor | None]) -> tuple[int, Sequence[Tensor | None]]:
    """Returns the number of samples and the summed gradients of all processes; these are differentiable."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return count, slopes
    there = [slope for slope in slopes if slope is not None]
    samples = torch.tensor([count], device=there[0].device)
    torch.distributed.all_reduce(samples)
    # One exchange, in which no process can be ahead of another.
    flat = _SumOverProcesses.apply(torch.cat([slope.reshape(-1) for slope in there]))
    parts = iter(flat.split([slope.numel() for slope in there]))
    return int(samples), [None if slope is None else next(parts).view_as(slope) for slope in slopes]


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
