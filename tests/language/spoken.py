"""What a student and a teacher say of a few tokens, as logits or as hidden states with a head, and methods on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.methods.base import Method, build_method
from limbeck.signals import Batch, Head, Hidden, Signals, as_term

V, ROWS, LENGTH, WIDTH = 13, 3, 7, 5


def numbers(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    """Normal numbers in double precision."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def said(seed: int, *, scale: float = 2.0) -> Tensor:
    """Logits ``[ROWS, LENGTH, V]``."""
    return numbers(ROWS, LENGTH, V, seed=seed, scale=scale)


def ragged() -> Tensor:
    """A mask in which rows have different numbers of tokens."""
    mask = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    for row, places in enumerate(((1, 6), (2, 3), (0, 7))):
        mask[row, slice(*places)] = True
    return mask


def tokens(mask: Tensor | None = None, **entries: Any) -> Batch:
    """A batch of labels where a mask says that they count."""
    mask = ragged() if mask is None else mask
    labels = torch.randint(0, V, mask.shape, generator=torch.Generator().manual_seed(3))
    return Batch(index=torch.arange(len(mask)), labels=labels.masked_fill(~mask, -100), mask=mask, **entries)


def spoken(logits: Tensor, **more: Any) -> Signals:
    """Signals that are logits."""
    return Signals(logits=logits, **more)


def projected(seed: int = 5, **options: Any) -> tuple[Signals, Tensor, list[Tensor]]:
    """Hidden states with a head: the signals, the logits that the head makes of them, and what they depend on."""
    states = numbers(ROWS, LENGTH, WIDTH, seed=seed, scale=1.0).requires_grad_()
    weight = numbers(V, WIDTH, seed=seed + 1, scale=1.0).requires_grad_()
    head = Head(weight, **options)
    return Signals(hidden=Hidden(states, head)), head(states), [states, weight]


def loss_of(method: Method | str, batch: Batch, only: str | None = None, **roles: Signals) -> Tensor:
    """The weighted sum of a method's terms, or the mean of one of them."""
    built = build_method(method) if isinstance(method, str) else method
    terms = built(batch, **roles)
    if only is not None:
        return as_term(terms[only]).mean()
    weights = {n: w if isinstance(w, (int, float)) else 1.0 for n, w in built.weights.items()}
    return torch.stack([weights[name] * as_term(term).mean() for name, term in terms.items()]).sum()


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result
