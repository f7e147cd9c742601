"""A frozen model as a provider, with the guarantee that training leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.errors import TeacherChangedError
from limbeck.signals import Batch, Signals
from limbeck.tasks.base import Task
from limbeck.teachers.fingerprint import fingerprint, tensor_digests
from limbeck.teachers.provider import Observer

_NAMES_SHOWN = 5


class FrozenTeacher(Observer):
    """Gives the signals of a model that does not train.

    Every call runs in eval mode and under ``torch.no_grad``. From :meth:`start` to :meth:`finish` the model's
    parameters ask for no gradient, and :meth:`finish` compares every parameter and buffer with what it was at
    :meth:`start`, byte for byte; then the model has the training flags and ``requires_grad`` again that it came with. A
    call outside a stage (a dry run) leaves no trace either. The provider is no module, so the model ends up in no
    optimizer, no checkpoint and no distributed wrapper.

    Args:
        role: the role's name; ``<role>_inputs`` in a batch takes precedence over ``inputs``.
        model: the model, before ``torch.compile`` or a distributed wrapper.
        task: how the model is run.
        groups: tap paths by group.
        views: further views to run, each a forward pass of its own.
        differentiable: let gradients flow through the model to its inputs; its parameters still get none.
        batch_statistics: batch normalisation uses the statistics of the batch, as in OFD (Heo et al., 2019,
            https://arxiv.org/abs/1904.01866); the running statistics and their counter still do not move, and
            everything else stays in eval mode.
        autocast: run the model under autocast to this type.
        channels_last: give the model images in channels-last memory format.
        wanted: names of the signals that will be read.

    Example:
        >>> from limbeck.tasks.classification import Classification
        >>> teacher = FrozenTeacher("teacher", nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), Classification())
        >>> teacher.start()
        >>> teacher(Batch(inputs=torch.randn(2, 4), index=torch.arange(2))).logits.shape
        torch.Size([2, 3])
        >>> teacher.finish()
    """

    def __init__(
        self,
        role: str,
        model: nn.Module,
        task: Task,
        groups: Mapping[str, Sequence[str]] | None = None,
        views: Sequence[str] = (),
        *,
        differentiable: bool = False,
        batch_statistics: bool = False,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        wanted: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(
            role, model, task, groups, views, autocast=autocast, channels_last=channels_last, wanted=wanted
        )
        # `self.model` may be compiled later, which changes the names of its parameters; the module stays the same.
        self._frozen = model
        self._modules = list(model.modules())
        self._norms = [m for m in self._modules if isinstance(m, _BatchNorm)] if batch_statistics else []
        self._differentiable = differentiable
        self._flags: _Flags | None = None
        self._digests: dict[str, bytes] = {}

    def fingerprint(self) -> str:
        """Returns a hash of the model's architecture, parameters and buffers."""
        return fingerprint(self._frozen)

    def start(self) -> None:
        """Freezes the model and takes a hash of each of its tensors. Does nothing when started already."""
        if self._flags is None:
            self._flags = _Flags(self._frozen)
            self._freeze()
            self._digests = tensor_digests(self._frozen)

    def __call__(self, batch: Batch) -> Signals:
        """Returns the model's signals, without a graph unless ``differentiable``."""
        if self._flags is not None:
            return self._observe(batch)
        flags = _Flags(self._frozen)
        self._freeze()
        try:
            return self._observe(batch)
        finally:
            flags.restore()

    def finish(self) -> None:
        """Gives the model back with the flags that it came with.

        Raises:
            TeacherChangedError: a parameter or buffer differs from what it was at :meth:`start`; the message names it.
        """
        if self._flags is None:
            return
        self._flags.restore()
        self._flags = None
        before, after = self._digests, tensor_digests(self._frozen)
        changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        if changed:
            raise TeacherChangedError(_explain(self.role, type(self._frozen).__name__, changed))

    def _freeze(self) -> None:
        self._frozen.eval().requires_grad_(False)

    def _observe(self, batch: Batch) -> Signals:
        if any(module.training for module in self._modules):
            # Somebody called train() on a module that holds the teacher; a batch would move its running statistics.
            self._frozen.eval()
        with nullcontext() if self._differentiable else torch.no_grad(), _without_running_statistics(self._norms):
            return super().__call__(batch)


class _Flags:
    """The training flags and ``requires_grad`` of a model, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore(self) -> None:
        for module, training in self._modes:
            module.training = training
        for parameter, wanted in self._gradients:
            parameter.requires_grad_(wanted)


def _explain(role: str, model: str, changed: list[str]) -> str:
    more = f" and {len(changed) - _NAMES_SHOWN} more" if len(changed) > _NAMES_SHOWN else ""
    return (
        f"the frozen {role} ({model}) changed during the stage: {', '.join(changed[:_NAMES_SHOWN])}{more}. Keep its "
        "parameters out of every optimizer, share no module between it and a learner, and do not update its buffers"
    )


@contextmanager
def _without_running_statistics(norms: list[_BatchNorm]) -> Iterator[None]:
    """Takes their running statistics from ``norms``: in eval mode they then use the batch's and update nothing."""
    kept = [(norm, norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, mean, variance in kept:
            norm.running_mean, norm.running_var = mean, variance
