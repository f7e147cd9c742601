"""The precision losses are computed in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from limbeck.functional.reduction import widened

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Makes a function of tensors compute in float32 or better, whatever the inputs and the autocast mode.

    Half-precision inputs are converted on entry, so the value is float32 and the gradients come back in the inputs' own
    type. Autocast is off inside: a loss is a vanishing part of a step's cost, and three digits are too few for
    differences of log-probabilities.
    """

    @functools.wraps(loss)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        positional: Any = tuple(_convert(a) for a in args)
        named: Any = {name: _convert(a) for name, a in kwargs.items()}
        device = next((a.device.type for a in (*positional, *named.values()) if isinstance(a, Tensor)), "cpu")
        # Tensors without content, on the device `meta`, know no autocast.
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return loss(*positional, **named)
        with torch.autocast(device, enabled=False):
            return loss(*positional, **named)

    return wrapper


def _convert(value: Any) -> Any:
    return widened(value) if isinstance(value, Tensor) and value.is_floating_point() else value
