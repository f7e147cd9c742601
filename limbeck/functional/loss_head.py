"""From hidden states and an output layer to losses and gradients, without ever holding ``[tokens, vocabulary]``.

Rows are cut into chunks of a given number of bytes. While the logits of a chunk are there, its losses and their
derivatives are worked out, carried on to hidden states and output layer, and the logits are dropped. What remains for
the backward pass has the size of the hidden states and of what trains in the output layer. Masked rows are never
computed. Sums over chunks are kept in float32 or better, so the result does not depend on where the cuts are.

The derivative is taken in the forward pass, for the weights of the terms that are announced. Where the gradient that
arrives later has other proportions, it is worked out again, at the price of one more product with the output layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.functional.output_layer import GradientSums, LayerArithmetic, OutputLayer, Parameters
from limbeck.functional.reduction import widened
from limbeck.functional.token_losses import (
    Scores,
    Targets,
    TokenLoss,
    can_compile,
    check_positions,
    combined_gradient,
    compiled_gradient,
)

CHUNK_BYTES = 32 * 2**20
"""Size of the student's logits of a chunk, if nothing else is said."""

_CHUNK_ROWS = 256
"""Rows that a chunk has at least then, since each chunk reads the whole output layer, and adds to its gradient."""

_COMPILE_FROM = 2**24
"""Logits from which on compiling pays for itself within a few calls."""

_Gradient = Callable[..., tuple[Tensor, Tensor]]
"""Logits, targets and weights to values and the derivative of their sum, see :func:`combined_gradient`."""


@dataclass
class _Plan:
    """One call: which losses of which rows, in which chunks.

    Attributes:
        losses: the losses.
        layer: the output layer; None where the states are logits already.
        rows: numbers of the rows that count, None for all.
        weights: the announced weight of each term, None to work out gradients when they are asked for.
        chunk_rows: rows of a chunk.
        compiled: whether the arithmetic on logits is compiled.
    """

    losses: list[TokenLoss]
    layer: LayerArithmetic | None
    rows: Tensor | None
    weights: list[float] | None
    chunk_rows: int
    compiled: bool

    def run(
        self,
        states: Tensor,
        tensors: Parameters,
        weights: Tensor | None,
        wanted: tuple[bool, ...],
        silent: Sequence[bool] = (),
    ) -> tuple[Tensor, GradientSums]:
        """Returns ``[terms, N]`` values, zero at rows that do not count, and sums of the ``wanted`` gradients.

        ``weights`` ``[terms, N]`` are what each value counts; without them only values are computed. ``silent`` says of
        which terms all weights are zero, if that is known.
        """
        gradient = self._gradient(tuple(silent) or (False,) * len(self.losses))
        wide = torch.promote_types(states.dtype, torch.float32)
        values = states.new_zeros(len(self.losses), len(states), dtype=wide)
        sums = self._empty(states, tensors, wanted, wide) if weights is not None else GradientSums(None)
        number = len(states) if self.rows is None else len(self.rows)
        for start in range(0, number, self.chunk_rows):
            piece = slice(start, min(start + self.chunk_rows, number))
            rows: Tensor | slice = piece if self.rows is None else self.rows[piece]
            self._chunk(states, tensors, rows, weights, values, sums, gradient)
        return values, sums

    def _gradient(self, silent: tuple[bool, ...]) -> _Gradient:
        rules = tuple(loss.rule for loss in self.losses)
        return compiled_gradient(rules, silent) if self.compiled else partial(combined_gradient, rules, silent)

    def _empty(self, states: Tensor, tensors: Parameters, wanted: tuple[bool, ...], wide: torch.dtype) -> GradientSums:
        """Zeros for every gradient that is asked for: of the layer in wide precision, of the states in their own."""
        layer = [t.new_zeros(t.shape, dtype=wide) if w and t is not None else None for t, w in zip(tensors, wanted[1:])]
        return GradientSums(torch.zeros_like(states) if wanted[0] else None, *layer)

    def _chunk(
        self,
        states: Tensor,
        tensors: Parameters,
        rows: Tensor | slice,
        weights: Tensor | None,
        values: Tensor,
        sums: GradientSums,
        gradient: _Gradient,
    ) -> None:
        chosen = states[rows]
        logits, capped = (widened(chosen), None) if self.layer is None else self.layer.logits(chosen, tensors)
        targets: list[Targets] = [loss.targets(rows) for loss in self.losses]
        if weights is None:
            scores = Scores(logits)
            values[:, rows] = torch.stack([loss.rule.values(scores, *t) for loss, t in zip(self.losses, targets)])
            return
        values[:, rows], derivative = gradient(logits, targets, weights[:, rows])
        found: Tensor | None = derivative
        if self.layer is not None:
            del logits
            found = self.layer.back(derivative, capped, chosen, tensors, sums)
        if sums.states is not None and found is not None:
            sums.states[rows] = found.to(states.dtype)


class _TokenLosses(torch.autograd.Function):
    """Values of positions whose gradient is worked out with them."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, states: Tensor, *tensors: Tensor | None) -> Tensor:
        parameters: Any = tensors
        ctx.plan, ctx.sums = plan, None
        ctx.save_for_backward(states, *tensors)
        wanted = ctx.needs_input_grad[1:]
        weights = None
        if any(wanted) and plan.weights is not None:
            wide = torch.promote_types(states.dtype, torch.float32)
            announced = torch.tensor(plan.weights, device=states.device, dtype=wide)
            weights = announced.unsqueeze(-1).expand(-1, len(states))
        silent = [weight == 0 for weight in plan.weights or ()]
        values, sums = plan.run(states, parameters, weights, wanted, silent)
        if weights is not None:
            ctx.sums = sums
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        plan: _Plan = ctx.plan
        states, *tensors = ctx.saved_tensors
        sums, ctx.sums = ctx.sums, None
        factor = None if sums is None else _common_factor(gradient, plan, sums)
        if factor is None:
            _, sums = plan.run(states, tuple(tensors), gradient, ctx.needs_input_grad[1:])
        else:
            for total in sums.all():
                if total is not None:
                    total *= factor.to(total.dtype)
        found = [None if s is None else s.to(t.dtype) for s, t in zip(sums.all(), (states, *tensors))]
        return None, *found


def _common_factor(gradient: Tensor, plan: _Plan, sums: GradientSums) -> Tensor | None:
    """Returns by what the announced gradients are to be multiplied, or None if the proportions are others."""
    assert plan.weights is not None
    arrived = gradient if plan.rows is None else gradient[:, plan.rows]
    announced = arrived.new_tensor(plan.weights)
    strongest = int(announced.abs().argmax())
    if arrived.shape[1] == 0:
        return arrived.new_zeros(())
    factor = arrived[strongest, 0] / announced[strongest]
    expected = (factor * announced).unsqueeze(-1).expand_as(arrived)
    tolerance = 4 * torch.finfo(arrived.dtype).eps
    same = (arrived - expected).abs() <= tolerance * expected.abs()
    return factor if bool(same.all()) else None


def _plan(
    losses: Mapping[str, TokenLoss],
    layer: LayerArithmetic | None,
    leading: torch.Size,
    classes: int,
    mask: Tensor | None,
    weights: Mapping[str, float] | None,
    chunk_bytes: int | None,
    compiled: bool | None,
    announced: bool,
    itemsize: int,
) -> _Plan:
    check_positions(losses, leading, mask)
    rows = None if mask is None or bool(mask.all()) else mask.reshape(-1).bool().nonzero().squeeze(-1)
    number = math.prod(leading) if rows is None else len(rows)
    chosen = list(losses.values())
    if compiled is None:
        compiled = number * classes >= _COMPILE_FROM
    use = compiled and can_compile([loss.rule for loss in chosen])
    size = chunk_rows(classes * itemsize, chunk_bytes, least=1 if layer is None else _CHUNK_ROWS)
    if use and layer is None:
        size = max(number, 1)  # the compiled arithmetic makes nothing but the gradient
    scale = dict.fromkeys(losses, 1.0) if weights is None else weights
    return _Plan(chosen, layer, rows, [float(scale[n]) for n in losses] if announced else None, size, use)


def chunk_rows(row_bytes: int, chunk_bytes: int | None = None, *, least: int = 1) -> int:
    """Returns how many rows a chunk has: what its bytes hold, and ``least`` where nobody said how many bytes."""
    return max(CHUNK_BYTES // row_bytes, least) if chunk_bytes is None else max(chunk_bytes // row_bytes, 1)


def projected_token_losses(
    states: Tensor,
    head: OutputLayer,
    losses: Mapping[str, TokenLoss],
    *,
    mask: Tensor | None = None,
    weights: Mapping[str, float] | None = None,
    gradient: str = "forward",
    chunk_bytes: int | None = None,
    compiled: bool | None = None,
) -> dict[str, Tensor]:
    """Returns losses of positions from hidden states and an output layer.

    Args:
        states: ``[..., D]`` hidden states that the head reads.
        head: the output layer; gradients go to those of its tensors that train.
        losses: losses by name.
        mask: ``[...]`` true where a position counts; others are not computed.
        weights: with which weight each loss will count; 1 each when None. Only a matter of speed.
        gradient: ``forward`` works gradients out at once, for the announced weights and the same factor at every
            position; ``backward`` when they are asked for, which suits losses whose positions count differently.
        chunk_bytes: size of the logits of a chunk; 32 MiB, or 256 rows where that is more, when None.
        compiled: whether to compile the arithmetic on logits; None: where there are many and a compiler is found.

    Returns:
        ``[...]`` values by name, float32 or better, 0 where masked. They equal those of the whole logits, whatever the
        chunks, and can be differentiated once.

    Raises:
        ValueError: shapes do not fit, or ``gradient`` is unknown.
    """
    if gradient not in ("forward", "backward"):
        raise ValueError(f"gradient is '{gradient}', but should be 'forward' or 'backward'")
    layer = LayerArithmetic(head)
    leading = states.shape[:-1]
    itemsize = torch.promote_types(states.dtype, torch.float32).itemsize
    plan = _plan(
        losses, layer, leading, layer.classes, mask, weights, chunk_bytes, compiled, gradient == "forward", itemsize
    )
    flat = states.reshape(-1, states.shape[-1])
    values = _TokenLosses.apply(plan, flat, *layer.tensors())
    return {name: value.reshape(leading) for name, value in zip(losses, values)}


def token_losses(
    logits: Tensor,
    losses: Mapping[str, TokenLoss],
    *,
    mask: Tensor | None = None,
    weights: Mapping[str, float] | None = None,
    gradient: str = "forward",
    chunk_bytes: int | None = None,
    compiled: bool | None = None,
) -> dict[str, Tensor]:
    """Returns losses of positions from logits that are at hand, with a peak of hardly more than their gradient.

    Args:
        logits: ``[..., V]`` over the true vocabulary.
        losses: losses by name.
        mask: ``[...]`` true where a position counts.
        weights: see :func:`projected_token_losses`.
        gradient: see :func:`projected_token_losses`.
        chunk_bytes: size of a chunk, where the arithmetic is not compiled; 32 MiB when None.
        compiled: see :func:`projected_token_losses`.

    Returns:
        ``[...]`` values by name, see :func:`projected_token_losses`.

    Raises:
        ValueError: shapes do not fit, or ``gradient`` is unknown.
    """
    if gradient not in ("forward", "backward"):
        raise ValueError(f"gradient is '{gradient}', but should be 'forward' or 'backward'")
    leading, classes = logits.shape[:-1], logits.shape[-1]
    itemsize = torch.promote_types(logits.dtype, torch.float32).itemsize
    plan = _plan(losses, None, leading, classes, mask, weights, chunk_bytes, compiled, gradient == "forward", itemsize)
    values = _TokenLosses.apply(plan, logits.reshape(-1, classes), None, None, None, None)
    return {name: value.reshape(leading) for name, value in zip(losses, values)}
