"""A model's part in a run, and the observer or provider made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from limbeck.engine.preflight import tap_groups
from limbeck.errors import NeedsError, RecipeError, suggest
from limbeck.methods.base import Method
from limbeck.signals import Batch, Signals
from limbeck.tasks.base import Task
from limbeck.teachers.adapter_off import AdapterOffTeacher
from limbeck.teachers.ema import EMATeacher
from limbeck.teachers.live import FrozenTeacher
from limbeck.teachers.provider import Observer

Observe = Callable[[Batch], Signals]


@dataclass(frozen=True)
class Role:
    """Where a role's signals come from.

    Attributes:
        model: a live model; a learner where the method trains this role, frozen otherwise.
        provider: something that gives signals without a model here: a cache, an ensemble.
        ema_of: name of the learner that this role follows as an exponential moving average.
        decay: decay of that average.
        without_adapters: name of the learner that this role is, its adapters switched off.
        differentiable: gradients flow through the frozen model to its inputs.
        taps: tap paths by group, over those that the model knows of itself.
        precision: ``fp32`` or ``bf16``; the stage's own when None.
        task: how this model is run, where it reads other inputs than the others do; the stage's own when None.
    """

    model: nn.Module | None = None
    provider: Observe | None = None
    ema_of: str | None = None
    decay: float = 0.999
    without_adapters: str | None = None
    differentiable: bool = False
    taps: Mapping[str, Sequence[str]] | None = None
    precision: str | None = None
    task: Task | None = None


def learners_of(method: Method, roles: Mapping[str, Role]) -> dict[str, nn.Module]:
    """Returns the models that a method trains, by role.

    Raises:
        RecipeError: a role that it trains has no model.
    """
    models = {name: roles[name].model if name in roles else None for name in method.learners}
    for name, model in models.items():
        if model is None:
            raise RecipeError(f"the method trains the role '{name}', which needs a model")
    return {name: model for name, model in models.items() if model is not None}


@contextmanager
def standing_in(observers: Mapping[str, Observe], models: Mapping[str, nn.Module]) -> Iterator[None]:
    """Lets whole copies write in place of models of which this process holds a part alone."""
    with ExitStack() as stack:
        for role, model in models.items():
            observer = observers[role]
            assert isinstance(observer, Observer)
            stack.enter_context(observer.standing_in(model))
        yield


def make_observers(
    roles: Mapping[str, Role],
    method: Method,
    task: Task,
    *,
    precision: str,
    channels_last: bool | None,
    beside: Iterable[str] = (),
) -> dict[str, Observe]:
    """Returns what gives each of the method's roles its signals, and each of the roles ``beside`` that are there.

    Transforms may run roles that the method does not have: a teacher that writes what a student learns by heart.

    Raises:
        NeedsError: a role that the method needs is not there, or cannot be what it must be.
    """
    observers: dict[str, Observe] = {}
    for name in (*method.roles(), *(other for other in beside if other in roles and other not in method.roles())):
        if name not in roles:
            raise NeedsError(
                f"the method needs the role '{name}', which is not there; the roles given are {sorted(roles)}"
            )
        observers[name] = _observer(name, roles, method, task, precision, channels_last)
    return observers


def _observer(
    name: str, roles: Mapping[str, Role], method: Method, task: Task, precision: str, channels_last: bool | None
) -> Observe:
    role = roles[name]
    if role.provider is not None:
        if name in method.learners:
            raise NeedsError(
                f"the method trains the role '{name}', so it must be a live model, not a cache or an ensemble"
            )
        return role.provider
    followed = role.ema_of or role.without_adapters
    if followed is not None and followed not in roles:
        raise NeedsError(f"the role '{name}' is made of '{followed}', which is not there. {suggest(followed, roles)}")
    model = role.model if followed is None else roles[followed].model
    if model is None:
        raise NeedsError(f"the role '{name}' has neither a model nor a provider")
    task = role.task or task
    common: dict[str, Any] = {
        "autocast": torch.bfloat16 if (role.precision or precision) == "bf16" else None,
        "channels_last": prefers_channels_last(model) if channels_last is None else channels_last,
        "wanted": method.needs.roles.get(name, frozenset()),
    }
    if role.without_adapters is not None:
        common.pop("channels_last")
        return AdapterOffTeacher(name, model, task, method.needs.views, **common)
    groups = tap_groups(name, model, method.needs.groups(name), role.taps)
    views = method.needs.views
    if role.ema_of is not None:
        return EMATeacher(name, model, task, groups, views, decay=role.decay, **common)
    if name in method.learners:
        return Observer(name, model, task, groups, views, **common)
    return FrozenTeacher(
        name, model, task, groups, views,
        differentiable=role.differentiable, batch_statistics=name in method.batch_statistics, **common,
    )  # fmt: skip


def prefers_channels_last(model: nn.Module) -> bool:
    """Whether the model has convolutions on the CPU, where channels-last memory is the default."""
    return any(isinstance(m, nn.Conv2d) and m.weight.device.type == "cpu" for m in model.modules())
