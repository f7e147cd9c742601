"""ADPA: an aligned teacher's advantage over its former self, for every token of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import NeedsError
from limbeck.functional.advantages import expected_advantage, sparse_advantage
from limbeck.functional.reduction import widened
from limbeck.functional.token_losses import LabelLoss, Rule, Scores, TargetLogits, Targets, TokenLoss, rows_of
from limbeck.hyperparameters import NonNegative
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import STUDENT, SequenceMethod, logits_by_rows
from limbeck.signals import Batch, Signals, Term, Terms


@dataclass(frozen=True)
class ExpectedAdvantage(Rule):
    """Negative advantage that the student can expect of its next token.

    Attributes:
        sparse: whether targets are kept classes and their advantages, and not logits of both models.
    """

    sparse: bool = False
    closed_form = True

    def _advantage(self, log_q: Tensor, *targets: Tensor) -> Tensor:
        if self.sparse:
            indices, values = targets
            return torch.zeros_like(log_q).scatter_add(-1, indices, values.to(log_q.dtype))
        aligned, reference = targets
        return aligned.log_softmax(-1) - reference.log_softmax(-1)

    def values(self, scores: Scores, *targets: Tensor) -> Tensor:
        """Returns ``[n]`` losses."""
        log_q = scores.log_probabilities()
        return -expected_advantage(log_q, self._advantage(log_q, *targets))

    def gradient(self, scores: Scores, *targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns losses and ``-q (A - sum q A)``."""
        log_q = scores.log_probabilities()
        advantage = self._advantage(log_q, *targets)
        value = expected_advantage(log_q, advantage)
        return -value, -log_q.exp() * (advantage - value.unsqueeze(-1))


@dataclass(frozen=True)
class AdvantageLoss(TokenLoss):
    """The loss of positions against two whole distributions.

    Attributes:
        aligned: gives logits of the aligned teacher.
        reference: gives logits of the teacher before its alignment.
        shape: shape of the positions.
    """

    aligned: TargetLogits
    reference: TargetLogits
    shape: torch.Size
    rule = ExpectedAdvantage()

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns both logits of rows."""
        with torch.no_grad():
            return widened(self.aligned(rows)), widened(self.reference(rows))

    @property
    def leading(self) -> torch.Size:
        """Shape of the positions."""
        return self.shape


@dataclass(frozen=True)
class SparseAdvantageLoss(TokenLoss):
    """The loss of positions against advantages of a few classes.

    Attributes:
        indices: ``[..., k]``.
        advantages: ``[..., k]``.
    """

    indices: Tensor
    advantages: Tensor
    rule = ExpectedAdvantage(sparse=True)

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns classes and advantages of rows."""
        return rows_of(self.indices, rows), rows_of(self.advantages, rows)

    @property
    def leading(self) -> torch.Size:
        """Shape of the positions."""
        return self.advantages.shape[:-1]


@register(
    "adpa",
    title="Advantage-Guided Distillation for Preference Alignment in Small Language Models",
    authors="Shiping Gao and Fanqi Wan and Jiajian Guo and Xiaojun Quan and Qifan Wang",
    paper="2502.17927",
    year=2025,
    family="policy",
    equation=r"L = L_{CE}(y_w) - \gamma\,\frac{1}{M} \sum_t \sum_a q(a \mid s_t)"
    r" \log\frac{p_{DPO}(a \mid s_t)}{p_{ref}(a \mid s_t)}",
)
class ADPA(SequenceMethod):
    """On its own answers the student is rewarded for tokens that alignment made the teacher like better.

    The batch holds a preferred answer, and beside it one that the student sampled before training: the view ``sampled``
    with ``sampled_labels`` and ``sampled_mask``. The role ``reference`` is the teacher before its alignment. The
    objective has no bound, so few steps at a small learning rate are enough.

    Terms:
        ce: cross-entropy with the preferred answer.
        advantage: negative expected advantage at each token of the sampled answer.

    Deviations: with caches of the largest classes, the authors' loader cuts advantages to (0, 1) as if they were
    probabilities, by which negative ones vanish; here they stay. The published weight is not known.

    Args:
        gamma: weight of ``advantage``.
    """

    needs = Needs(
        student={STUDENT},
        teacher={"hidden|logits|topk"},
        reference={"hidden|logits|topk"},
        views=("sampled",),
        batch={"labels", "mask", "sampled_labels", "sampled_mask"},
    )

    def __init__(self, *, gamma: NonNegative = 1.0) -> None:
        super().__init__()
        self.weights = {"ce": 1.0, "advantage": gamma}

    def forward(self, batch: Batch, student: Signals, teacher: Signals, reference: Signals) -> Terms:
        """Returns ``ce`` and ``advantage``."""
        mask, sampled = batch["mask"], batch["sampled_mask"]
        ce = self.position_losses(student, {"ce": LabelLoss(batch["labels"])}, mask)["ce"]
        loss = advantage_loss(teacher.views["sampled"], reference.views["sampled"])
        values = self.position_losses(student.views["sampled"], {"advantage": loss}, sampled)
        return {"ce": Term(ce, mask), "advantage": Term(values["advantage"], sampled)}


def advantage_loss(teacher: Signals, reference: Signals) -> TokenLoss:
    """Returns the loss against the teacher's advantage, from whole distributions or their largest classes.

    Raises:
        NeedsError: one gives whole distributions, the other its largest classes.
    """
    if (teacher.topk is None) != (reference.topk is None):
        names = ("teacher", "reference") if reference.topk is None else ("reference", "teacher")
        raise NeedsError(
            "the role '{}' gives its largest classes and '{}' whole distributions, which have no ratio beyond those; "
            "let both run, or read both from caches of the largest classes".format(*names)
        )
    if teacher.topk is not None and reference.topk is not None:
        kept, other = teacher.topk, reference.topk
        return SparseAdvantageLoss(*sparse_advantage(kept.logprobs, kept.indices, other.logprobs, other.indices))
    logits_of, shape = logits_by_rows(teacher, "teacher")
    return AdvantageLoss(logits_of, logits_by_rows(reference, "reference")[0], shape)
