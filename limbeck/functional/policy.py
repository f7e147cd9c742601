"""Losses of sampled sequences: advantages, estimates of divergences from samples, and one surrogate for all of them.

Shapes: ``[B, T]`` for what belongs to tokens, ``[B]`` for sequences. Log-probabilities are natural and of the sampled
tokens; ``log_q`` of the student as it is now, the only one with a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from limbeck.functional.precision import full_precision

Estimator = Literal["k1", "k2", "k3"]

_LARGEST = 20.0
"""Exponents are cut here: a ratio of e^20 means that two policies have nothing in common."""


class GroupStatistics(NamedTuple):
    """What a sequence's reward is among those of its group.

    Attributes:
        advantage: ``[B]`` rewards minus the group's mean, divided by its deviation where asked for.
        best: ``[B]`` largest reward of the group.
    """

    advantage: Tensor
    best: Tensor


def group_statistics(
    rewards: Tensor, groups: Tensor, *, eps: float = 1e-6, scale: bool = True, unbiased: bool = True
) -> GroupStatistics:
    """Returns group-normalised rewards, the advantages of GRPO.

    Args:
        rewards: ``[B]``.
        groups: ``[B]`` integer group of each sequence: those of one prompt share a number.
        eps: added to the deviation.
        scale: whether to divide by the deviation.
        unbiased: whether the deviation divides by one less than the number of members.

    Returns:
        ``[B]`` each. A group of equal rewards, or of one member, has advantages of zero.

    References:
        Shao et al., "DeepSeekMath", arXiv 2402.03300.

    Example:
        >>> group_statistics(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([7, 7, 2]), scale=False).advantage
        tensor([ 0.5000, -0.5000,  0.0000])
    """
    _, member = groups.unique(return_inverse=True)
    number = int(member.max()) + 1 if len(member) else 0
    count = rewards.new_zeros(number).index_add(0, member, torch.ones_like(rewards))
    mean = rewards.new_zeros(number).index_add(0, member, rewards) / count
    centred = rewards - mean[member]
    best = rewards.new_full((number,), -torch.inf).scatter_reduce(0, member, rewards, "amax")[member]
    if not scale:
        return GroupStatistics(centred, best)
    squares = rewards.new_zeros(number).index_add(0, member, centred.square())
    deviation = (squares / (count - 1 if unbiased else count).clamp(min=1)).sqrt()
    return GroupStatistics(centred / (deviation[member] + eps), best)


def reward_to_go(rewards: Tensor, mask: Tensor, *, discount: float = 1.0, length_normalized: bool = False) -> Tensor:
    r"""Returns the discounted sum of the rewards from each token on, :math:`R_t = \sum_{k \ge t} \gamma^{k-t} r_k`.

    Args:
        rewards: ``[B, T]``.
        mask: ``[B, T]`` true where a token counts; the rewards of others are zero.
        discount: :math:`\gamma` in [0, 1].
        length_normalized: whether to divide by the number of tokens from here on, itself included.
    """
    kept = torch.where(mask.bool(), rewards, rewards.new_zeros(()))
    sums = torch.zeros_like(kept)
    running = kept.new_zeros(kept.shape[0])
    for position in reversed(range(kept.shape[1])):
        running = kept[:, position] + discount * running
        sums[:, position] = running
    if not length_normalized:
        return sums
    remaining = mask.to(kept.dtype).flip(-1).cumsum(-1).flip(-1)
    return sums / remaining.clamp(min=1)


def whitened(values: Tensor, *, mask: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """Returns values with mean 0 and variance 1 over those that count; unbiased variance.

    Args:
        values: ``[B, T]``.
        mask: which count; all when None, padding included, as MiniLLM's authors do.
        eps: added to the variance.
    """
    chosen = values.reshape(-1) if mask is None else values[mask.bool()]
    if chosen.numel() < 2:
        return torch.zeros_like(values)
    return (values - chosen.mean()) * (chosen.var() + eps).rsqrt()


@full_precision
def kl_estimate(log_q: Tensor, log_p: Tensor, *, kind: Estimator = "k2") -> Tensor:
    r"""Estimates :math:`\mathrm{KL}(q \| p)` from tokens drawn from :math:`q`, with :math:`R = \log p - \log q`.

    ==== ======================== ==================== ==========================================
    kind value                    expected value       expected gradient, as a loss
    ==== ======================== ==================== ==========================================
    k1   :math:`-R`               :math:`KL(q \| p)`   zero: refused by methods
    k2   :math:`R^2 / 2`          biased               that of :math:`KL(q \| p)`
    k3   :math:`e^R - R - 1`      :math:`KL(q \| p)`   that of :math:`KL(p \| q)`, the other one
    ==== ======================== ==================== ==========================================

    Args:
        log_q: ``[...]``.
        log_p: ``[...]``, a constant.
        kind: which estimate.

    Returns:
        ``[...]``. The exponent of ``k3`` is cut at 20.

    Raises:
        ValueError: the kind is unknown.

    References:
        Schulman, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html.
    """
    if kind not in get_args(Estimator):
        raise ValueError(f"unknown estimate '{kind}'; known: {', '.join(get_args(Estimator))}")
    gap = log_p.detach().to(log_q) - log_q
    if kind == "k1":
        return -gap
    if kind == "k2":
        return 0.5 * gap.square()
    return torch.expm1(gap.clamp(max=_LARGEST)) - gap


class Surrogate(NamedTuple):
    """A policy objective, to be maximised.

    Attributes:
        objective: ``[B, T]``.
        ratio: ``[B, T]`` the likelihood ratio, without gradient.
        clipped: ``[B, T]`` where the ratio's gradient is cut off.
    """

    objective: Tensor
    ratio: Tensor
    clipped: Tensor


@full_precision
def policy_surrogate(
    log_q: Tensor,
    anchors: Sequence[tuple[Tensor, float]],
    advantage: Tensor,
    *,
    clip: float | None = 0.2,
    log_weight: Tensor | None = None,
) -> Surrogate:
    r"""Returns the (clipped) surrogate that all policy-gradient methods here share.

    .. math:: \min\big(\rho A,\ \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon) A\big), \qquad
              \log\rho = \sum_k w_k (\log q - \log a_k) + \log w

    One anchor, the policy that sampled, with weight 1 is PPO and GRPO. The sampler with :math:`\alpha` and the teacher
    with :math:`1-\alpha` is trust-region ratio distillation. Per-token advantages from a teacher without clipping are
    on-policy distillation.

    Args:
        log_q: ``[B, T]``.
        anchors: log-probabilities ``[B, T]``, constants, each with its weight.
        advantage: ``[B]`` or ``[B, T]``, a constant.
        clip: :math:`\epsilon`; None for no clipping.
        log_weight: ``[B, T]`` a constant added to the log-ratio, as importance weights of a mixed sampler.

    Returns:
        Objective, ratio and clipped flags. Log-ratios are cut at 20.
    """
    gap = torch.zeros_like(log_q)
    for log_anchor, weight in anchors:
        gap = gap + weight * (log_q - log_anchor.detach().to(log_q))
    if log_weight is not None:
        gap = gap + log_weight.detach().to(log_q)
    ratio = gap.clamp(max=_LARGEST).exp()
    merit = (advantage.unsqueeze(-1) if advantage.dim() == 1 else advantage).detach().to(log_q)
    plain = ratio * merit
    if clip is None:
        return Surrogate(plain, ratio.detach(), torch.zeros_like(plain, dtype=torch.bool))
    limited = ratio.clamp(1 - clip, 1 + clip) * merit
    clipped = ((merit > 0) & (ratio > 1 + clip)) | ((merit < 0) & (ratio < 1 - clip))
    return Surrogate(torch.minimum(plain, limited), ratio.detach(), clipped.detach())


def mixed_sampler_log_weight(log_sampler: Tensor, log_teacher: Tensor, *, teacher_share: float) -> Tensor:
    r"""Returns the log of :math:`q_{old} / ((1-\alpha) q_{old} + \alpha p)` for tokens drawn from that mixture.

    Args:
        log_sampler: ``[B, T]`` of the student that sampled.
        log_teacher: ``[B, T]``.
        teacher_share: :math:`\alpha` in [0, 1).

    References:
        Gu et al., "MiniLLM", arXiv 2306.08543, section 2.2.
    """
    if teacher_share == 0.0:
        return torch.zeros_like(log_sampler)
    share = log_sampler.new_tensor(teacher_share)
    return log_sampler - torch.logaddexp(log_sampler + torch.log1p(-share), log_teacher + share.log())
