"""Forward and reverse divergences whose balance follows from which of two models is more certain of a sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional.divergences import tempered_log_softmax
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import check_same_shape


class DivergenceWeights(NamedTuple):
    """What a sample's divergences count.

    Attributes:
        forward: ``[...]`` weight of ``KL(peer || learner)``, which covers the peer's mass.
        reverse: ``[...]`` weight of ``KL(learner || peer)``, which seeks the peer's modes.
    """

    forward: Tensor
    reverse: Tensor


@full_precision
def entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Shannon entropy of tempered probabilities.

    Args:
        logits: ``[..., C]``.
        temperature: divides the logits; positive.

    Returns:
        ``[...]`` in nats, between 0 and ``log C``.

    Raises:
        ValueError: the temperature is not positive.

    Example:
        >>> entropy(torch.tensor([[0.0, 0.0], [999.0, 0.0]]))
        tensor([0.6931, 0.0000])
    """
    log_p = tempered_log_softmax(logits, temperature)
    mass = log_p.exp()
    return (mass * torch.where(mass > 0, -log_p, log_p.new_zeros(()))).sum(-1)


@full_precision
def certainty_weights(
    learner_logits: Tensor,
    peer_logits: Tensor,
    *,
    temperature: float = 1.0,
    imbalance: float = 2.0,
    sharpness: float | None = None,
) -> DivergenceWeights:
    r"""Weighs forward and reverse divergence by who is more certain: the learner or its peer.

    With the gap :math:`\delta = H(p^{peer}) - H(p)` of entropies, a learner that is surer than its peer
    (:math:`\delta > 0`) gets the forward divergence times :math:`\nu`, which spreads its mass; otherwise the reverse
    divergence gets :math:`\nu`, which sharpens it. The other divergence counts once.

    Args:
        learner_logits: ``[..., C]`` of the model that learns.
        peer_logits: ``[..., C]`` of the other model.
        temperature: of both entropies.
        imbalance: :math:`\nu \ge 1`; 1 weighs both alike.
        sharpness: where given, the smooth weights :math:`2\,\mathrm{sigmoid}(k \delta)` and 2 minus that with
            :math:`k` the sharpness, instead of the two steps.

    Returns:
        Both weights, without gradient.

    Raises:
        ValueError: shapes differ or the temperature is not positive.

    References:
        Amara et al., "BD-KD: Balancing the Divergences for Online Knowledge Distillation", arXiv 2212.12965.

    Example:
        >>> sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> certainty_weights(sure, unsure)
        DivergenceWeights(forward=tensor([2.]), reverse=tensor([1.]))
    """
    check_same_shape(learner_logits, peer_logits, "the logits of both models")
    gap = entropy(peer_logits.detach(), temperature=temperature) - entropy(
        learner_logits.detach(), temperature=temperature
    )
    if sharpness is not None:
        forward = 2 * torch.sigmoid(sharpness * gap)
        return DivergenceWeights(forward, 2 - forward)
    one, more = torch.ones_like(gap), torch.full_like(gap, imbalance)
    return DivergenceWeights(torch.where(gap > 0, more, one), torch.where(gap > 0, one, more))
