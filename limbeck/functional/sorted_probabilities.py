"""Distributions over different vocabularies, compared by their sorted probabilities alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, neutralised, reduce, widened
from limbeck.functional.token_losses import Rule, Scores, TargetLogits, Targets, TokenLoss, rows_of


@full_precision
def sorted_distance(
    first: Tensor, second: Tensor, *, reduction: Reduction = "mean", mask: Tensor | None = None
) -> Tensor:
    r"""Returns the L1 distance of two probability vectors after each is sorted, the shorter filled up with zeros.

    .. math:: \sum_i |p_{(i)} - q_{(i)}|

    It is the Wasserstein distance between the distributions under a cost of 1 for unequal probabilities, in [0, 2], and
    blind to which token has which probability.

    Args:
        first: ``[..., V]`` probabilities, which need not sum to one.
        second: ``[..., V']``.
        reduction: see :func:`limbeck.functional.reduction.reduce`.
        mask: ``[...]`` true where a position counts.

    Raises:
        ValueError: the mask has another shape, or the reduction is unknown.

    References:
        Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
        arXiv 2402.12030.

    Example:
        >>> sorted_distance(torch.tensor([[0.2, 0.8]]), torch.tensor([[0.7, 0.0, 0.3]]))
        tensor(0.2000)
    """
    sides = [neutralised(side, mask).sort(dim=-1, descending=True).values for side in (first, second)]
    width = max(side.shape[-1] for side in sides)
    one, other = (pad(side, (0, width - side.shape[-1])) for side in sides)
    return reduce((one - other).abs().sum(-1), reduction, mask=mask)


@dataclass(frozen=True)
class SortedRule(Rule):
    """Distance of sorted probabilities from those of target logits over any vocabulary.

    Attributes:
        temperature: divides the student's logits.
        target_temperature: divides the target's.
    """

    temperature: float = 1.0
    target_temperature: float = 1.0

    def values(self, scores: Scores, *targets: Tensor) -> Tensor:
        """Returns ``[n]`` distances from targets ``[n, V']``."""
        theirs = Scores(targets[0]).log_probabilities(self.target_temperature).exp()
        return sorted_distance(scores.log_probabilities(self.temperature).exp(), theirs, reduction="none")

    def gradient(self, scores: Scores, *targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns distances and their derivatives: signs, brought back from the sorted order."""
        log_q = scores.log_probabilities(self.temperature)
        order = log_q.argsort(dim=-1, descending=True)
        ours = log_q.gather(-1, order).exp()
        theirs = Scores(targets[0]).log_probabilities(self.target_temperature).exp()
        theirs = theirs.sort(dim=-1, descending=True).values
        width = max(ours.shape[-1], theirs.shape[-1])
        gap = pad(ours, (0, width - ours.shape[-1])) - pad(theirs, (0, width - theirs.shape[-1]))
        sign = torch.zeros_like(log_q).scatter(-1, order, gap[:, : ours.shape[-1]].sign())
        q = log_q.exp()
        derivative = q * (sign - (q * sign).sum(-1, keepdim=True))
        return gap.abs().sum(-1), derivative / self.temperature


_PLAIN = SortedRule()


@dataclass(frozen=True)
class SortedLoss(TokenLoss):
    """Sorted distance of every position from a target over another vocabulary.

    Attributes:
        logits_of: gives the target's logits ``[n, V']`` for rows of the student's positions.
        shape: shape of the student's positions.
        rule: at which temperatures.
    """

    logits_of: TargetLogits
    shape: torch.Size
    rule: SortedRule = _PLAIN

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns the target's logits of rows, float32 or better, without a graph."""
        with torch.no_grad():
            return (widened(self.logits_of(rows)),)

    @property
    def leading(self) -> torch.Size:
        """Shape of the positions."""
        return self.shape


@dataclass(frozen=True)
class SortedTopRule(Rule):
    """Distance of sorted probabilities from a target of which the largest alone are known, and the mass of the rest.

    The rest counts as one sum on either side, so the distance is never above that of the whole distributions.

    Attributes:
        temperature: divides the student's logits.
    """

    temperature: float = 1.0

    def values(self, scores: Scores, *targets: Tensor) -> Tensor:
        """Returns ``[n]`` distances from log-probabilities ``[n, k]``, largest first, and the rest's log ``[n]``."""
        known, rest = (target.exp() for target in targets)
        ours = scores.log_probabilities(self.temperature).exp().sort(dim=-1, descending=True).values
        count = known.shape[-1]
        ours = pad(ours, (0, max(count - ours.shape[-1], 0)))
        listed = (ours[..., :count] - known).abs().sum(-1)
        return listed + (ours[..., count:].sum(-1) - rest).abs()


@dataclass(frozen=True)
class SortedTopLoss(TokenLoss):
    """Sorted distance of every position from the largest probabilities of a target over another vocabulary.

    Attributes:
        logprobs: ``[..., k]`` the target's log-probabilities, largest first, at its own positions.
        tail: ``[...]`` log of the rest.
        places: ``[*positions]`` for each of the student's positions the number of the target's, over all its rows.
        rule: at which temperature.
    """

    logprobs: Tensor
    tail: Tensor
    places: Tensor
    rule: SortedTopRule = SortedTopRule()

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns what is known of rows, float32 or better."""
        chosen = self.places.reshape(-1)[rows]
        known = rows_of(self.logprobs, chosen), rows_of(self.tail, chosen, 0)
        return tuple(widened(part.detach()) for part in known)

    @property
    def leading(self) -> torch.Size:
        """Shape of the positions."""
        return self.places.shape
