"""Targets that keep a teacher's secrets, and how much of a secret a model gives away."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional.precision import full_precision


@full_precision
def swing_target(
    teacher_logits: Tensor, temperature: Tensor, score: Tensor, noise: Tensor | None, *, floor: float = 1e-6
) -> Tensor:
    r"""Returns softened and disturbed probabilities, :math:`\mathrm{norm}(\max(\mathrm{softmax}(t/T) + s\,n, f))`.

    Args:
        teacher_logits: ``[..., V]``, a constant.
        temperature: ``[...]``.
        score: ``[...]`` in [0, 1], how likely a position is private.
        noise: ``[..., V]``; none is added, and nothing is cut, when None.
        floor: least probability before normalisation.
    """
    p = torch.softmax(teacher_logits.detach() / temperature.unsqueeze(-1), dim=-1)
    if noise is None:
        return p
    disturbed = (p + score.unsqueeze(-1) * noise).clamp(min=floor)
    return disturbed / disturbed.sum(-1, keepdim=True)


class Exposure(NamedTuple):
    """How much likelier a model finds a secret than others of its form.

    Attributes:
        rank: of the secret among candidates, 1 for the likeliest.
        bits: ``log2`` of the number of candidates, itself included, minus that of its rank.
        extrapolated: bits by a normal distribution fitted to the candidates, for ranks that cannot be counted.
    """

    rank: int
    bits: float
    extrapolated: float


def exposure(candidate_nll: Tensor, canary_nll: float) -> Exposure:
    """Returns the exposure of a canary among candidates of the same form and context.

    Args:
        candidate_nll: ``[R]`` negative log-likelihoods of candidates that the model has not seen.
        canary_nll: that of the canary.

    Raises:
        ValueError: there are fewer than two candidates.

    References:
        Carlini et al., "The Secret Sharer", arXiv 1802.08232.

    Example:
        >>> exposure(torch.tensor([2.0, 3.0, 4.0]), 1.0).bits
        2.0
    """
    if candidate_nll.numel() < 2:
        raise ValueError("exposure needs at least two candidates")
    values = candidate_nll.double().flatten()
    rank = 1 + int((values < canary_nll).sum())
    score = (canary_nll - values.mean()) / values.std(correction=0)
    tail = torch.special.log_ndtr(score) / math.log(2)
    return Exposure(rank, math.log2(len(values) + 1) - math.log2(rank), -float(tail))
