"""Targets of which only the largest classes and the mass of their tail are known.

A truncated target can be read in several ways, and most published ones are wrong in a way that has a name here:

- ``tail``: all other classes form one class more, on both sides. A divergence of a coarsened distribution: never above
  the true one, zero only where the true one can be, correct gradients at equality, and it sees mass that leaves.
- ``both_renormalized``: only proportions within the kept classes count; blind to mass outside.
- ``teacher_renormalized``: the kept part is scaled up to one, which makes the student overconfident.
- ``raw``: the kept part as it is, no proper target; can be negative.
- ``label_residual``: the tail is given to the label; right where labels were drawn from the teacher.

Random draws (:mod:`limbeck.functional.sampled_targets`) have none of these flaws in expectation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from limbeck.functional.divergence_registry import Divergence
from limbeck.functional.reduction import widened
from limbeck.functional.token_losses import Rule, Scores, Targets, TokenLoss, rows_of

Reading = Literal["tail", "both_renormalized", "teacher_renormalized", "raw", "label_residual"]


class TopKTarget(NamedTuple):
    """The ``k`` largest classes of a distribution.

    Attributes:
        logprobs: ``[..., k]`` natural log-probabilities, in decreasing order.
        indices: ``[..., k]`` int64 classes.
        tail: ``[...]`` log of the mass of all other classes, summed and not left over; ``-inf`` if there are none.
        logsumexp: ``[...]`` of all logits, so that the kept logits are ``logprobs + logsumexp``.
    """

    logprobs: Tensor
    indices: Tensor
    tail: Tensor
    logsumexp: Tensor


def top_k(logits: Tensor, k: int) -> TopKTarget:
    """Returns the ``k`` largest classes of ``[..., V]`` logits, with the exact mass of the rest.

    Raises:
        ValueError: ``k`` is not between 1 and the number of classes.

    Example:
        >>> kept = top_k(torch.tensor([[0.0, 1.0, 0.0]]), 1)
        >>> (kept.logprobs.exp().sum() + kept.tail.exp()).item()
        1.0
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k is {k}, but should be between 1 and the {logits.shape[-1]} classes")
    logits = widened(logits)
    total = logits.logsumexp(-1)
    kept, indices = logits.topk(k, dim=-1)
    tail = logits.scatter(-1, indices, -torch.inf).logsumexp(-1) - total
    return TopKTarget(kept - total.unsqueeze(-1), indices, tail, total)


class _Split(NamedTuple):
    """The student's side of a truncated target.

    Attributes:
        kept: ``[n, k]`` log-probabilities of the kept classes.
        tail: ``[n]`` log of the mass of all others.
    """

    kept: Tensor
    tail: Tensor


def _split(log_q: Tensor, indices: Tensor) -> _Split:
    others = log_q.scatter(-1, indices, -torch.inf)
    peak = _finite_peak(others)
    mass = (others - peak).exp().sum(-1)
    some = mass > 0
    # Not torch.logsumexp: its gradient is NaN where no class is left.
    tail = torch.where(some, torch.where(some, mass, mass.new_ones(())).log() + peak.squeeze(-1), -torch.inf)
    return _Split(log_q.gather(-1, indices), tail)


def _finite_peak(others: Tensor) -> Tensor:
    """Returns the ``[n, 1]`` largest value of each row, 0 where all are ``-inf``."""
    peak = others.detach().amax(-1, keepdim=True)
    return torch.where(torch.isneginf(peak), peak.new_zeros(()), peak)


@dataclass(frozen=True)
class TopKRule(Rule):
    """A divergence from a truncated target.

    Attributes:
        divergence: the divergence.
        reading: what is made of the classes that are not kept.
        temperature: divides the student's logits. The targets must be of the same temperature.
    """

    divergence: Divergence
    reading: Reading = "tail"
    temperature: float = 1.0

    @property
    def closed_form(self) -> bool:  # type: ignore[override]
        """Whether the derivative is plain arithmetic: for the tail reading of a divergence that states its slope."""
        return self.reading == "tail" and self.divergence.slope is not None

    def _sides(self, log_q: Tensor, *targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities of teacher and student over the same few classes."""
        log_p, indices, tail = targets[:3]
        if self.reading == "tail":
            split = _split(log_q, indices)
            return torch.cat([log_p, tail.unsqueeze(-1)], -1), torch.cat([split.kept, split.tail.unsqueeze(-1)], -1)
        kept = log_q.gather(-1, indices)
        if self.reading == "raw":
            return log_p, kept
        if self.reading == "teacher_renormalized":
            return log_p.log_softmax(-1), kept
        if self.reading == "both_renormalized":
            return log_p.log_softmax(-1), kept.log_softmax(-1)
        return self._with_label(log_q, log_p, indices, tail, targets[3])

    @staticmethod
    def _with_label(
        log_q: Tensor, log_p: Tensor, indices: Tensor, tail: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gives the tail to the label, which is one class more unless it is kept already."""
        is_label = indices == labels.unsqueeze(-1)
        raised = torch.where(is_label, torch.logaddexp(log_p, tail.unsqueeze(-1)), log_p)
        extra = tail.masked_fill(is_label.any(-1), -torch.inf)
        chosen = torch.cat([indices, labels.unsqueeze(-1)], -1)
        return torch.cat([raised, extra.unsqueeze(-1)], -1), log_q.gather(-1, chosen)

    def values(self, scores: Scores, *targets: Tensor) -> Tensor:
        """Returns ``[n]`` losses; targets are log-probabilities, indices, tail and, where needed, labels."""
        return self.divergence(*self._sides(scores.log_probabilities(self.temperature), *targets))

    def gradient(self, scores: Scores, *targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns losses and derivatives: for the tail reading in closed form, else by autograd."""
        if not self.closed_form or self.divergence.slope is None:
            return super().gradient(scores, *targets)
        log_p, indices, tail = targets[:3]
        log_p = torch.cat([log_p, tail.unsqueeze(-1)], -1)
        logits = scores.logits / self.temperature if self.temperature != 1.0 else scores.logits
        # One exponential a class: of the others relative to their own peak, so that a tiny tail stays exact.
        others = logits.scatter(-1, indices, -torch.inf)
        peak = _finite_peak(others)
        weights = (others - peak).exp()
        mass = weights.sum(-1, keepdim=True)
        few = torch.cat([logits.gather(-1, indices), mass.log() + peak], -1)
        total = few.logsumexp(-1, keepdim=True)
        few = few - total
        slope = self.divergence.slope(log_p, few)
        whole, some = slope.sum(-1, keepdim=True), mass > 0
        factor = slope[..., -1:] / torch.where(some, mass, 1.0) - (peak - total).exp() * whole
        spread = weights * torch.where(some, factor, 0.0)
        kept = slope[..., :-1] - few[..., :-1].exp() * whole
        return self.divergence(log_p, few), spread.scatter(-1, indices, kept) / self.temperature


@dataclass(frozen=True)
class TopKLoss(TokenLoss):
    """The loss of positions against truncated targets.

    Attributes:
        rule: how they are read.
        logprobs: ``[..., k]`` the teacher's log-probabilities.
        indices: ``[..., k]`` their classes.
        tail: ``[...]`` log of the remaining mass.
        labels: ``[...]`` tokens, for the reading ``label_residual``.
    """

    rule: TopKRule
    logprobs: Tensor
    indices: Tensor
    tail: Tensor
    labels: Tensor | None = None

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns what is known of the teacher's distributions at rows."""
        chosen = (rows_of(self.logprobs, rows), rows_of(self.indices, rows), rows_of(self.tail, rows, 0))
        found = (widened(chosen[0].detach()), chosen[1], widened(chosen[2].detach()))
        return found if self.labels is None else (*found, rows_of(self.labels, rows, 0).clamp(min=0))

    @property
    def leading(self) -> torch.Size:
        """Shape of the positions."""
        return self.tail.shape


def top_k_loss(
    divergence: Divergence,
    logprobs: Tensor,
    indices: Tensor,
    tail: Tensor,
    *,
    reading: Reading = "tail",
    labels: Tensor | None = None,
    temperature: float = 1.0,
    stored_temperature: float = 1.0,
) -> TopKLoss:
    """Returns the loss of positions against truncated targets, constants.

    Args:
        divergence: which; ``raw``, ``teacher_renormalized`` and ``label_residual`` make sense for forward KL only.
        logprobs: ``[..., k]`` log-probabilities of the kept classes.
        indices: ``[..., k]`` int64 classes.
        tail: ``[...]`` log of the mass of all other classes.
        reading: what is made of the other classes, see the head of this module.
        labels: ``[...]`` tokens, for ``label_residual``.
        temperature: divides the student's logits.
        stored_temperature: the temperature of the stored log-probabilities.

    Raises:
        ValueError: the temperatures differ, which a truncated target cannot make up for; the divergence does not go
            with the reading; labels are missing.
    """
    if temperature != stored_temperature:
        raise ValueError(
            f"truncated targets of temperature {stored_temperature} cannot serve a loss at temperature {temperature}: "
            "how the tail changes is not known; store them at that temperature"
        )
    if reading not in get_args(Reading):
        raise ValueError(f"unknown reading '{reading}' of truncated targets; known: {', '.join(get_args(Reading))}")
    if reading in ("raw", "teacher_renormalized", "label_residual") and not divergence.cross_entropy:
        raise ValueError(
            f"the reading '{reading}' of truncated targets says nothing of the classes that are left out, which "
            f"'{divergence.name}' needs; take reading 'tail', or forward_kl"
        )
    if reading == "label_residual" and labels is None:
        raise ValueError("the reading 'label_residual' needs labels")
    rule = TopKRule(divergence, reading, float(temperature))
    return TopKLoss(rule, logprobs, indices, tail, labels if reading == "label_residual" else None)


class Bounds(NamedTuple):
    """What a divergence from the whole distribution can be, given a truncated one: ``[...]`` each."""

    lower: Tensor
    upper: Tensor


@torch.no_grad()
def divergence_bounds(
    divergence: Divergence, student_logits: Tensor, logprobs: Tensor, indices: Tensor, tail: Tensor
) -> Bounds:
    """Returns bounds of the divergence from the teacher's whole distribution, of which the ``k`` largest are known.

    The lower bound counts all other classes as one. The upper bound spreads the tail in the worst way that the kept
    classes allow: no other class has more mass than the smallest kept one, and a convex function is largest where each
    has either that or nothing. Where the divergence punishes missing mass without limit, the bound is infinite.

    Args:
        divergence: a convex one: any f-divergence.
        student_logits: ``[..., V]``.
        logprobs: ``[..., k]`` in decreasing order.
        indices: ``[..., k]``.
        tail: ``[...]``.

    Raises:
        ValueError: the divergence is not known to be convex.
    """
    if not divergence.convex:
        raise ValueError(f"bounds need a convex divergence, which '{divergence.name}' is not known to be")
    log_q = widened(student_logits).log_softmax(-1)
    lower = TopKRule(divergence).values(Scores(log_q), logprobs, indices, tail)
    kept = divergence.contributions(logprobs, log_q.gather(-1, indices)).sum(-1)
    most = logprobs[..., -1:]
    nothing = divergence.contributions(torch.full_like(log_q, -math.inf), log_q)
    full = divergence.contributions(most.expand_as(log_q), log_q)
    listed = torch.zeros_like(log_q, dtype=torch.bool).scatter(-1, indices, True)
    # A fraction of a class is rounded up to a whole one, which only loosens the bound.
    number = (tail.exp() / most.squeeze(-1).exp()).ceil().unsqueeze(-1)
    empty = nothing.masked_fill(listed, 0.0).sum(-1)
    gain = torch.where(torch.isinf(nothing), nothing.new_zeros(()), full - nothing)
    gain = gain.masked_fill(listed, -math.inf).sort(dim=-1, descending=True).values.clamp(min=0)
    rank = torch.arange(gain.shape[-1], device=gain.device)
    return Bounds(lower, kept + empty + torch.where(rank < number, gain, gain.new_zeros(())).sum(-1))
