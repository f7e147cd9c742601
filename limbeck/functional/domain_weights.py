"""How much of each domain a student should read next, by where it lags behind its teacher."""

from __future__ import annotations

import torch
from torch import Tensor


def perplexity_ratios(student_losses: Tensor, teacher_losses: Tensor) -> Tensor:
    """Returns the student's perplexity over the teacher's in each domain, ``[N]``; 1 where they are equal.

    Args:
        student_losses: ``[N]`` mean negative log-probability of a token of held-out text, nats.
        teacher_losses: ``[N]`` the same of the teacher.

    Example:
        >>> perplexity_ratios(torch.tensor([2.0, 1.0]), torch.tensor([2.0, 1.0]))
        tensor([1., 1.])
    """
    return (student_losses - teacher_losses).exp()


def domain_weights(ratios: Tensor, previous: Tensor | None = None, *, smoothing: float = 0.5) -> Tensor:
    r"""Returns the domain discrepancy factors: the part of each domain in the text to come.

    .. math:: r_0 = \mathrm{softmax}(\rho), \qquad
        r_{t+1} = \alpha\,\frac{r_t \odot e^{\rho}}{\sum_j r_{t,j} e^{\rho_j}} + \frac{1 - \alpha}{N}

    The factors of the past multiply, so a domain that lags for long gets more and more, down to a floor of
    :math:`(1 - \alpha)/N` for all others. The exponential of a ratio of an untrained student overflows; here it is
    taken after the largest has been subtracted.

    Args:
        ratios: ``[N]`` :math:`\rho`, see :func:`perplexity_ratios`.
        previous: ``[N]`` the factors before; None for the first.
        smoothing: :math:`\alpha` in [0, 1]; 0 gives every domain the same, 1 sets no floor.

    References:
        Liu et al., "DDK: Distilling Domain Knowledge for Efficient Large Language Models", arXiv 2407.16154.

    Example:
        >>> domain_weights(torch.tensor([1.0, 1.0]), torch.tensor([0.9, 0.1]))
        tensor([0.7000, 0.3000])
    """
    if previous is None:
        return ratios.softmax(-1)
    grown = torch.softmax(previous.log() + ratios, dim=-1)
    return smoothing * grown + (1 - smoothing) / ratios.shape[-1]


def largest_remainder(shares: Tensor, total: int) -> Tensor:
    """Divides a whole number into whole parts: each share's, rounded down, then one more for the largest remainders.

    Args:
        shares: ``[N]``, which add up to 1.
        total: what is divided.

    Returns:
        ``[N]`` int64 parts that add up to ``total``; of equal remainders the first gets more.

    Example:
        >>> largest_remainder(torch.tensor([0.5, 0.3, 0.2]), 4)
        tensor([2, 1, 1])
    """
    exact = shares.double() * total
    parts = exact.floor().long()
    # Rounding may leave a share just below the whole number that it is.
    near = exact.round()
    parts = torch.where((exact - near).abs() < 1e-9 * total, near.long(), parts)
    missing = total - int(parts.sum())
    first = (exact - parts).argsort(descending=True, stable=True)[:missing]
    return parts.index_add(0, first, torch.ones_like(first))
