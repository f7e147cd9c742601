r"""Gradients of divergences from tokens or sequences that were drawn, by their log-probabilities alone.

A divergence whose contributions belong to single classes has the gradient

.. math:: \nabla D(p, q) = \sum_v \frac{\partial c(p_v, q_v)}{\partial \log q_v} \nabla \log q_v
          = \mathbb{E}_{v \sim q}\big[-A_v \nabla \log q_v\big], \qquad
          A_v = -\frac{1}{q_v} \frac{\partial c(p_v, q_v)}{\partial \log q_v}

so whoever knows :math:`\log p` and :math:`\log q` of what was drawn can estimate it. For
:math:`D_f = \sum_v q_v f(p_v / q_v)` the merit is :math:`A = u f'(u) - f(u)` with :math:`u = p / q`: the log-ratio for
reverse KL, the ratio for forward KL, each up to a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.divergence_registry import Divergence
from limbeck.functional.precision import full_precision

_LARGEST = 20.0
"""Log-ratios are cut here, as those of :func:`limbeck.functional.policy.policy_surrogate` are."""


@full_precision
def sampled_merit(divergence: Divergence, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns what makes drawing a class lessen a divergence: the advantage of its score-function gradient.

    Args:
        divergence: one for which :func:`is_local` holds.
        log_p: ``[...]`` log-probabilities under the target of what was drawn from ``log_q``.
        log_q: ``[...]``.

    Returns:
        ``[...]`` without gradient. Where it depends on the ratio alone, it is 0 at equality, which changes no
        expectation and makes every sample agree there. Log-ratios are cut at 20 from above.

    Example:
        >>> from limbeck.functional.divergence_registry import divergence
        >>> log_p, log_q = torch.tensor([0.5, 0.1]).log(), torch.tensor([0.25, 0.2]).log()
        >>> sampled_merit(divergence("reverse_kl"), log_p, log_q), sampled_merit(divergence("forward_kl"), log_p, log_q)
        (tensor([ 0.6931, -0.6931]), tensor([ 1.0000, -0.5000]))
    """
    gap = (log_p - log_q).detach().clamp(max=_LARGEST)
    if not is_of_ratio(divergence):
        return _merit(divergence, (log_q + gap).detach(), log_q.detach())
    zero = torch.zeros_like(gap)
    return _merit(divergence, gap, zero) - _merit(divergence, zero, zero)


def is_local(divergence: Divergence) -> bool:
    """Whether what a class contributes depends on its own two probabilities only, so that samples estimate it."""
    log_p, log_q = (torch.tensor(row, dtype=torch.float64).log() for row in _TRIAL)
    whole = divergence.contributions(log_p, log_q)
    alone = divergence.contributions(log_p.unsqueeze(-1), log_q.unsqueeze(-1)).squeeze(-1)
    return torch.allclose(whole, alone, rtol=1e-9, atol=1e-12)


def is_of_ratio(divergence: Divergence) -> bool:
    """Whether the merit depends on the ratio of both probabilities only, as that of every f-divergence does."""
    log_p, log_q = (torch.tensor(row, dtype=torch.float64).log() for row in _TRIAL)
    moved = _merit(divergence, log_p - 1.0, log_q - 1.0)
    return is_local(divergence) and torch.allclose(_merit(divergence, log_p, log_q), moved, rtol=1e-9, atol=1e-12)


_TRIAL = ((0.6, 0.3, 0.1), (0.2, 0.35, 0.45))


def _merit(divergence: Divergence, log_p: Tensor, log_q: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = log_q.detach().clone().requires_grad_()
        values = divergence.contributions(log_p.unsqueeze(-1), leaf.unsqueeze(-1))
        (slope,) = torch.autograd.grad(values.sum(), leaf)
    return -slope * torch.exp(-log_q)
