"""How the gradients of losses that pull apart become one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Gradient = Sequence[Tensor | None]


def align_gradients(firm: Gradient, yielding: Gradient) -> list[Tensor | None]:
    r"""Adds two gradients after the second gave up what works against the first.

    .. math:: g = g_1 + g_2 - \min\Big(0, \frac{\langle g_1, g_2 \rangle}{\lVert g_1 \rVert^2}\Big)\, g_1

    The inner product and the norm are those of all parameters together. The result never points against :math:`g_1`,
    which itself is not changed: the one-sided form of projecting conflicting gradients.

    Args:
        firm: :math:`g_1`, one tensor a parameter; None where the loss does not reach it.
        yielding: :math:`g_2`, likewise.

    Returns:
        One tensor a parameter; None where neither loss reaches it.

    References:
        Yang et al., "Dual-Head Knowledge Distillation", arXiv 2411.08937; Yu et al., "Gradient surgery for multi-task
        learning", arXiv 2001.06782.

    Example:
        >>> align_gradients([torch.tensor([1.0, 0.0])], [torch.tensor([-3.0, 2.0])])
        [tensor([1., 2.])]
    """
    pairs = [(a.double(), b.double()) for a, b in zip(firm, yielding, strict=True) if a is not None and b is not None]
    product = sum(((a * b).sum() for a, b in pairs), start=torch.zeros((), dtype=torch.float64))
    share = torch.zeros((), dtype=torch.float64)
    if bool(product < 0):
        share = product / sum(
            (a.double().square().sum() for a in firm if a is not None), start=torch.zeros(()).double()
        )
    return [_merged(a, b, share) for a, b in zip(firm, yielding, strict=True)]


def _merged(firm: Tensor | None, yielding: Tensor | None, share: Tensor) -> Tensor | None:
    if firm is None:
        return yielding
    kept = firm * (1 - share.to(firm))
    return kept if yielding is None else kept + yielding
