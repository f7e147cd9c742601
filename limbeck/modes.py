"""Eval mode for a while, and every module's own mode back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluation_mode(*models: Any) -> Iterator[None]:
    """Puts modules in eval mode without gradients, and gives each submodule its own mode back afterwards.

    Args:
        *models: modules; whatever is no module, such as a provider of cached outputs, is passed over.

    Example:
        >>> layer = nn.Dropout()
        >>> with evaluation_mode(layer):
        ...     print(layer.training, torch.is_grad_enabled())
        False False
        >>> layer.training
        True
    """
    modules = [module for model in models if isinstance(model, nn.Module) for module in model.modules()]
    flags = [(module, module.training) for module in modules]
    try:
        for module, _ in flags:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training
