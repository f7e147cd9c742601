"""The output layer of a language model: logits from hidden states, and the way back, in float32 or better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from limbeck.functional.reduction import widened


class OutputLayer(Protocol):
    """What an output layer consists of: ``softcap(scale * (x @ weight.T + bias + adapter))``.

    Attributes:
        weight: ``[V, D]``, rows beyond the vocabulary being padding.
        bias: ``[V]`` or None.
        scale: multiplies logits.
        softcap: squashes logits to ``softcap * tanh(logits / softcap)``, unless None.
        vocabulary: number of true tokens, None for all rows.
        adapter: LoRA factors ``A [r, D]`` and ``B [V, r]`` and their scale, or None.
    """

    @property
    def weight(self) -> Tensor: ...  # noqa: D102

    @property
    def bias(self) -> Tensor | None: ...  # noqa: D102

    @property
    def scale(self) -> float: ...  # noqa: D102

    @property
    def softcap(self) -> float | None: ...  # noqa: D102

    @property
    def vocabulary(self) -> int | None: ...  # noqa: D102

    @property
    def adapter(self) -> tuple[Tensor, Tensor, float] | None: ...  # noqa: D102


_BLOCK_ROWS = 8192


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Returns ``a @ b.T`` in float32 or better.

    Half-precision operands of a GPU are multiplied as they are, into float32; those of a processor are widened block
    by block of ``b``, so that no copy of a whole output layer is made.
    """
    if a.dtype == b.dtype and a.dtype not in (torch.float16, torch.bfloat16):
        return a @ b.T
    if a.is_cuda and a.dtype == b.dtype:
        return torch.mm(a, b.T, out_dtype=torch.float32)
    a = widened(a)
    out = a.new_empty(a.shape[0], b.shape[0])
    for start in range(0, b.shape[0], _BLOCK_ROWS):
        block = b[start : start + _BLOCK_ROWS]
        torch.mm(a, block.to(a.dtype).T, out=out[:, start : start + len(block)])
    return out


def _product_back(derivative: Tensor, weight: Tensor) -> Tensor:
    """Returns ``derivative @ weight`` in float32 or better, ``[n, V]`` times ``[V, D]``."""
    if derivative.dtype == weight.dtype:
        return derivative @ weight
    if weight.is_cuda:
        return torch.mm(derivative.to(weight.dtype), weight, out_dtype=torch.float32)
    out = derivative.new_zeros(derivative.shape[0], weight.shape[1])
    for start in range(0, weight.shape[0], _BLOCK_ROWS):
        block = weight[start : start + _BLOCK_ROWS]
        out.addmm_(derivative[:, start : start + len(block)], block.to(derivative.dtype))
    return out


def _add_outer(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds ``left.T @ right`` to ``total`` in the precision of ``total``."""
    if right.is_cuda and right.dtype in (torch.float16, torch.bfloat16):
        total += torch.mm(left.to(right.dtype).T, right, out_dtype=torch.float32)
    else:
        total.addmm_(left.T, right.to(total.dtype))


Parameters = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Weight, bias, LoRA ``A`` and LoRA ``B``."""


@dataclass
class GradientSums:
    """Gradients as they add up over chunks; None where nobody asks for one."""

    states: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None

    @property
    def wants_states(self) -> bool:
        """Whether the student below the head trains."""
        return self.states is not None

    def all(self) -> tuple[Tensor | None, ...]:
        """All gradients in the order of the arguments."""
        return self.states, self.weight, self.bias, self.low, self.high


class LayerArithmetic:
    """An output layer's arithmetic, forth and back; its tensors are handed in, so that autograd sees them."""

    def __init__(self, head: OutputLayer) -> None:
        self.head = head
        self.classes = int(head.weight.shape[0]) if head.vocabulary is None else int(head.vocabulary)
        if not 0 < self.classes <= head.weight.shape[0]:
            raise ValueError(f"a vocabulary of {self.classes} does not fit a head of {head.weight.shape[0]} rows")

    def tensors(self) -> Parameters:
        """Returns the layer's tensors."""
        low, high = self.head.adapter[:2] if self.head.adapter is not None else (None, None)
        return self.head.weight, self.head.bias, low, high

    def logits(self, states: Tensor, tensors: Parameters) -> tuple[Tensor, Tensor | None]:
        """Returns ``[n, classes]`` logits, and the derivative of the softcap where there is one."""
        weight, bias, low, high = tensors
        assert weight is not None
        raw = _product(states, weight[: self.classes])
        if bias is not None:
            raw += bias[: self.classes].to(raw.dtype)
        if low is not None and high is not None and self.head.adapter is not None:
            reduced = _product(states, low)
            raw.addmm_(reduced, high[: self.classes].to(raw.dtype).T, alpha=self.head.adapter[2])
        if self.head.scale != 1.0:
            raw *= self.head.scale
        if self.head.softcap is None:
            return raw, None
        squashed = torch.tanh(raw / self.head.softcap)
        return squashed * self.head.softcap, 1 - squashed.square()

    def back(
        self, derivative: Tensor, capped: Tensor | None, states: Tensor, tensors: Parameters, sums: GradientSums
    ) -> Tensor | None:
        """Adds what ``[n, classes]`` derivatives mean for the layer to ``sums``, and returns that for the states."""
        weight, _, low, high = tensors
        assert weight is not None
        if capped is not None:
            derivative = derivative * capped
        if self.head.scale != 1.0:
            derivative = derivative * self.head.scale
        if sums.weight is not None:
            _add_outer(sums.weight[: self.classes], derivative, states)
        if sums.bias is not None:
            sums.bias[: self.classes] += derivative.sum(0)
        found = _product_back(derivative, weight[: self.classes]) if sums.wants_states else None
        if low is None or high is None or self.head.adapter is None:
            return found
        strength = self.head.adapter[2]
        reduced_derivative = strength * (derivative @ high[: self.classes].to(derivative.dtype))
        if sums.high is not None:
            sums.high[: self.classes].addmm_(derivative.T, _product(states, low), alpha=strength)
        if sums.low is not None:
            _add_outer(sums.low, reduced_derivative, states)
        return None if found is None else found.addmm_(reduced_derivative, low.to(derivative.dtype))


@torch.no_grad()
def project(states: Tensor, head: OutputLayer) -> Tensor:
    """Returns logits ``[..., V]`` of hidden states ``[..., D]``, over the true vocabulary and without a graph.

    They are float32 or better.
    """
    flat = states.reshape(-1, states.shape[-1])
    layer = LayerArithmetic(head)
    return layer.logits(flat, layer.tensors())[0].reshape(*states.shape[:-1], layer.classes)
