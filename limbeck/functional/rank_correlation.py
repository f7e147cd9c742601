"""How alike two quantities order the same things."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.correlation import pearson
from limbeck.functional.reduction import check_same_shape


def kendall_tau(first: Tensor, second: Tensor) -> Tensor:
    r"""Kendall's tau-b: concordant less discordant pairs, over pairs that are not tied.

    .. math:: \tau_b = \frac{C - D}{\sqrt{(n_0 - n_1)(n_0 - n_2)}}

    with :math:`n_0` pairs in all, of which :math:`n_1` and :math:`n_2` are tied in either quantity.

    Args:
        first: ``[N]``.
        second: ``[N]``.

    Returns:
        A scalar in [-1, 1]; 0 where one of the quantities is constant.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> kendall_tau(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0]))
        tensor(0.3333, dtype=torch.float64)
    """
    check_same_shape(first, second, "the quantities to rank")
    signs = [torch.sign(v.double().unsqueeze(0) - v.double().unsqueeze(1)) for v in (first, second)]
    untied = torch.stack([sign.abs().sum() for sign in signs]).prod().sqrt()
    return (signs[0] * signs[1]).sum() / torch.where(untied > 0, untied, torch.ones_like(untied))


def ranks(values: Tensor) -> Tensor:
    """Returns the rank of each of ``[N]`` values from 1, float64; equal values share the mean of their ranks.

    Example:
        >>> ranks(torch.tensor([7.0, 5.0, 7.0])).tolist()
        [2.5, 1.0, 2.5]
    """
    below = (values.unsqueeze(1) > values.unsqueeze(0)).sum(1)
    equal = (values.unsqueeze(1) == values.unsqueeze(0)).sum(1)
    return below.double() + (equal.double() + 1) / 2


def spearman_rho(first: Tensor, second: Tensor) -> Tensor:
    r"""Spearman's rho: the Pearson correlation of the ranks, ties sharing their mean rank.

    Args:
        first: ``[N]``.
        second: ``[N]``.

    Returns:
        A scalar in [-1, 1]; 0 where one of the quantities is constant.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> spearman_rho(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0]))
        tensor(0.5000, dtype=torch.float64)
    """
    check_same_shape(first, second, "the quantities to rank")
    return pearson(ranks(first), ranks(second))
