"""Targets that are classes drawn from the teacher: random-sampling distillation, unbiased however few are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional.reduction import widened
from limbeck.functional.token_losses import Rule, Scores, Targets, TokenLoss, rows_of


class SampledRule(Rule):
    """Cross-entropy with weighted classes: an unbiased estimate of that with the whole distribution."""

    closed_form = True

    def values(self, scores: Scores, *targets: Tensor) -> Tensor:
        """Returns ``[n]`` losses ``-sum w log q``."""
        indices, weights = targets
        kept = scores.log_probabilities().gather(-1, indices)
        return -(weights * torch.where(weights != 0, kept, kept.new_zeros(()))).sum(-1)

    def gradient(self, scores: Scores, *targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns losses and derivatives ``q sum(w) - w``."""
        indices, weights = targets
        q = scores.log_probabilities().exp()
        return self.values(scores, *targets), (q * weights.sum(-1, keepdim=True)).scatter_add(-1, indices, -weights)


_SAMPLED = SampledRule()


@dataclass(frozen=True)
class SampledLoss(TokenLoss):
    """The loss of positions against drawn classes.

    Attributes:
        indices: ``[..., n]`` int64 classes.
        weights: ``[..., n]`` their weights; 0 in unused places.
    """

    indices: Tensor
    weights: Tensor
    rule = _SAMPLED

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns classes and weights of rows."""
        return rows_of(self.indices, rows), widened(rows_of(self.weights, rows).detach())

    @property
    def leading(self) -> torch.Size:
        """Shape of the positions."""
        return self.weights.shape[:-1]


class Draws(NamedTuple):
    """Classes drawn with replacement, those that were drawn several times counted.

    Attributes:
        indices: ``[..., n]`` int64 distinct classes.
        counts: ``[..., n]`` int64 how often each was drawn; 0 in unused places.
    """

    indices: Tensor
    counts: Tensor


def draw_classes(logits: Tensor, rounds: int, *, power: float = 1.0, generator: torch.Generator | None = None) -> Draws:
    r"""Draws ``rounds`` classes of every row, with replacement, from :math:`p^\tau / \sum p^\tau`.

    Args:
        logits: ``[..., V]`` of the teacher.
        rounds: number of draws, 50 in the paper; about a dozen distinct classes come of it on real text.
        power: :math:`\tau`; 1 draws from the teacher itself, less draws rare classes more often.
        generator: source of random numbers.

    Returns:
        Distinct classes and counts, as wide as the fullest row needs.

    Raises:
        ValueError: ``rounds`` is not positive.

    References:
        Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", arXiv 2503.16870.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but should be at least 1")
    flat = widened(logits.detach()).reshape(-1, logits.shape[-1])
    cumulative = torch.softmax(power * flat, dim=-1).cumsum(-1)
    draws = torch.rand(len(flat), rounds, dtype=flat.dtype, device=flat.device, generator=generator)
    # Scaled to the last sum, which rounding moves off one: no draw lies beyond it or on a class without mass.
    found = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).clamp(max=flat.shape[-1] - 1)
    ordered = found.sort(dim=-1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = first.cumsum(-1) - 1
    width = int(place.max()) + 1 if len(flat) else 0
    counts = torch.zeros_like(ordered).scatter_add(-1, place, torch.ones_like(ordered))[:, :width]
    indices = torch.zeros_like(ordered).scatter(-1, place, ordered)[:, :width]
    shape = (*logits.shape[:-1], width)
    return Draws(indices.reshape(shape), counts.reshape(shape))


def importance_weights(logits: Tensor, draws: Draws, *, power: float = 1.0, self_normalized: bool = False) -> Tensor:
    r"""Returns the weights of drawn classes under which sums over them are unbiased, ``[..., n]``.

    .. math:: w_i = \frac{c_i}{N}\,\frac{p_i}{p_i^\tau / \sum_j p_j^\tau}

    which is :math:`c_i / N` for draws from the teacher itself.

    Args:
        logits: ``[..., V]`` of the teacher.
        draws: what was drawn.
        power: :math:`\tau` of the draws.
        self_normalized: whether to scale weights to a sum of one, which is biased for powers other than 1.
    """
    counts = draws.counts.to(widened(logits).dtype)
    weights = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    if power != 1.0:
        wide = widened(logits.detach())
        ratio = wide.log_softmax(-1) - (power * wide).log_softmax(-1)
        weights = weights * ratio.gather(-1, draws.indices).exp()
    return weights / weights.sum(-1, keepdim=True) if self_normalized else weights
