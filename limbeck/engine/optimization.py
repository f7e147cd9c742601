"""Optimizers by name, and learning rates as a function of the progress alone: resuming needs no scheduler state."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from limbeck.engine.settings import TrainSettings
from limbeck.engine.sharding import is_sharded
from limbeck.errors import RecipeError, UnknownNameError, suggest
from limbeck.schedules import Progress


def _optimizer_classes() -> dict[str, type[torch.optim.Optimizer]]:
    classes = {
        n.lower(): c
        for n, c in vars(torch.optim).items()
        if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer)
    }
    # LBFGS wants a closure and SparseAdam sparse gradients: neither fits a stage.
    return {n: c for n, c in classes.items() if n not in ("optimizer", "lbfgs", "sparseadam")}


def player_settings(
    players: Collection[str], settings: TrainSettings, usual: Mapping[str, Mapping[str, Any]]
) -> dict[str, TrainSettings]:
    """Returns the settings of each player: those of the stage, changed by the method's and by the recipe's for it.

    Args:
        players: their names.
        settings: of the stage.
        usual: what the method changes for each.

    Raises:
        RecipeError: ``settings`` name a player that is not there, or an entry is unknown or out of its range.
    """
    unknown = [who for who in settings.players if who not in players]
    if unknown:
        raise RecipeError(f"train.players: there is no player '{unknown[0]}'. {suggest(unknown[0], players)}")
    return {who: settings.of_player(who, usual.get(who, {})) for who in players}


def build_optimizer(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    """Returns the optimizer that ``settings`` name.

    Raises:
        UnknownNameError: torch has no such optimizer.
        RecipeError: the optimizer does not take one of the options.
    """
    spec = {"name": settings.optimizer} if isinstance(settings.optimizer, str) else dict(settings.optimizer)
    name = str(spec.pop("name", "sgd"))
    classes = _optimizer_classes()
    if name not in classes:
        raise UnknownNameError(f"unknown optimizer '{name}'. {suggest(name, classes)}")
    accepted = inspect.signature(classes[name]).parameters
    options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if name in ("sgd", "rmsprop"):
        options["momentum"] = settings.momentum
    # One fused kernel a step instead of a Python loop over parameters; the default of torch on CPU is the loop. Sharded
    # parameters have no such kernel for every optimizer.
    plain = all(p.is_floating_point() and not is_sharded(p) for p in parameters)
    if name in ("sgd", "adam", "adamw") and plain:
        options["fused"] = True
    for key in spec:
        if key not in accepted or key == "params":
            raise RecipeError(
                f"optimizer '{name}' has no option '{key}'. {suggest(key, [a for a in accepted if a != 'params'])}"
            )
    try:
        return classes[name](parameters, **{k: v for k, v in (options | spec).items() if k in accepted})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"optimizer '{name}': {error}") from None


def learning_rate(settings: TrainSettings, progress: Progress) -> float:
    """Returns the learning rate of the step that comes next."""
    warmup = settings.warmup_epochs * progress.steps_per_epoch
    factor = min(1.0, (progress.step + 1) / warmup) if warmup > 0 else 1.0
    if settings.schedule == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * progress.fraction))
    elif settings.schedule == "multistep":
        factor *= 0.1 ** sum(progress.fraction >= m for m in settings.milestones)
    return settings.lr * factor
