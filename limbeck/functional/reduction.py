"""How losses of samples or positions become one number, and in what precision they are computed."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["none", "mean", "sum", "batchmean"]


def reduce(values: Tensor, reduction: Reduction = "mean", *, mask: Tensor | None = None) -> Tensor:
    """Reduces losses ``[B, ...]`` over the positions that count.

    Args:
        values: ``[B, ...]``, one loss a sample or position.
        reduction: ``none`` keeps the shape (masked positions are zero), ``sum`` adds up, ``mean`` divides the sum by
            the number of positions that count, ``batchmean`` divides it by ``B``.
        mask: shaped like ``values``; nonzero where a position counts. All count when None.

    Returns:
        ``[B, ...]`` for ``none``, else a scalar. A mean over nothing is zero.

    Raises:
        ValueError: the reduction is unknown, or the mask has another shape.

    Example:
        >>> reduce(torch.tensor([1.0, 2.0, 6.0]), "mean", mask=torch.tensor([1, 1, 0])).item()
        1.5
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction should be one of {', '.join(get_args(Reduction))}, not '{reduction}'")
    count: Tensor | int = max(values.numel(), 1)
    if mask is not None:
        if mask.shape != values.shape:
            raise ValueError(f"the mask is {tuple(mask.shape)} but the losses are {tuple(values.shape)}")
        values = torch.where(mask.bool(), values, values.new_zeros(()))
        count = mask.bool().sum().clamp(min=1)
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    return total / (max(values.shape[0], 1) if reduction == "batchmean" else count)


def widened(tensor: Tensor) -> Tensor:
    """Returns ``tensor`` in at least single precision: half-precision inputs are computed in float32.

    Example:
        >>> widened(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def neutralised(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Returns ``[..., C]`` rows with zeros where ``mask`` ``[...]`` is false.

    A masked row may hold anything, NaN included: replaced before the loss, it can reach neither value nor gradient.

    Raises:
        ValueError: the mask is not one flag a row.
    """
    if mask is None:
        return rows
    if mask.shape != rows.shape[:-1]:
        raise ValueError(f"the mask is {tuple(mask.shape)} but there are {tuple(rows.shape[:-1])} rows")
    return rows.masked_fill(~mask.bool().unsqueeze(-1), 0.0)


def check_same_shape(first: Tensor, second: Tensor, what: str) -> None:
    """Refuses two tensors of different shapes, which broadcasting would silently combine.

    Raises:
        ValueError: the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"{what} should have the same shape, not {tuple(first.shape)} and {tuple(second.shape)}")
