"""A model as a function of its parameters, for methods that ask how a loss curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from limbeck.errors import NeedsError
from limbeck.modes import evaluation_mode
from limbeck.signals import Batch


class MovableModel:
    """A model as a function of its parameters, which are read as one vector and as tensors of their shapes.

    Args:
        observer: who runs the model, as :meth:`limbeck.methods.base.Method.observe` gets it.

    Attributes:
        parameters: all that train, as they are now.
    """

    def __init__(self, observer: Any) -> None:
        self._observer = observer
        model = getattr(observer.model, "_orig_mod", observer.model)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names, self.parameters = list(named), [p.detach() for p in named.values()]

    def logits(self, batch: Batch) -> Callable[..., Tensor]:
        """Returns the function from parameters to the logits of a batch, in eval mode, twice differentiable.

        Raises:
            NeedsError: when it is called: the batch is not that of this process alone.
        """

        def run(*parameters: Tensor) -> Tensor:
            # Fused attention has no second derivative.
            with evaluation_mode(self._observer.model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                logits = self._observer.with_parameters(batch, dict(zip(self._names, parameters))).logits
            assert logits is not None
            if len(logits) != batch.size:
                raise NeedsError("derivatives in all parameters are taken in one process; start one")
            return logits

        return run

    def divided(self, vector: Tensor) -> list[Tensor]:
        """Returns a vector as tensors shaped like the parameters."""
        parts = vector.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters)]

    def joined(self, tensors: Iterable[Tensor]) -> Tensor:
        """Returns tensors shaped like the parameters as one vector."""
        return torch.cat([t.flatten() for t in tensors])
