"""TAID: a target that moves from the student's own distribution to the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.functional.divergence_registry import Divergence, divergence
from limbeck.functional.token_losses import Rule, Scores, TargetLogits, Targets, TokenLoss
from limbeck.hyperparameters import Fraction, NonNegative
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import DENSE_TARGET, STUDENT, SequenceMethod, logits_by_rows
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Term, Terms


@dataclass(frozen=True)
class InterpolatedRule(Rule):
    """A divergence from ``softmax((1 - t) sg(student) + t teacher)``, mixed as logits.

    Attributes:
        divergence: which.
    """

    divergence: Divergence
    closed_form = True

    def _log_target(self, scores: Scores, *targets: Tensor) -> Tensor:
        logits, share = targets
        mixed = torch.lerp(scores.logits.detach(), logits.to(scores.logits.dtype), share.to(scores.logits.dtype))
        return mixed.log_softmax(-1)

    def values(self, scores: Scores, *targets: Tensor) -> Tensor:
        """Returns ``[n]`` losses from teacher logits ``[n, V]`` and shares ``[n, 1]``."""
        return self.divergence(self._log_target(scores, *targets), scores.log_probabilities())

    def gradient(self, scores: Scores, *targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns losses and student's minus target's probabilities."""
        log_target, log_q = self._log_target(scores, *targets), scores.log_probabilities()
        return self.divergence(log_target, log_q), log_q.exp() - log_target.exp()


@dataclass(frozen=True)
class InterpolatedLoss(TokenLoss):
    """The loss of positions against a target between student and teacher.

    Attributes:
        rule: which divergence; one with the gradient of forward KL.
        logits_of: gives the teacher's logits of rows.
        shape: shape of the positions.
        share: scalar tensor, the teacher's share.
    """

    rule: InterpolatedRule
    logits_of: TargetLogits
    shape: torch.Size
    share: Tensor

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns teacher logits of rows and the share for each."""
        with torch.no_grad():
            logits = self.logits_of(rows)
        return logits, self.share.expand(len(logits), 1)

    @property
    def leading(self) -> torch.Size:
        """Shape of the positions."""
        return self.shape


_NONE_YET = -1.0
"""In place of a previous loss, which is never below zero."""


@register(
    "taid",
    title="TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models",
    authors="Makoto Shing and Kou Misaki and Han Bao and Sho Yokoi and Takuya Akiba",
    paper="2501.16937",
    year=2025,
    family="sequence",
    equation=r"L = \frac{1}{M} \sum_t \mathrm{KL}\big(\mathrm{softmax}((1-\tau)\,\mathrm{sg}(z^S_t) + \tau z^T_t)"
    r" \,\|\, q_t\big), \qquad \tau \text{ from } \tau_0 \text{ to } 1",
)
class TAID(SequenceMethod):
    r"""Distils from a distribution that begins near the student's and slides to the teacher's as the loss falls.

    After each optimizer step the share :math:`\tau` of the teacher's logits grows by
    :math:`\alpha\,\sigma(m)\,(1-\tau)`, :math:`m` being the running mean of the relative fall of the loss, and at least
    as fast as linearly over the run.

    Terms:
        kl: divergence of the student's from the interpolated distribution at each token.

    Deviations: the authors' code logs the cross-entropy, which has the same gradient; the running mean follows that
    cross-entropy, as theirs does. They move the share at every micro-batch, also in validation, and in each process by
    its own loss; here it moves once a step, from the loss of the whole batch.

    Args:
        start: share of the teacher at the beginning.
        end: share at the end.
        step_size: largest step towards the teacher, as a part of what is left.
        momentum: of the running mean.
        adaptive: whether the share follows the loss, and not only the linear schedule.
    """

    needs = Needs(student={STUDENT}, teacher={DENSE_TARGET}, batch={"labels", "mask"})
    share: Tensor
    previous: Tensor
    trend: Tensor
    _seen: Tensor

    def __init__(
        self,
        *,
        start: Fraction = 0.4,
        end: Fraction = 1.0,
        step_size: NonNegative = 5e-4,
        momentum: Fraction = 0.99,
        adaptive: bool = True,
    ) -> None:
        super().__init__()
        if start > end:
            raise RecipeError(f"method 'taid': 'start' = {start} should not be above 'end' = {end}")
        self.start, self.end = start, end
        self.step_size = step_size
        self.momentum = momentum
        self.adaptive = adaptive
        self.rule = InterpolatedRule(divergence("forward_kl"))
        self.observed = InterpolatedRule(divergence("cross_entropy"))
        self.weights = {"kl": 1.0}
        self.register_buffer("share", torch.tensor(float(start), dtype=torch.float64))
        self.register_buffer("previous", torch.tensor(_NONE_YET, dtype=torch.float64))
        self.register_buffer("trend", torch.zeros((), dtype=torch.float64))
        self.register_buffer("_seen", torch.zeros(2, dtype=torch.float64), persistent=False)

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``kl``."""
        logits_of, shape = logits_by_rows(teacher, "teacher")
        losses: dict[str, TokenLoss] = {"kl": InterpolatedLoss(self.rule, logits_of, shape, self.share)}
        mask = batch["mask"]
        values = self.position_losses(student, losses, mask)["kl"]
        if self.adaptive and self.training and torch.is_grad_enabled():
            self._observe(student, logits_of, shape, mask)
        return {"kl": Term(values, mask)}

    @torch.no_grad()
    def _observe(self, student: Signals, logits_of: TargetLogits, shape: torch.Size, mask: Tensor) -> None:
        """Adds this micro-batch's cross-entropy with the interpolated target to that of the step."""
        loss = InterpolatedLoss(self.observed, logits_of, shape, self.share)
        values = self.position_losses(student.detach(), {"kl": loss}, mask)["kl"]
        self._seen += torch.stack([values.sum().to(self._seen), mask.sum().to(self._seen)])

    def after_step(self, progress: Progress) -> None:
        """Moves the share after an optimizer step, from the loss of all micro-batches and processes."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._seen)
        total, count = self._seen.tolist()
        self._seen.zero_()
        taken, whole = progress.step - 1, max(progress.steps_per_epoch * progress.epochs, 1)
        linear = self.start + (self.end - self.start) * taken / whole
        if not self.adaptive:
            self.share.fill_(min(self.end, linear))
            return
        if count:
            self._adapt(total / count, linear)

    def _adapt(self, loss: float, linear: float) -> None:
        previous, share = float(self.previous), float(self.share)
        self.previous.fill_(loss)
        if previous == _NONE_YET:
            return
        fall = (previous - loss) / previous if previous > 0 else 0.0
        self.trend.mul_(self.momentum).add_((1 - self.momentum) * fall)
        step = self.step_size * float(torch.sigmoid(self.trend)) * (1 - share)
        self.share.fill_(min(self.end, max(linear, share + step)))
